"""Made events for tests of the projections: a log in memory, with a clock and ids of its own."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import given
import given_trials
from jetfleet import subjects
from jetfleet.clock import Clock
from jetfleet.connection import Connection
from jetfleet.events import CapacityReleased, Event, Failure, encode
from jetfleet.server import Broker
from jetfleet.specs import JobSpec
from jetfleet.stamp import Stamp
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY
from jetfleet_projections import tables
from jetfleet_projections.batches import Batch
from jetfleet_projections.warehouse import STREAMS, Warehouse
from rights import Rights

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
EXPIRES = START + timedelta(hours=1)
BOOM = Failure(code="model_error", message="boom\nagain", detail="Traceback…")
SHARDS = 4
Both = tuple[Warehouse, Warehouse]


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

    def say(self, stream: str, subject: str, event: Event, *, about: str | None = None) -> int:
        """Append an event as one of this log: with its tenant, its clock and its ids."""
        stamp = self.stamp(self.tenant, correlation=about)
        return self.put(stream, subject, event.model_copy(update=stamp))

    # -- INVOCATIONS

    def queued(self, invocation: str, job: str = "echo", **fields: Any) -> int:
        defaults = {"input": {"n": 1}, "origin": "g1", "timeout_s": 300.0, "expires_at": EXPIRES}
        event = given.queued(invocation, job, **{**defaults, **fields})
        shard, klass = subjects.shard_of(job, SHARDS), event.data.priority_class
        subject = subjects.queued(shard, self.tenant, job, klass)
        return self.say(INVOCATIONS, subject, event, about=invocation)

    def started(
        self,
        invocation: str,
        job: str = "echo",
        worker: str = "w1",
        attempt: int = 1,
        run_s: float = 0,
    ) -> int:
        more = {"job": job, "replica": f"r-{worker}", "run_s": run_s}
        event = given.started(invocation, worker, attempt, **more)
        subject = subjects.started(subjects.shard_of(job, SHARDS), self.tenant, job, worker)
        return self.say(INVOCATIONS, subject, event)

    def cancel(self, invocation: str, job: str = "echo", reason: str = "") -> int:
        subject = subjects.cancel(subjects.shard_of(job, SHARDS), self.tenant, job)
        return self.say(INVOCATIONS, subject, given.cancel_requested(invocation, job, reason))

    def done(
        self,
        invocation: str,
        job: str = "echo",
        outcome: str = "completed",
        worker: str | None = "w1",
        **fields: Any,
    ) -> int:
        common = {
            "job": job, "worker": worker, "attempt": 1,
            "replica": None if worker is None else f"r-{worker}",
            "run_s": None if worker is None else 0.25, **fields,
        }  # fmt: skip
        match outcome:
            case "completed":
                event = given.completed(invocation, **{"output": {"text": "yes"}, **common})
            case "failed":
                event = given.failed_with(invocation, **{"error": BOOM, **common})
            case "cancelled":
                event = given.cancelled(invocation, "no", **common)
            case _:
                event = given.expired(invocation, **common)
        shard, token = subjects.shard_of(job, SHARDS), worker or subjects.NOBODY
        subject = subjects.done(shard, self.tenant, job, "g1", token)
        return self.say(INVOCATIONS, subject, event, about=invocation)

    # -- REGISTRY

    def model(self, name: str = "echo", version: str = "1", **fields: Any) -> int:
        event = given.registered(given.model(name, version=version, **fields))
        return self.say(REGISTRY, subjects.model_event(self.tenant, name, "registered"), event)

    def job(self, verb: str, name: str = "echo", version: str = "1", **fields: Any) -> int:
        spec = JobSpec(name=name, model=given.model(version=version), **fields)
        event = {
            "created": lambda: given.created(spec),
            "updated": lambda: given.updated(spec),
            "enabled": lambda: given.enabled(name),
            "disabled": lambda: given.disabled(name),
            "deleted": lambda: given.deleted(name),
        }[verb]()
        return self.say(REGISTRY, subjects.job_event(self.tenant, name, verb), event)

    # -- FLEET

    def worker(self, verb: str, name: str = "w1", session: str = "s1", **fields: Any) -> int:
        make = {
            "joined": given.joined, "draining": given.draining, "left": given.left,
            "lost": given.lost,
        }[verb]  # fmt: skip
        return self.say(FLEET, subjects.fleet(name, verb), make(name, session=session, **fields))

    def admitted(self, worker: str = "w1", by: str = "t1", **terms: Any) -> int:
        return self.say(FLEET, subjects.admitted(worker), given.admitted(worker, by, **terms))

    def revoked(self, by: str = "t1") -> int:
        return self.say(FLEET, subjects.revoked(by), given.token_revoked(by))

    def given_back(self, worker: str, session: str = "s1") -> int:
        data = {"request": "q1", "provider": "p", "worker": worker, "session": session,
                "why": given.WHY}  # fmt: skip
        event = CapacityReleased(**given.envelope(), data=data)
        return self.say(FLEET, subjects.capacity_decision("released"), event)

    def scaled(self, desired: int, job: str = "echo", **more: Any) -> int:
        event = given.scaled(job, desired, **more)
        return self.say(FLEET, subjects.scaled(self.tenant, job), event)

    def concluded(self, ref: str, status: str = "verified", job: str = "echo", **more: Any) -> int:
        event = given_trials.concluded(job, ref, status, **more)
        return self.say(FLEET, subjects.tried(self.tenant, job), event)

    def balanced(self, job: str = "echo", **thresholds: int | None) -> int:
        event = given.balanced(job, thresholds)
        return self.say(FLEET, subjects.balanced(self.tenant, job), event)

    def replica(
        self,
        verb: str,
        replica: str,
        worker: str = "w1",
        job: str = "echo",
        gpus: tuple[str, ...] = (),
    ) -> int:
        who = (replica, worker)
        event = {
            "assigned": lambda: given.assigned(*who, given.job(job), gpus=gpus),
            "released": lambda: given.released(*who, job),
            "preparing": lambda: given.preparing(*who, job),
            "tried": lambda: given_trials.tried(*who, job),
            "ready": lambda: given.ready(*who, job, restarts=1),
            "failed": lambda: given.failed(*who, job),
            "stopped": lambda: given.stopped(*who, job),
        }[verb]()
        subject = (
            subjects.control(self.tenant, job, verb, worker)
            if verb in ("assigned", "released")
            else subjects.fleet(worker, verb)
        )
        return self.say(FLEET, subject, event)


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
    return await Connection.open(broker.url, Rights(broker.secrets), user="writer", name="writer")


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


async def put_all(connection: Connection, log: Log) -> None:
    """Append all of a made log."""
    for stream in STREAMS:
        await write(connection, log.batches[stream])


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


@contextmanager
def two_readers(folder: Path) -> Iterator[Both]:
    """A warehouse that reads invocation events with SQL, and one that reads with Python."""
    opened = Warehouse.open(folder / "sql.duckdb"), Warehouse.open(folder / "python.duckdb")
    opened[0].stager.plain_from, opened[1].stager.plain_from = 0, 10_000
    yield opened
    for warehouse in opened:
        warehouse.close()


def read_differently(both: Both, messages: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """Where the rows of the two differ after these messages and nothing else."""
    batch = Batch(INVOCATIONS)
    for number, (subject, body) in enumerate(messages, 1):
        batch.add(number, 1_700_000_000 * 10**9 + number, subject, body)
    for warehouse in both:
        warehouse.forget(INVOCATIONS)
        warehouse.apply(batch)
    return tables.differences(both[0].connection, both[1].connection)


def one(warehouse: Warehouse, sql: str) -> Any:
    ((value,),) = warehouse.connection.execute(sql).fetchall()
    return value
