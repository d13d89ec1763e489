"""What the log tells beside the state that it folds to: since when, why, and by which decision.

A ``Story`` reads records of REGISTRY and FLEET in the order of their time. It holds the same folds
as the conductor, and of what is explained (a job or a worker) the events themselves, in words.
No clock, no I/O.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jetfleet import capacity_words
from jetfleet.agreement import disagreement
from jetfleet.capacity import CapacityState, evolve_capacity
from jetfleet.catalog import JobKey, RegistryState, evolve_registry
from jetfleet.causes_placed import thresholds_in_words
from jetfleet.events import (
    AnyEvent,
    JobBalanced,
    JobCreated,
    JobDeleted,
    JobDisabled,
    JobEnabled,
    JobScaled,
    JobTried,
    JobUpdated,
    ReplicaAssigned,
    ReplicaFailed,
    ReplicaPreparing,
    ReplicaReady,
    ReplicaReleased,
    ReplicaStopped,
    ReplicaTried,
    Why,
    WorkerAdmitted,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
)
from jetfleet.fleet import FleetState, evolve_fleet

if TYPE_CHECKING:
    from jetfleet.log import Record

KEPT = 1_000  # events of the subject; older ones are forgotten
REGISTRY, FLEET = "REGISTRY", "FLEET"
WORKER_EVENTS = (WorkerAdmitted, WorkerJoined, WorkerDraining, WorkerLeft, WorkerLost)
REPLICA_EVENTS = (ReplicaPreparing, ReplicaReady, ReplicaFailed, ReplicaTried, ReplicaStopped)


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in words. ``at``: when the broker took it; ``why``: of a decision."""

    at: datetime
    stream: str
    seq: int
    type: str
    text: str
    why: Why | None = None
    about: str = ""  # the replica, worker or invocation that it speaks of


@dataclass(frozen=True, slots=True)
class Since:
    """Something that holds since then; ``text`` says what."""

    at: datetime
    text: str


@dataclass(frozen=True, slots=True)
class Gone:
    """How a replica ended; ``handed_back``: what it ran is back in the queue at once."""

    at: datetime
    text: str
    handed_back: bool


@dataclass(slots=True, eq=False)
class Story:
    """See the module. ``job`` or ``worker``: whose events are kept as entries.

    Of a worker, also the decisions that it was a candidate of. ``until``: None: to the end.
    """

    job: JobKey | None = None
    worker: str | None = None
    until: datetime | None = None
    registry: RegistryState = field(default_factory=RegistryState)
    fleet: FleetState = field(default_factory=FleetState)
    capacity: CapacityState = field(default_factory=CapacityState)
    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=KEPT))
    stages: dict[str, Since] = field(default_factory=dict)  # by replica that is being prepared
    failures: dict[tuple[JobKey, str], str] = field(default_factory=dict)  # last, by job and worker
    gone: dict[str, Gone] = field(default_factory=dict)  # by replica that is there no more
    anew: dict[str, Gone] = field(default_factory=dict)  # by worker: when its present agent began
    workers: dict[str, Since] = field(default_factory=dict)  # what each said or was said of it last
    closed: dict[JobKey, Since] = field(default_factory=dict)  # disabled or deleted jobs
    scaled: dict[JobKey, Entry] = field(default_factory=dict)  # the last decision on the number
    balanced: dict[JobKey, JobBalanced] = field(default_factory=dict)  # the last thresholds
    moved: dict[JobKey, datetime] = field(default_factory=dict)  # the last event of each job
    fleet_moved: datetime | None = None  # when room last came or went: a worker, or a replica's

    def fold(self, record: Record) -> bool:
        """Read the next record; whether it was of what is explained."""
        event = record.event
        if event is None or disagreement(record.stream, record.subject, event):
            return False  # the conductor obeys no such event either
        # By the state before it: a lost worker has no replicas after.
        key = self._job_of(event)
        mine = self._is_mine(event, key)
        if record.stream == REGISTRY:
            self.registry = evolve_registry(self.registry, event, record.seq)
        else:
            before = self.fleet
            self.fleet = evolve_fleet(before, event, record.seq)
            self.capacity = evolve_capacity(self.capacity, event, record.time)
            if isinstance(event, WorkerJoined):
                known = before.workers.get(event.data.worker)
                if known is None or known.session != event.data.session:
                    self.anew[event.data.worker] = _gone(record, event)
            if len(self.fleet.replicas) < len(before.replicas):  # no event both adds and ends some
                self.fleet_moved = record.time  # there is room for others
                for replica in before.replicas.keys() - self.fleet.replicas.keys():
                    self.stages.pop(replica, None)
                    self.gone[replica] = _gone(record, event)
        self._note(record, event, key)
        if mine and (self.until is None or record.time <= self.until):
            self._keep(entry(record, event))
        return mine

    def last_change(self, key: JobKey) -> datetime | None:
        """When something last happened that may have made a decision on the job due."""
        known = [at for at in (self.moved.get(key), self.fleet_moved) if at is not None]
        return max(known, default=None)

    def _job_of(self, event: AnyEvent) -> JobKey | None:
        """The job that an event speaks of; None: of none. What a worker says of it is a claim."""
        if isinstance(event, REPLICA_EVENTS):
            replica = self.fleet.replicas.get(event.data.replica)
            known = replica is not None and replica.worker == event.data.worker
            return replica.key if replica is not None and known else None
        job = getattr(event.data, "job", None)
        name = getattr(job, "name", job)
        return None if name is None else (event.tenant, name)

    def _is_mine(self, event: AnyEvent, key: JobKey | None) -> bool:
        worker = getattr(event.data, "worker", None)
        if self.worker is not None:
            candidates = event.data.why.candidates if isinstance(event, ReplicaAssigned) else ()
            told = (*capacity_words.workers_of(event), *(each.worker for each in candidates))
            return self.worker in (worker, *told)
        if self.job is None:
            return False
        if self.job in capacity_words.jobs_of(self.capacity, event):
            return True
        if isinstance(event, WORKER_EVENTS):
            mine = [r for r in self.fleet.replicas.values() if r.key == self.job]
            lacking = self.job in self.registry.jobs and not any(r.status == "ready" for r in mine)
            return lacking or any(r.worker == worker for r in mine)
        asked = event.data.room_for if isinstance(event, ReplicaReleased) else None
        return self.job in (key, None if asked is None else (asked.tenant, asked.job))

    def _note(self, record: Record, event: AnyEvent, key: JobKey | None) -> None:
        at = record.time
        if isinstance(event, WORKER_EVENTS):
            self.fleet_moved = at
            self.workers[event.data.worker] = Since(at, words(event))
        if key is None:
            return
        if not isinstance(event, ReplicaPreparing):
            self.moved[key] = at
        match event:
            case ReplicaAssigned():
                self.stages[event.data.replica] = Since(at, "")
            case ReplicaPreparing():
                began = self.stages.get(event.data.replica, Since(at, "")).at
                self.stages[event.data.replica] = Since(began, event.data.stage)
            case ReplicaReady():
                self.stages.pop(event.data.replica, None)
                self.failures.pop((key, event.data.worker), None)
            case ReplicaFailed():
                self.failures[key, event.data.worker] = last_line(event.data.reason)
            case JobDisabled() | JobDeleted():
                self.closed[key] = Since(at, words(event))
            case JobEnabled() | JobCreated():
                self.closed.pop(key, None)
            case JobScaled():
                self.scaled[key] = entry(record, event)
            case JobBalanced():
                self.balanced[key] = event

    def _keep(self, new: Entry) -> None:
        """Of the progress of one preparation, and of thresholds, the last is enough."""
        last = self.entries[-1] if self.entries else None
        alike = last is not None and (last.type, last.about) == (new.type, new.about)
        if alike and new.type == ReplicaPreparing.model_fields["type"].default:
            new = replace(new, at=self.entries.pop().at)
        elif alike and new.type == JobBalanced.model_fields["type"].default:
            self.entries.pop()
        self.entries.append(new)


