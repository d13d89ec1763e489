"""Every subject of the system, its literal shape above the one function both sides call.

Tokens are names (``[a-z0-9][a-z0-9_-]*`` without ``__``, at most 63 characters); ``*`` is accepted
where a subscriber wants any. Nothing else in the project spells a subject.
"""

from __future__ import annotations

import re
import zlib

ANY = "*"
NOBODY = "-"  # the worker token of an outcome that no worker said (conductor, gateway)
DEFAULT_CLASS = "normal"
# Lower case, digits and "-", with single "_" between them: "__" separates the names of consumers.
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]*(?:_[a-z0-9-]+)*$"
NAME = re.compile(NAME_PATTERN)


def is_name(token: str) -> bool:
    """Whether a token can stand in a subject as the name of a tenant, model, job or worker."""
    return len(token) <= 63 and NAME.fullmatch(token) is not None


def shard_of(job: str, shards: int) -> int:
    """The queue shard of a job: crc32 of its name modulo the number of shards."""
    return zlib.crc32(job.encode()) % shards


# -- registry
# jf.reg.<tenant>.model.<model>.<verb>
def model_event(tenant: str, model: str, verb: str) -> str:
    return f"jf.reg.{tenant}.model.{model}.{verb}"


# jf.reg.<tenant>.job.<job>.<verb>
def job_event(tenant: str, job: str, verb: str) -> str:
    return f"jf.reg.{tenant}.job.{job}.{verb}"


# -- invocations
# jf.inv.<shard>.<tenant>.<job>.queued.<class>
def queued(shard: int | str, tenant: str, job: str, priority_class: str = DEFAULT_CLASS) -> str:
    return f"jf.inv.{shard}.{tenant}.{job}.queued.{priority_class}"


# jf.inv.<shard>.<tenant>.<job>.cancel
def cancel(shard: int | str, tenant: str, job: str) -> str:
    return f"jf.inv.{shard}.{tenant}.{job}.cancel"


# jf.inv.<shard>.<tenant>.<job>.started.<worker>
def started(shard: int | str, tenant: str, job: str, worker: str) -> str:
    return f"jf.inv.{shard}.{tenant}.{job}.started.{worker}"


# jf.inv.<shard>.<tenant>.<job>.done.<origin>.<worker>
def done(shard: int | str, tenant: str, job: str, origin: str, worker: str) -> str:
    return f"jf.inv.{shard}.{tenant}.{job}.done.{origin}.{worker}"


# jf.q.<shard>.<tenant>.<job>.<class>: the queue's copy of `queued`, in stream Q<shard>
def queue(shard: int | str, tenant: str, job: str, priority_class: str = DEFAULT_CLASS) -> str:
    return f"jf.q.{shard}.{tenant}.{job}.{priority_class}"


# jf.out.<invocation>.<worker>: chunks while streaming, not stored
def output(invocation: str, worker: str) -> str:
    return f"jf.out.{invocation}.{worker}"


# jf.log.<tenant>.<job>.<worker>.<replica>: a model's output while somebody reads, not stored
def log(tenant: str, job: str, worker: str, replica: str) -> str:
    return f"jf.log.{tenant}.{job}.{worker}.{replica}"


# -- payloads over the inline limit, in pieces (stream PAYLOADS) --------------------------------
# jf.blob.<tenant>.<job>.in.<blob>.<n>
def input_blob(tenant: str, job: str, blob: str, piece: int | str) -> str:
    return f"jf.blob.{tenant}.{job}.in.{blob}.{piece}"


# jf.blob.<tenant>.<job>.out.<worker>.<blob>.<n>
def output_blob(tenant: str, job: str, worker: str, blob: str, piece: int | str) -> str:
    return f"jf.blob.{tenant}.{job}.out.{worker}.{blob}.{piece}"


# -- fleet
# jf.fleet.<worker>.<verb>
def fleet(worker: str, verb: str) -> str:
    return f"jf.fleet.{worker}.{verb}"


