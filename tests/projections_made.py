"""Made events for tests of the projections: a log in memory, with a clock and ids of its own."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from jetfleet import access, jwt, subjects
from jetfleet.clock import Clock
from jetfleet.connection import Connection
from jetfleet.events import (
    Event,
    Failure,
    InvocationCancelled,
    InvocationCancelRequested,
    InvocationCompleted,
    InvocationExpired,
    InvocationFailed,
    InvocationQueued,
    InvocationStarted,
    JobCreated,
    JobDeleted,
    JobDisabled,
    JobEnabled,
    JobScaled,
    JobUpdated,
    ModelRegistered,
    ReplicaAssigned,
    ReplicaFailed,
    ReplicaPreparing,
    ReplicaReady,
    ReplicaReleased,
    ReplicaStopped,
    Why,
    WorkerAdmitted,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
    WorkerTokenRevoked,
    encode,
)
from jetfleet.server import Broker
from jetfleet.specs import GpuSpec, JobSpec, Machine, ModelSpec
from jetfleet.stamp import Stamp
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY
from jetfleet_projections.batches import Batch
from jetfleet_projections.warehouse import STREAMS, Warehouse

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHARDS = 4
Maker = Callable[..., Any]


@dataclass
class MadeClock:
    """Time that moves a millisecond with each look, and numbered UUIDs that sort by time."""

    ticks: int = 0
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def now(self) -> datetime:
        self.ticks += 1
        return START + timedelta(milliseconds=self.ticks)

    def new_id(self) -> str:
        self.ticks += 1
        millisecond = int(START.timestamp() * 1000) + self.ticks
        value = millisecond << 80 | 7 << 76 | 2 << 62 | self.random.getrandbits(62)
        return str(uuid.UUID(int=value))


@dataclass
class Log:
    """Streams in memory. Every maker appends and returns the sequence."""

    tenant: str = "default"
    clock: MadeClock = field(default_factory=MadeClock)
    batches: dict[str, Batch] = field(
        default_factory=lambda: {s: Batch(s) for s in (REGISTRY, INVOCATIONS, FLEET)}
    )

    @property
    def stamp(self) -> Stamp:
        return Stamp("test/made", Clock(now=self.clock.now, new_id=self.clock.new_id))

    def put(self, stream: str, subject: str, body: bytes | Event) -> int:
        batch = self.batches[stream]
        self.clock.ticks += 1
        time_ns = int(START.timestamp()) * 10**9 + self.clock.ticks * 10**6 + 123
        seq = batch.seqs[-1] + 1 if batch.seqs else 1
        batch.add(seq, time_ns, subject, body if isinstance(body, bytes) else encode(body))
        return seq

    # -- INVOCATIONS

    def queued(self, invocation: str, job: str = "echo", **fields: Any) -> int:
        given = {
            "input": {"n": 1},
            "origin": "g1",
            "timeout_s": 300.0,
            "expires_at": START + timedelta(hours=1),
            **fields,
        }
        data = InvocationQueued.Data(invocation=invocation, job=job, **given)
        event = InvocationQueued(**self.stamp(self.tenant, correlation=invocation), data=data)
        shard = subjects.shard_of(job, SHARDS)
        return self.put(
            INVOCATIONS, subjects.queued(shard, self.tenant, job, data.priority_class), event
        )

    def started(
        self,
        invocation: str,
        job: str = "echo",
        worker: str = "w1",
        attempt: int = 1,
        run_s: float = 0,
    ) -> int:
        data = InvocationStarted.Data(
            invocation=invocation, job=job, worker=worker, replica=f"r-{worker}", attempt=attempt,
            run_s=run_s,
        )  # fmt: skip
        event = InvocationStarted(**self.stamp(self.tenant), data=data)
        shard = subjects.shard_of(job, SHARDS)
        return self.put(INVOCATIONS, subjects.started(shard, self.tenant, job, worker), event)

    def cancel(self, invocation: str, job: str = "echo", reason: str = "") -> int:
        data = InvocationCancelRequested.Data(
            invocation=invocation, job=job, queued_seq=1, origin="g1", reason=reason
        )
        event = InvocationCancelRequested(**self.stamp(self.tenant), data=data)
        shard = subjects.shard_of(job, SHARDS)
        return self.put(INVOCATIONS, subjects.cancel(shard, self.tenant, job), event)

    def done(
        self,
        invocation: str,
        job: str = "echo",
        outcome: str = "completed",
        worker: str | None = "w1",
        **fields: Any,
    ) -> int:
        common = {
            "invocation": invocation, "job": job, "worker": worker, "attempt": 1,
            "replica": None if worker is None else f"r-{worker}",
            "run_s": None if worker is None else 0.25, **fields,
        }  # fmt: skip
        stamp = self.stamp(self.tenant, correlation=invocation)
        event: Event
        match outcome:
            case "completed":
                data = InvocationCompleted.Data(**{"output": {"text": "yes"}, **common})
                event = InvocationCompleted(**stamp, data=data)
            case "failed":
                error = Failure(code="model_error", message="boom\nagain", detail="Traceback…")
                event = InvocationFailed(
                    **stamp, data=InvocationFailed.Data(**{"error": error, **common})
                )
            case "cancelled":
                event = InvocationCancelled(
                    **stamp, data=InvocationCancelled.Data(reason="no", **common)
                )
            case _:
                event = InvocationExpired(
                    **stamp, data=InvocationExpired.Data(expires_at=START, **common)
                )
        shard = subjects.shard_of(job, SHARDS)
        token = worker or subjects.NOBODY
        return self.put(INVOCATIONS, subjects.done(shard, self.tenant, job, "g1", token), event)

    # -- REGISTRY

    def model(self, name: str = "echo", version: str = "1", **fields: Any) -> int:
        data = ModelRegistered.Data(model=model_spec(name, version, **fields))
        event = ModelRegistered(**self.stamp(self.tenant), data=data)
        return self.put(REGISTRY, subjects.model_event(self.tenant, name, "registered"), event)

    def job(self, verb: str, name: str = "echo", version: str = "1", **fields: Any) -> int:
        spec = JobSpec(name=name, model=model_spec("echo", version), **fields)
        makers: dict[str, Maker] = {
            "created": lambda s: JobCreated(**s, data=JobCreated.Data(job=spec)),
            "updated": lambda s: JobUpdated(**s, data=JobUpdated.Data(job=spec, changed=("x",))),
            "enabled": lambda s: JobEnabled(**s, data=JobEnabled.Data(job=name)),
            "disabled": lambda s: JobDisabled(**s, data=JobDisabled.Data(job=name, reason="r")),
            "deleted": lambda s: JobDeleted(**s, data=JobDeleted.Data(job=name)),
        }
        event = makers[verb](self.stamp(self.tenant))
        return self.put(REGISTRY, subjects.job_event(self.tenant, name, verb), event)

    # -- FLEET

    def worker(self, verb: str, name: str = "w1", session: str = "s1", **fields: Any) -> int:
        makers: dict[str, Maker] = {
            "joined": lambda s: WorkerJoined(**s, data=joined(name, session, **fields)),
            "draining": lambda s: WorkerDraining(
                **s, data=WorkerDraining.Data(worker=name, session=session, reason="told to")
            ),
            "left": lambda s: WorkerLeft(**s, data=WorkerLeft.Data(worker=name, session=session)),
            "lost": lambda s: WorkerLost(
                **s, data=WorkerLost.Data(worker=name, session=session, silent_s=6.5)
            ),
        }
        return self.put(FLEET, subjects.fleet(name, verb), makers[verb](self.stamp(self.tenant)))

    def admitted(self, worker: str = "w1", by: str = "t1", **terms: Any) -> int:
        data = WorkerAdmitted.Data(worker=worker, public_key="U", token=by, **terms)
        event = WorkerAdmitted(**self.stamp(self.tenant), data=data)
        return self.put(FLEET, subjects.admitted(worker), event)

    def revoked(self, by: str = "t1") -> int:
        data = WorkerTokenRevoked.Data(token=by)
        event = WorkerTokenRevoked(**self.stamp(self.tenant), data=data)
        return self.put(FLEET, subjects.revoked(by), event)

    def scaled(self, desired: int, job: str = "echo") -> int:
        why = Why(policy="lag", policy_version=1, reason="r", observed_registry_seq=1,
                  observed_fleet_seq=1)  # fmt: skip
        data = JobScaled.Data(job=job, desired=desired, wanted=desired, why=why)
        event = JobScaled(**self.stamp(self.tenant), data=data)
        return self.put(FLEET, subjects.scaled(self.tenant, job), event)

    def replica(
        self,
        verb: str,
        replica: str,
        worker: str = "w1",
        job: str = "echo",
        gpus: tuple[str, ...] = (),
    ) -> int:
        common = {"worker": worker, "job": job, "replica": replica}
        spec = JobSpec(name=job, model=model_spec("echo", "1"))
        why = Why(policy="p", policy_version=1, reason="r", observed_registry_seq=1,
                  observed_fleet_seq=1)  # fmt: skip
        data: dict[str, Maker] = {
            "assigned": lambda: ReplicaAssigned.Data(
                **common, spec=spec, shard=1, gpus=gpus, why=why
            ),
            "released": lambda: ReplicaReleased.Data(**common, why=why),
            "preparing": lambda: ReplicaPreparing.Data(**common, stage="starting"),
            "ready": lambda: ReplicaReady.Data(**common, prepare_s=1.5, restarts=1),
            "failed": lambda: ReplicaFailed.Data(**common, reason="no memory"),
            "stopped": lambda: ReplicaStopped.Data(**common),
        }
        types: dict[str, Maker] = {
            "assigned": ReplicaAssigned, "released": ReplicaReleased, "failed": ReplicaFailed,
            "preparing": ReplicaPreparing, "ready": ReplicaReady, "stopped": ReplicaStopped,
        }  # fmt: skip
        subject = (
            subjects.control(self.tenant, job, verb, worker)
            if verb in ("assigned", "released")
            else subjects.fleet(worker, verb)
        )
        return self.put(FLEET, subject, types[verb](**self.stamp(self.tenant), data=data[verb]()))


def joined(
    name: str, session: str, gpus: tuple[GpuSpec, ...] = (), **fields: Any
) -> WorkerJoined.Data:
    machine = Machine(hostname=name, cpu_count=4, memory_mib=8192, disk_free_mib=100_000, gpus=gpus)
    return WorkerJoined.Data(
        worker=name, session=session, machine=machine, agent_version="1", public_key="U", **fields
    )


def model_spec(name: str, version: str, **fields: Any) -> ModelSpec:
    return ModelSpec(name=name, version=version, function="model.py:run", **fields)


def life(log: Log, number: int, chance: random.Random) -> Iterator[str]:
    """One invocation's life; a step is taken each time the iterator is asked."""
    invocation, job = log.clock.new_id(), f"job{chance.randrange(3)}"
    worker = f"w{chance.randrange(4)}"
    log.queued(invocation, job, input={"n": number, "text": 'é"\n' * chance.randrange(3)})
    yield "queued"
    if chance.random() < 0.1:
        log.cancel(invocation, job, reason="changed my mind")
        yield "cancel"
    for attempt in range(1, 1 + chance.choice([1, 1, 1, 2, 0])):
        log.started(invocation, job, worker, attempt)
        yield "started"
    for _ in range(chance.choice([1, 1, 1, 1, 1, 2, 0])):
        outcome = chance.choice(["completed"] * 6 + ["failed", "cancelled", "expired"])
        someone = None if outcome in ("cancelled", "expired") else worker
        log.done(invocation, job, outcome, someone)
        yield "done"
    if chance.random() < 0.05:
        log.queued(invocation, job)


