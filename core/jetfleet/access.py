"""Who may do what on the broker: accounts, roles and their permissions, as written-out values.

Two accounts serve (DESIGN section 9). FLEET_ACCOUNT ("JF") holds the streams and every process of
ours. WORKERS_ACCOUNT ("WRK") holds the workers; it has no JetStream and reaches only the services
that JF exports, so the reply of a pull or of a publish is delivered inside WRK and can never name
a subject of the log. Within WRK a worker connects as itself (its fleet events, its assignments)
and, once per assigned job, with rights on that job's queue and outcomes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jetfleet import jwt, subjects
from jetfleet.subjects import ANY

FLEET_ACCOUNT = "JF"
WORKERS_ACCOUNT = "WRK"
SYSTEM_ACCOUNT = "SYS"
ROLES = ("operator", "gateway", "projector", "conductor", "publisher", "provider")
UNLIMITED = -1

# What WRK may ask of JF. `Stream`: many answers to one request (a pull); `Singleton`: one.
SERVICES: Mapping[str, str] = {
    "$JS.API.CONSUMER.MSG.NEXT.*.*": "Stream",
    "$JS.ACK.>": "Singleton",
    "$JS.API.DIRECT.GET.PAYLOADS.>": "Singleton",
    subjects.started(ANY, ANY, ANY, ANY): "Singleton",
    subjects.done(ANY, ANY, ANY, ANY, ANY): "Singleton",
    subjects.output(ANY, ANY): "Singleton",
    subjects.log(ANY, ANY, ANY, ANY): "Singleton",
    subjects.output_blob(ANY, ANY, ANY, ANY, ANY): "Singleton",
    subjects.fleet(ANY, ANY): "Singleton",
    subjects.telemetry(ANY): "Singleton",
    subjects.ask_credentials(ANY): "Singleton",
    subjects.ask_join(ANY): "Singleton",
}
# What WRK may hear from JF without asking.
ANNOUNCEMENTS: Sequence[str] = (subjects.cancel(ANY, ANY, ANY), subjects.command(ANY))


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a user may publish and subscribe; anything else is refused by the broker."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    def claims(self) -> dict[str, Any]:
        return {
            "pub": {"allow": list(self.publish)},
            "sub": {"allow": list(self.subscribe)},
            "subs": UNLIMITED,
            "data": UNLIMITED,
            "payload": UNLIMITED,
        }


def inbox(user: str) -> str:
    """The private inbox prefix of a user; nobody else may subscribe to it."""
    return f"_INBOX_{user}"


# Reading the log: stream facts, single messages, and consumers that vanish with their reader.
_READ_LOG = (
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.DIRECT.GET.>",
    *(
        f"$JS.API.CONSUMER.{verb}"
        for stream in ("REGISTRY", "INVOCATIONS", "FLEET")
        for verb in (
            f"CREATE.{stream}.>",
            f"MSG.NEXT.{stream}.*",
            f"INFO.{stream}.*",
            f"DELETE.{stream}.*",
        )
    ),
    "$JS.FC.>",
)
_READING_FLEET = ("CREATE.FLEET.>", "MSG.NEXT.FLEET.*", "INFO.FLEET.*", "DELETE.FLEET.*")
_SUBMIT = (
    subjects.ALL_QUEUED,
    subjects.cancel(ANY, ANY, ANY),
    subjects.input_blob(ANY, ANY, ANY, ANY),
)


def role_permissions(role: str, *, tenant: str = ANY) -> Permissions:
    """The permissions of a role. ``tenant`` narrows what a publisher may write and hear.

    Raises:
        KeyError: no such role.
    """
    private = f"{inbox(role)}.>"
    return {**_people_and_services(private, tenant), **_parts_of_ours(private)}[role]


def _people_and_services(private: str, tenant: str) -> dict[str, Permissions]:
    """Those who ask."""
    return {
        # A person at the CLI: reads everything, writes the registry, sends work; no administration.
        "operator": Permissions(
            (
                *_READ_LOG,
                *_SUBMIT,
                subjects.ALL_REGISTRY,
                subjects.ask_query(),
                subjects.command(ANY),
                subjects.revoked(ANY),
                "$JS.API.CONSUMER.INFO.*.*",  # how far the workers of a job are with its queue
            ),
            (private, subjects.EVERYTHING),
        ),
        "gateway": Permissions(
            (*_READ_LOG, *_SUBMIT, subjects.ALL_REGISTRY, subjects.ask_query()),
            (
                private,
                subjects.done(ANY, ANY, ANY, ANY, ANY),
                subjects.output(ANY, ANY),
                subjects.ALL_REGISTRY,
                subjects.ALL_TELEMETRY,
            ),
        ),
        # A service of a tenant: submits work and hears the outcomes, nothing else.
        "publisher": Permissions(
            (
                *_READ_LOG,
                subjects.queued(ANY, tenant, ANY, ANY),
                subjects.cancel(ANY, tenant, ANY),
                subjects.input_blob(tenant, ANY, ANY, ANY),
                subjects.ask_query(),
            ),
            (
                private,
                subjects.done(ANY, tenant, ANY, ANY, ANY),
                subjects.output(ANY, ANY),
                subjects.model_event(tenant, ANY, ANY),
                subjects.job_event(tenant, ANY, ANY),
            ),
        ),
    }


def _parts_of_ours(private: str) -> dict[str, Permissions]:
    """Those who answer and decide."""
    return {
        # Answers go to inboxes, each role's by name: with a right to reply anywhere, whoever asks
        # could have it publish to a subject of the log, or to the JetStream API.
        "projector": Permissions(
            (*_READ_LOG, *(f"{inbox(each)}.>" for each in ROLES)),
            (private, subjects.ask_query(), subjects.ALL_TELEMETRY),
        ),
        # Owns the streams and consumers and writes the decisions.
        "conductor": Permissions(
            (
                "$JS.>",
                subjects.ALL_CONTROL,
                subjects.ALL_FLEET,
                subjects.command(ANY),
                subjects.done(ANY, ANY, ANY, ANY, subjects.NOBODY),
                subjects.queue(ANY, ANY, ANY, ANY),  # puts back what a crash kept out of a queue
                "_R_.>",  # answers to workers, whose requests come from their own account
            ),
            (private, subjects.EVERYTHING, "$JS.EVENT.ADVISORY.>"),
        ),
        # Starts workers: it reads what is asked of it in FLEET alone, and says what it did.
        "provider": Permissions(
            (
                "$JS.API.STREAM.INFO.FLEET",
                *(f"$JS.API.CONSUMER.{verb}" for verb in _READING_FLEET),
                "$JS.FC.>",
                subjects.ALL_PROVIDERS,
            ),
            (private,),
        ),
    }


def worker_permissions(worker: str) -> Permissions:
    """A worker as itself: its own fleet events, heartbeats, and the assignments addressed to it."""
    consumer = subjects.worker_consumer(worker)
    return Permissions(
        (
            subjects.fleet(worker, ANY),
            subjects.telemetry(worker),
            subjects.ask_credentials(worker),
            f"$JS.API.CONSUMER.MSG.NEXT.FLEET.{consumer}",
            f"$JS.ACK.FLEET.{consumer}.>",
        ),
        (f"{inbox(worker)}.>", subjects.command(worker)),
    )


def job_permissions(
    worker: str, *, shard: int, tenant: str, job: str, classes: Sequence[str]
) -> Permissions:
    """A worker on one assigned job: that job's queue, and outcomes in its own name."""
    stream = subjects.queue_stream(shard)
    consumers = [subjects.job_consumer(tenant, job, cls) for cls in classes]
    return Permissions(
        (
            *(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}" for consumer in consumers),
            *(f"$JS.ACK.{stream}.{consumer}.>" for consumer in consumers),
            subjects.started(shard, tenant, job, worker),
            subjects.done(shard, tenant, job, ANY, worker),
            subjects.output(ANY, worker),
            subjects.log(tenant, job, worker, ANY),
            subjects.output_blob(tenant, job, worker, ANY, ANY),
            "$JS.API.DIRECT.GET.PAYLOADS." + subjects.input_blob(tenant, job, ANY, ANY),
        ),
        (f"{inbox(worker)}.>", subjects.cancel(shard, tenant, job)),
    )