# jf.ctl.<tenant>.<job>.<verb>.<worker>
def control(tenant: str, job: str, verb: str, worker: str) -> str:
    return f"jf.ctl.{tenant}.{job}.{verb}.{worker}"


# jf.ctl.scaled.<tenant>.<job>: no worker's business, so a token shorter than what workers hear
def scaled(tenant: str, job: str) -> str:
    return f"jf.ctl.scaled.{tenant}.{job}"


# jf.ctl.balanced.<tenant>.<job>: workers hear of it by a nudge
def balanced(tenant: str, job: str) -> str:
    return f"jf.ctl.balanced.{tenant}.{job}"


# jf.ctl.tried.<tenant>.<job>: the last is what became of the trial of its newest model
def tried(tenant: str, job: str) -> str:
    return f"jf.ctl.tried.{tenant}.{job}"


# A conductor let it in; not below jf.fleet.<worker>, where the worker itself may publish.
# jf.ctl.fleet.admitted.<worker>
def admitted(worker: str) -> str:
    return f"jf.ctl.fleet.admitted.{worker}"


# jf.ctl.fleet.revoked.<token>: an operator took a join token back
def revoked(token: str) -> str:
    return f"jf.ctl.fleet.revoked.{token}"


# jf.ctl.fleet.<verb>: what is asked of providers of workers, and what is not
def capacity_decision(verb: str) -> str:
    return f"jf.ctl.fleet.{verb}"


# jf.cap.<provider>.<verb>: what a provider of workers offers and does
def provider(provider: str, verb: str) -> str:
    return f"jf.cap.{provider}.{verb}"


# jf.tel.<worker>: heartbeats
def telemetry(worker: str) -> str:
    return f"jf.tel.{worker}"


# jf.cmd.<worker>: nudges that may be lost
def command(worker: str) -> str:
    return f"jf.cmd.{worker}"


# -- services (request / reply) -----------------------------------------------------------------
# jf.ask.query: named queries and read-only SQL, answered by the projector
def ask_query() -> str:
    return "jf.ask.query"


# jf.auth.<worker>: a worker asks for the credentials of a job assigned to it, or its own anew
def ask_credentials(worker: str) -> str:
    return f"jf.auth.{worker}"


# jf.join.<token>: the holder of a join token asks to be let in
def ask_join(token: str) -> str:
    return f"jf.join.{token}"


# -- message ids (`Nats-Msg-Id`) ------------------------------------------------------------------
def outcome_id(invocation: str, queued_event: str) -> str:
    """Of an invocation's outcome, whoever publishes it: the broker drops a second one.

    The queued event's id is known to the job's workers and to readers of the log alone, so nobody
    else can take the message id first.
    """
    return f"{invocation}.{queued_event}.done"


def outcome_of(message_id: str) -> str:
    """The invocation that an outcome's message id names."""
    return message_id.partition(".")[0]


# -- filters
EVERYTHING = "jf.>"
ALL_INVOCATIONS = "jf.inv.>"
ALL_QUEUED = queued(ANY, ANY, ANY, ANY)
ALL_REGISTRY = "jf.reg.>"
ALL_FLEET = "jf.fleet.>"
ALL_CONTROL = "jf.ctl.>"
ALL_PROVIDERS = "jf.cap.>"
ALL_TELEMETRY = telemetry(ANY)
ALL_PAYLOADS = "jf.blob.>"


# jf.inv.*.<tenant>.<job>.>: all that is said of a job's invocations
def invocations_of(tenant: str, job: str) -> str:
    return f"jf.inv.*.{tenant}.{job}.>"


# -- consumers and streams of the queue -----------------------------------------------------------
def queue_stream(shard: int | str) -> str:
    """Q<shard>: the WorkQueue stream that holds a shard's unfinished invocations."""
    return f"Q{shard}"


def job_consumer(tenant: str, job: str, priority_class: str = DEFAULT_CLASS) -> str:
    """The durable pull consumer shared by every replica of a job."""
    return f"{tenant}__{job}__{priority_class}"


def worker_consumer(worker: str) -> str:
    """The durable pull consumer on FLEET through which a worker hears of its assignments."""
    return f"W_{worker}"