def entry(record: Record, event: AnyEvent) -> Entry:
    """A record in words."""
    data: Any = event.data
    about = next(
        (str(getattr(data, n)) for n in ("invocation", "replica", "worker") if hasattr(data, n)), ""
    )
    why = getattr(data, "why", None)
    return Entry(record.time, record.stream, record.seq, event.type, words(event), why, about)


def words(event: AnyEvent) -> str:  # noqa: PLR0911, PLR0912 - one line for each type of event
    """What happened, in a few words."""
    data: Any = event.data
    match event:
        case JobScaled():
            before = "" if data.before is None else f"from {data.before} "
            return f"the job scales {before}to {_count(data.desired, 'replica')}"
        case JobTried():
            return f"the trial of {data.model} on {data.worker} ended: {data.status}"
        case ReplicaAssigned():
            on_trial = ", to try its model" if data.trial else ""
            return f"a replica of {data.job} is given to {data.worker}{on_trial}"
        case JobBalanced():
            return thresholds_in_words(event) or "all workers pull whenever they are free"
        case ReplicaReleased():
            whom = "" if data.room_for is None else f", to make room for {data.room_for.job}"
            return f"the replica of {data.job} on {data.worker} is let go{whom}"
        case ReplicaPreparing():
            return f"{data.worker} prepares the replica of {data.job}: {data.stage}"
        case ReplicaReady():
            again = f", restart {data.restarts}" if data.restarts else ""
            where = f"the replica of {data.job} on {data.worker}"
            return f"{where} is ready after {data.prepare_s:.1f} s{again}"
        case ReplicaFailed():
            return f"the replica of {data.job} on {data.worker} failed: {last_line(data.reason)}"
        case ReplicaTried():
            how = "passed" if data.passed else f"failed: {last_line(data.reason)}"
            return f"the example input of {data.job} on {data.worker} {how}"
        case ReplicaStopped():
            return f"the replica of {data.job} on {data.worker} has stopped"
        case WorkerAdmitted():
            return f"{data.worker} was let in with a join token"
        case WorkerJoined():
            return f"{data.worker} joined"
        case WorkerDraining():
            return f"{data.worker} drains" + _because(data.reason)
        case WorkerLeft():
            return f"{data.worker} left"
        case WorkerLost():
            return f"{data.worker} was lost, silent for {data.silent_s:.1f} s"
        case JobCreated():
            return "the job was created"
        case JobUpdated():
            return f"the job was changed: {', '.join(data.changed)}"
        case JobEnabled():
            return "the job was enabled"
        case JobDisabled():
            return "the job was disabled" + _because(data.reason)
        case JobDeleted():
            return "the job was deleted"
    plain = event.type.removeprefix("jetfleet.").replace(".", " ")
    return capacity_words.words(event) or plain


def last_line(text: str) -> str:
    """The last line of a reason, which is where an error says what it is."""
    return text.strip().splitlines()[-1].strip() if text.strip() else text


def _gone(record: Record, event: AnyEvent) -> Gone:
    """How a replica came to be gone with this event."""
    text = words(event)
    if isinstance(event, WorkerJoined):
        text = f"{event.data.worker} began anew"
    handed_back = isinstance(event, WorkerLeft | ReplicaStopped | ReplicaFailed)
    return Gone(record.time, text, handed_back)


def _because(reason: str) -> str:
    return f": {last_line(reason)}" if reason else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