def lives(log: Log, count: int, seed: int) -> None:
    """Many lives, interleaved."""
    chance = random.Random(seed)
    running: list[Iterator[str]] = []
    number = 0
    while number < count or running:
        if number < count and (len(running) < 20 or chance.random() < 0.2):
            running.append(life(log, number, chance))
            number += 1
        chosen = chance.choice(running)
        if next(chosen, None) is None:
            running.remove(chosen)


async def writer(broker: Broker) -> Connection:
    """A connection that may do everything in the fleet's account, as no role may."""
    seed = jwt.new_seed("user")
    token = access.user_token(
        access.Permissions((">",), (">",)),
        account_seed=broker.secrets.seed(access.FLEET_ACCOUNT),
        user=jwt.public_key(seed),
        name="writer",
        issued_at=int(time.time()),
    )
    credentials = broker.data_dir / "writer.creds"
    credentials.write_text(jwt.credentials_text(token, seed))
    return await Connection.open(broker.url, credentials, user="writer", name="writer")


async def write(
    connection: Connection, batch: Batch, start: int = 0, stop: int | None = None
) -> None:
    """Append messages of a batch to the log, some with headers, as clients do."""
    part = batch.part(start, stop)
    for number, (subject, body) in enumerate(zip(part.subjects, part.bodies, strict=True), 1):
        headers = {"Nats-Msg-Id": str(uuid.uuid4())} if number % 2 else None
        await connection.nats.publish(subject, body, headers=headers)
        if number % 500 == 0:
            await connection.flush()
    await connection.flush()


# Bodies that are no events.
POISON = [
    b"",
    b"not json",
    b"\xff\xfe{}",
    b"{}",
    b"[]",
    b"null",
    b'{"type":"jetfleet.invocation.queued"}',
    b'{"a":' * 300 + b"1" + b"}" * 300,
    b'{"a":"\\u0000"}',
    b"{" * 70_000,
]


def feed(warehouse: Warehouse, log: Log, size: int = 10_000) -> None:
    """Everything in the log that the warehouse has not, in batches of this size."""
    for stream in STREAMS:
        batch = log.batches[stream].after(warehouse.positions[stream].seq)
        for start in range(0, len(batch), size):
            warehouse.apply(batch.part(start, start + size))


def one(warehouse: Warehouse, sql: str) -> Any:
    ((value,),) = warehouse.connection.execute(sql).fetchall()
    return value
