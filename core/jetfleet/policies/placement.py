"""Placement: which worker, and which of its GPUs, runs a replica: filters, then scores.

``placement_filters`` says which workers may run it, ``placement_rooms`` what is left on them,
``placement_scores`` which of those that can is liked best.

A pure function of an observation and ``now``. It also says which replicas to let go: of deleted
jobs, above the wanted number, of an older spec once the newer one serves, and those that are where
the job no longer allows them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from heapq import merge
from itertools import islice

from jetfleet.events import Candidate
from jetfleet.fleet import FleetState, JobKey, JobState, RegistryState, ReplicaState
from jetfleet.images import Images
from jetfleet.policies.placement_filters import back_off, no_room, place_of, too_close, unsuitable
from jetfleet.policies.placement_rooms import RESERVED_MIB, Room, rooms_of
from jetfleet.policies.placement_scores import (
    WEIGHTS,
    Liking,
    Rank,
    Shelf,
    Shelves,
    SpeedsOfModel,
    standing,
    weigh,
)
from jetfleet.scaling_specs import SloScaling, StaticScaling
from jetfleet.specs import JobSpec, Resources
from jetfleet.speeds import Sample, Speeds

__all__ = ["RESERVED_MIB", "Assign", "Decision", "Observation", "Release", "place", "serves"]

NAME = "weighted"
VERSION = 1
UNBEGUN = timedelta(seconds=30)  # a worker says that it prepares as soon as it hears
DIGITS = 4  # of a published score
SCORED, REJECTED = 16, 16  # so many candidates of each kind are published with a decision


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees: the two folds, as of their ``seq``, and what is known of speeds and
    images."""

    registry: RegistryState
    fleet: FleetState
    speeds: Speeds = field(default_factory=Speeds)
    images: Images = field(default_factory=Images)


@dataclass(frozen=True, slots=True)
class Assign:
    """Run a new replica of a job on a worker."""

    tenant: str
    spec: JobSpec
    worker: str
    reason: str
    candidates: tuple[Candidate, ...]  # the best and some of those rejected, not all
    gpus: tuple[str, ...] = ()  # names of the GPUs that it runs on (``GpuSpec.id``)


@dataclass(frozen=True, slots=True)
class Release:
    """Drain and stop a replica."""

    replica: ReplicaState
    reason: str


Decision = Assign | Release


@dataclass
class _Round:
    """One round of decisions: what is left on the workers shrinks while they are made."""

    seen: Observation
    rooms: Mapping[str, Room]
    now: datetime
    decisions: list[Decision] = field(default_factory=list)
    full: set[object] = field(default_factory=set)  # what is needed that no room has any more
    shelves: dict[tuple[bool, bool], Shelves] = field(default_factory=dict)

    @property
    def fleet(self) -> FleetState:
        return self.seen.fleet

    @cached_property
    def told(self) -> Mapping[tuple[str, str], Mapping[str, Mapping[str, Sample]]]:
        """Speeds by model; see ``Speeds.by_model``."""
        return self.seen.speeds.by_model()

    @cached_property
    def failures(self) -> Mapping[JobKey, Mapping[str, tuple[datetime, ...]]]:
        """Times of failures by job and worker."""
        found: dict[JobKey, dict[str, tuple[datetime, ...]]] = {}
        for (key, worker), times in self.fleet.failures.items():
            found.setdefault(key, {})[worker] = times
        return found

    def shelves_for(self, spec: JobSpec) -> Shelves:
        """The workers in the order of what does not depend on the job alone."""
        key = (spec.model.resources.gpu_memory_mib > 0, spec.placement.prefer == "pack")
        if key not in self.shelves:
            self.shelves[key] = Shelves.of(self.rooms.values(), *key)
        return self.shelves[key]

    def take(self, room: Room, need: Resources, gpus: Sequence[str]) -> None:
        for shelves in self.shelves.values():
            shelves.remove(room)
        room.take(need, gpus)
        for shelves in self.shelves.values():
            shelves.add(room)


def place(observation: Observation, now: datetime) -> tuple[Decision, ...]:
    """The decisions due now, in order; none when every job has what it wants."""
    fleet, jobs = observation.fleet, observation.registry.jobs
    joined = {name for name, worker in fleet.workers.items() if worker.status == "joined"}
    work = _Round(observation, rooms_of(fleet), now)
    work.decisions += _unheard(fleet, joined, now)
    again = {release.replica.id for release in work.decisions if isinstance(release, Release)}
    by_job: dict[JobKey, list[ReplicaState]] = {}
    for replica in fleet.replicas.values():
        if replica.id in again:
            continue
        if replica.key not in jobs:
            if replica.status != "releasing":
                work.decisions.append(Release(replica, "the job was deleted"))
        elif replica.worker in joined:
            by_job.setdefault(replica.key, []).append(replica)
    for job in sorted(jobs.values(), key=lambda job: (job.created_seq, job.spec.name)):
        _serve(work, job, by_job.get((job.tenant, job.spec.name), []))
    return tuple(work.decisions)


