"""Streams and consumers, written out as values, each setting with its reason.

Sizes are bytes, durations nanoseconds, as the JetStream API takes them (STREAM.CREATE,
CONSUMER.CREATE). ``JetStream`` defaults that matter are stated, never assumed.
"""

from __future__ import annotations

from typing import Any, Final

from jetfleet import subjects
from jetfleet.specs import JobSettings
from jetfleet.subjects import ANY

SECOND: Final = 1_000_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
GIB: Final = 1024**3

REGISTRY: Final = "REGISTRY"
INVOCATIONS: Final = "INVOCATIONS"
FLEET: Final = "FLEET"
TELEMETRY: Final = "TELEMETRY"
PAYLOADS: Final = "PAYLOADS"

# The server refuses a stream's 1,001st consumer unless the stream says how many it may have.
MAX_CONSUMERS: Final = 50_000
# A repeated message id within this window is dropped by the broker: idempotent submits, and one
# outcome per invocation. The server keeps every id of the window in memory (about 0.3 KB each).
DUPLICATE_WINDOW: Final = 10 * MINUTE
PRIORITY_GROUP: Final = "w"
Config = dict[str, Any]


def registry(replicas: int = 1) -> Config:
    """Models, jobs, tenants: small, and kept for ever."""
    return {
        "name": REGISTRY,
        "subjects": [subjects.ALL_REGISTRY],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "allow_direct": True,
        "deny_delete": True,  # an audit log: nothing is taken out of it
        "max_consumers": MAX_CONSUMERS,
        "duplicate_window": DUPLICATE_WINDOW,
        "num_replicas": replicas,
    }


def invocations(replicas: int = 1) -> Config:
    """The log of all work. ``discard: new``: a full log refuses (503), it does not forget."""
    return {
        "name": INVOCATIONS,
        "subjects": [subjects.ALL_INVOCATIONS],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_age": 30 * DAY,  # unfinished work cannot age out with it: it lives in the queues
        "max_bytes": 32 * GIB,
        "allow_direct": True,
        "max_consumers": MAX_CONSUMERS,
        "duplicate_window": DUPLICATE_WINDOW,
        "num_replicas": replicas,
    }


def fleet(replicas: int = 1) -> Config:
    """What workers did and what was decided; low rate, long memory."""
    return {
        "name": FLEET,
        "subjects": [subjects.ALL_FLEET, subjects.ALL_CONTROL, subjects.ALL_PROVIDERS],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "allow_direct": True,
        "max_consumers": MAX_CONSUMERS,
        "duplicate_window": DUPLICATE_WINDOW,
        "num_replicas": replicas,
    }


def telemetry() -> Config:
    """Heartbeats: the last few minutes, in memory; old ones give way."""
    return {
        "name": TELEMETRY,
        "subjects": [subjects.ALL_TELEMETRY],
        "storage": "memory",
        "retention": "limits",
        "discard": "old",
        "max_age": 10 * MINUTE,
        "max_bytes": 64 * 1024**2,
        "max_msgs_per_subject": 300,
        "allow_direct": True,
        "max_consumers": 1_000,
        "num_replicas": 1,
    }


def payloads(replicas: int = 1) -> Config:
    """Inputs and outputs over the inline limit, in pieces, until a day after they were written."""
    return {
        "name": PAYLOADS,
        "subjects": [subjects.ALL_PAYLOADS],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_age": 2 * DAY,  # above the longest queue_ttl plus the longest run
        "max_bytes": 16 * GIB,
        "allow_direct": True,  # read piece by piece, by exact subject: what permissions can scope
        "max_consumers": 1_000,
        "num_replicas": replicas,
    }


def queue(shard: int) -> Config:
    """Q<shard>: the unfinished invocations of a shard's jobs, sourced from the log.

    WorkQueue retention: an acknowledged message is gone, so a consumer that is made anew gets
    exactly what is unfinished. Unreplicated even in a cluster: it can be rebuilt from the log.
    """
    return {
        "name": subjects.queue_stream(shard),
        # Its own subjects too, so that the conductor can put back what a crash kept out of it.
        "subjects": [subjects.queue(shard, ANY, ANY, ANY)],
        "sources": [
            {
                "name": INVOCATIONS,
                "subject_transforms": [
                    {
                        "src": subjects.queued(shard, ANY, ANY, ANY),
                        "dest": subjects.queue(
                            shard, "{{wildcard(1)}}", "{{wildcard(2)}}", "{{wildcard(3)}}"
                        ),
                    }
                ],
            }
        ],
        "storage": "file",
        "retention": "workqueue",
        "discard": "new",
        "allow_direct": True,
        "max_consumers": MAX_CONSUMERS,
        "duplicate_window": 2 * MINUTE,
        "num_replicas": 1,
    }


def all_streams(shards: int, replicas: int = 1) -> list[Config]:
    """Every stream of an installation, sources after what they read from."""
    return [
        registry(replicas),
        invocations(replicas),
        fleet(replicas),
        telemetry(),
        payloads(replicas),
        *(queue(shard) for shard in range(shards)),
    ]


def job_consumers(tenant: str, job: str, settings: JobSettings, shard: int) -> list[Config]:
    """The consumers of a job, one for each of its classes."""
    return [job_consumer(tenant, job, settings, shard, cls) for cls in settings.classes]


def job_consumer(tenant: str, job: str, settings: JobSettings, shard: int, cls: str = "") -> Config:
    """The durable pull consumer of a job and class, shared by all of its replicas.

    ``cls``: that of invocations which name none, unless given.

    State in memory: 10k jobs deliver 10k/s so, 2k/s with state on disk (DESIGN section 10). After
    a broker restart the conductor makes it again. Deliveries are unlimited here: agents count
    attempts and publish the outcome, so that nothing is ever dropped in silence.
    """
    cls = cls or settings.priority_class
    return {
        "durable_name": subjects.job_consumer(tenant, job, cls),
        "name": subjects.job_consumer(tenant, job, cls),
        "filter_subject": subjects.queue(shard, tenant, job, cls),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int(settings.ack_wait_s * SECOND),
        "max_deliver": -1,
        "max_ack_pending": 20_000,
        "max_waiting": 20_000,  # pull requests outstanding, over all workers of the job
        "mem_storage": True,
        "num_replicas": 1,
        "priority_groups": [PRIORITY_GROUP],
        "priority_policy": "overflow",  # slow workers ask for a backlog before they are served
    }


def worker_consumer(worker: str, start_seq: int) -> Config:
    """Through this a worker hears its assignments, from the event of its joining on."""
    return {
        "durable_name": subjects.worker_consumer(worker),
        "name": subjects.worker_consumer(worker),
        "filter_subject": subjects.control(ANY, ANY, ANY, worker),
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start_seq,
        "ack_policy": "explicit",
        "ack_wait": 5 * SECOND,
        "max_deliver": -1,
        "max_ack_pending": 1_000,
        "num_replicas": 1,
        "inactive_threshold": DAY,  # a worker that never comes back leaves nothing behind
    }