def join_user(token: str) -> str:
    """The user of a join token; upper case, so that no worker has its inbox."""
    return f"JOIN_{token}"


def join_permissions(token: str) -> Permissions:
    """The holder of a join token: it may ask to be let in, and hear the answer."""
    return Permissions((subjects.ask_join(token),), (f"{inbox(join_user(token))}.>",))


def fleet_account_claims() -> dict[str, Any]:
    """JF: all of JetStream, and the exports that workers live on."""
    exports: list[dict[str, Any]] = [
        {"name": subject, "subject": subject, "type": "service", "response_type": kind}
        for subject, kind in SERVICES.items()
    ]
    exports += [{"name": s, "subject": s, "type": "stream"} for s in ANNOUNCEMENTS]
    return {"limits": _limits(jetstream=True), "exports": exports}


def workers_account_claims(fleet_account: str) -> dict[str, Any]:
    """WRK: no JetStream; imports exactly what JF exports. ``fleet_account``: JF's key."""
    imports = [
        {"name": s, "subject": s, "account": fleet_account, "type": "service"} for s in SERVICES
    ]
    imports += [
        {"name": s, "subject": s, "account": fleet_account, "type": "stream"} for s in ANNOUNCEMENTS
    ]
    return {"limits": _limits(jetstream=False), "imports": imports}


def system_account_claims() -> dict[str, Any]:
    """SYS: the broker's own account, no JetStream."""
    return {"limits": _limits(jetstream=False)}


def user_token(
    permissions: Permissions,
    *,
    account_seed: bytes,
    user: str,
    name: str,
    issued_at: int,
    expires_at: int | None = None,
    more: Mapping[str, Any] | None = None,
) -> str:
    """A user JWT with these permissions.

    ``user`` is the public key it is bound to; ``more`` are claims of ours, which the broker passes
    over and the signature covers.
    """
    return jwt.encode(
        "user",
        issuer=account_seed,
        subject=user,
        name=name,
        claims={**(more or {}), **permissions.claims()},
        issued_at=issued_at,
        expires_at=expires_at,
    )


def _limits(*, jetstream: bool) -> dict[str, int | bool]:
    storage = UNLIMITED if jetstream else 0
    return {
        "subs": UNLIMITED,
        "data": UNLIMITED,
        "payload": UNLIMITED,
        "imports": UNLIMITED,
        "exports": UNLIMITED,
        "wildcards": True,
        "conn": UNLIMITED,
        "leaf": UNLIMITED,
        "mem_storage": storage,
        "disk_storage": storage,
        "streams": storage,
        "consumer": storage,
    }