def _unheard(fleet: FleetState, joined: Collection[str], now: datetime) -> Iterable[Release]:
    """Decisions that their worker seems not to have heard.

    A worker that joined anew and kept a replica hears only what is decided after that. And an
    assignment that nothing comes of is taken back, so that it is made again.
    """
    for replica in fleet.replicas.values():
        if replica.worker not in joined:
            continue
        if replica.status == "releasing":
            if replica.released_seq < fleet.workers[replica.worker].joined_seq:
                yield Release(replica, "it was let go before its worker joined anew")
        elif replica.status == "assigned" and now - replica.assigned_at > UNBEGUN:
            yield Release(replica, f"its worker did not begin within {UNBEGUN.seconds} s")


def _serve(work: _Round, job: JobState, replicas: Sequence[ReplicaState]) -> None:
    staying = [r for r in replicas if r.status != "releasing"]
    wanted = _wanted(work.fleet, job, len(staying))
    if job.spec.placement.trusted:  # its data must not go there: this does not wait for a better
        astray = [r for r in staying if not work.fleet.workers[r.worker].trusted]
        work.decisions += [Release(r, "its worker is not trusted") for r in astray]
        staying = [r for r in staying if work.fleet.workers[r.worker].trusted]
    current = _current(work, job, staying)
    if len(current) == len(staying) == wanted:
        return
    present = {replica.id for replica in current}
    outdated = [replica for replica in staying if replica.id not in present]
    for replica in _least_useful(current, job, work.now)[: max(0, len(current) - wanted)]:
        work.decisions.append(Release(replica, f"{wanted} replicas are wanted"))
    unplaced = _add(work, job, current, wanted - len(current)) if len(current) < wanted else 0
    ready = sum(replica.status == "ready" for replica in current)
    if outdated and (ready >= wanted or unplaced):
        # The newer spec serves, or finds no room until an older one goes; what was let go before
        # and has not stopped yet will make room too.
        leaving = len(replicas) - len(staying)
        gone = outdated
        if ready < wanted:
            useful = [r for r in outdated if _would_help(work, job, r, current)]
            gone = _least_useful(useful, job, work.now)[: max(0, unplaced - leaving)]
        work.decisions += [
            Release(replica, "the job's model or settings changed") for replica in gone
        ]


def _current(
    work: _Round, job: JobState, staying: Sequence[ReplicaState]
) -> Sequence[ReplicaState]:
    """Those that are what the job asks for now, where it asks for it."""
    workers, spec = work.fleet.workers, job.spec
    current = [
        r for r in staying if serves(r.spec, spec) and not unsuitable(spec, workers[r.worker])
    ]
    if spec.placement.apart is None or len(current) < 2:
        return current
    kept: dict[str | None, ReplicaState] = {}  # of those too close to each other the first ready
    for replica in sorted(current, key=lambda r: (r.status != "ready", r.assigned_seq)):
        kept.setdefault(place_of(spec, workers[replica.worker]), replica)
    return list(kept.values())


def _would_help(
    work: _Round, job: JobState, outdated: ReplicaState, current: Iterable[ReplicaState]
) -> bool:
    """Whether a new replica could be where this one is, if the worker were empty."""
    worker, workers = work.fleet.workers[outdated.worker], work.fleet.workers
    taken = {place_of(job.spec, workers[r.worker]) for r in current} - {None}
    return not (
        unsuitable(job.spec, worker)
        or no_room(job.spec.model.resources, Room.empty(worker))
        or too_close(job.spec, worker, taken)
    )


def _wanted(fleet: FleetState, job: JobState, there: int) -> int:
    """How many replicas a job shall have: as declared, or as decided within its bounds."""
    spec = job.spec
    if isinstance(spec.scaling, StaticScaling):
        return spec.replicas
    decided = fleet.desired(job)
    return min(max(there if decided is None else decided, spec.min_replicas), spec.max_replicas)


def serves(running: JobSpec, wanted: JobSpec) -> bool:
    """Whether a replica of one spec may stand for another: what it was started with is the same."""
    return (
        running.concurrency == wanted.concurrency
        and running.ack_wait_s == wanted.ack_wait_s
        and running.retry_limit == wanted.retry_limit
        and running.priority_class == wanted.priority_class
        and running.model == wanted.model
    )


def _least_useful(
    replicas: Iterable[ReplicaState], job: JobState, now: datetime
) -> list[ReplicaState]:
    """Those to let go first: past their lease, not yet ready, then the youngest.

    A lease is what ``slo`` counts on when it decides how many stay; others know none.
    """
    scaling = job.spec.scaling
    lease = timedelta(seconds=scaling.lease_s if isinstance(scaling, SloScaling) else 0)
    return sorted(
        replicas,
        key=lambda r: (now - r.assigned_at < lease, r.status == "ready", -r.assigned_seq),
    )


def _add(work: _Round, job: JobState, current: Iterable[ReplicaState], missing: int) -> int:
    """Place as many replicas as are missing; how many found no room."""
    spec = job.spec
    if (needs := _needs(spec)) in work.full:
        return missing
    search = _Search.of(work, job, current)
    for left in range(missing, 0, -1):
        if not search.assign():
            if not search.has_room:
                work.full.add(needs)
            return 0 if search.waits else left
    return 0


def _needs(spec: JobSpec) -> object:
    """What decides whether a worker can run a replica, but for the other replicas of the job."""
    need, wish = spec.model.resources, spec.placement
    return (
        need.memory_mib, need.gpu_memory_mib, need.gpu_capability,
        spec.workers if spec.assignment == "manual" else None,
        wish.trusted, tuple(sorted(wish.labels.items())), wish.max_price_per_hour,
    )  # fmt: skip


@dataclass(slots=True)
class _Search:
    """Where the next replica of one job goes."""

    work: _Round
    job: JobState
    liking: Liking
    failures: Mapping[str, tuple[datetime, ...]]
    known: set[str]  # workers that have a part of their score for themselves
    taken: set[str] = field(default_factory=set)  # see ``place_of``
    passed: list[Candidate] = field(default_factory=list)
    has_room: bool = False  # somewhere, were it not for its other replicas and for failures
    waits: bool = False  # a worker has a place, and is only left alone after a failure

    @classmethod
    def of(cls, work: _Round, job: JobState, current: Iterable[ReplicaState]) -> _Search:
        spec, model = job.spec, job.spec.model
        liking = Liking(
            spec.placement.prefer == "spread",
            SpeedsOfModel.of(work.told.get((job.tenant, model.ref), {})),
            None if model.image is None else work.seen.images.on(model.image),
        )
        failures = work.failures.get((job.tenant, spec.name), {})
        search = cls(work, job, liking, failures, {*liking.known(), *failures})
        for replica in current:
            search.occupy(work.rooms[replica.worker])
        return search

    def occupy(self, room: Room) -> None:
        """One more replica of the job is there."""
        worker = room.worker
        self.liking.add(worker.name, worker.owner)
        self.known.add(worker.name)
        if (place := place_of(self.job.spec, worker)) is not None:
            self.taken.add(place)

    def assign(self) -> bool:
        """Place one replica if a worker can take it now."""
        self.passed, self.has_room, self.waits = [], False, False
        spec = self.job.spec
        shelves = self.work.shelves_for(spec)
        each = sorted(self._one_by_one(shelves))
        ranked = list(islice(merge(each, *(self._walk(shelf) for shelf in shelves.all())), SCORED))
        if not ranked:
            return False
        name, need = ranked[0][-1], spec.model.resources
        room = self.work.rooms[name]
        gpus = room.gpus_for(need) or ()
        parts = {
            **self.liking.parts(name, room.worker.owner, room.kind_of(gpus)),
            **standing(room, shelves.gpu, shelves.pack),
        }
        words = ", ".join(f"{part} {parts[part]:.2g}" for part in WEIGHTS)
        reason = f"best of {len(self.work.rooms)} workers: {words}"
        if failed := len(self.failures.get(name, ())):
            reason += f", {failed} failures"
        candidates = [Candidate(worker=w, score=round(-score, DIGITS)) for score, *_, w in ranked]
        self.work.decisions.append(
            Assign(self.job.tenant, spec, name, reason, (*candidates, *self.passed), gpus)
        )
        self.work.take(room, need, gpus)
        self.occupy(room)
        return True

    def _one_by_one(self, shelves: Shelves) -> Iterator[Rank]:
        """Those that something is known of."""
        for name in sorted(self.known):
            room = self.work.rooms.get(name)
            if room is not None and self._takes(room):
                standing_, *rest = shelves.rank(room)
                gpus = room.gpus_for(self.job.spec.model.resources) or ()
                own = weigh(self.liking.parts(name, room.worker.owner, room.kind_of(gpus)))
                yield (standing_ - own + len(self.failures.get(name, ())), *rest)  # type: ignore[misc]

    def _walk(self, shelf: Shelf) -> Iterator[Rank]:
        """The others of a shelf, the best first."""
        own: float | None = None
        for score, price, replicas, name in shelf.ranks:
            room = self.work.rooms[name]
            if name in self.known or not self._takes(room):
                continue
            if own is None:
                gpus = room.gpus_for(self.job.spec.model.resources) or ()
                kind = room.kind_of(gpus) if shelf.kind is None else shelf.kind
                own = weigh(self.liking.parts("", shelf.owner, kind))
            yield (score - own, price, replicas, name)

    def _takes(self, room: Room) -> bool:
        """Whether it passes all filters; notes the first that do not, and why."""
        objection = self._objection(room)
        if objection and len(self.passed) < REJECTED:
            self.passed.append(Candidate(worker=room.worker.name, rejected=objection))
        return not objection

    def _objection(self, room: Room) -> str:
        spec, worker = self.job.spec, room.worker
        if objection := unsuitable(spec, worker) or no_room(spec.model.resources, room):
            return objection
        self.has_room = True
        if self.taken and (objection := too_close(spec, worker, self.taken)):
            return objection
        if objection := back_off(self.failures.get(worker.name, ()), self.work.now):
            self.waits = True
        return objection
