"""The search for a worker: what one round of placement knows, and where a replica goes in it.

Values in, decisions out; ``placement`` says which replicas are missing.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from heapq import merge
from itertools import islice

from jetfleet.catalog import JobKey, JobState, RegistryState
from jetfleet.events import Candidate, RoomFor
from jetfleet.fleet import FleetState, ReplicaState
from jetfleet.images import Images
from jetfleet.policies.placement_filters import (
    back_off,
    gave_way,
    no_room,
    place_of,
    too_close,
    unsuitable,
)
from jetfleet.policies.placement_rooms import Room
from jetfleet.policies.placement_scores import (
    WEIGHTS,
    Liking,
    Rank,
    Shelf,
    Shelves,
    SpeedsOfModel,
    standing,
)
from jetfleet.policies.trials import gate
from jetfleet.specs import JobSpec, Resources
from jetfleet.speeds import Sample, Speeds
from jetfleet.trials import Trial
from jetfleet.yielding import Yielded

DIGITS = 4  # of a published score
SCORED, REJECTED = 16, 16  # so many candidates of each kind are published with a decision


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees: the two folds, as of their ``seq``, and what is known of speeds and
    images. ``silent``: workers that were not heard for so long that they may be lost."""

    registry: RegistryState
    fleet: FleetState
    speeds: Speeds = field(default_factory=Speeds)
    images: Images = field(default_factory=Images)
    silent: Collection[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Assign:
    """Run a new replica of a job on a worker."""

    tenant: str
    spec: JobSpec
    worker: str
    reason: str
    candidates: tuple[Candidate, ...]  # the best and some of those rejected, not all
    gpus: tuple[str, ...] = ()  # names of the GPUs that it runs on (``GpuSpec.id``)
    replaces: str = ""  # id of the replica that goes once this one serves
    trial: bool = False  # it runs the model's example input before it serves


@dataclass(frozen=True, slots=True)
class Release:
    """Drain and stop a replica."""

    replica: ReplicaState
    reason: str
    room_for: RoomFor | None = None  # the more important job that gets its place
    candidates: tuple[Candidate, ...] = ()  # workers where room could be made


Decision = Assign | Release


@dataclass
class Round:
    """One round of decisions: what is left on the workers shrinks while they are made."""

    seen: Observation
    rooms: Mapping[str, Room]
    now: datetime
    decisions: list[Decision] = field(default_factory=list)
    full: set[object] = field(default_factory=set)  # what is needed that no room has any more
    unplaced: dict[JobKey, int] = field(default_factory=dict)  # replicas that fit nowhere
    shelves: dict[tuple[bool, bool], Shelves] = field(default_factory=dict)
    yielding: dict[JobKey, set[str]] = field(default_factory=dict)  # workers, in this round
    changes: int = 0  # of what is left on any worker

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

    @cached_property
    def yielded(self) -> Mapping[JobKey, Mapping[str, Yielded]]:
        """Whose replicas made room for more important ones, by job and worker."""
        found: dict[JobKey, dict[str, Yielded]] = {}
        for (key, worker), when in self.fleet.yielded.items():
            found.setdefault(key, {})[worker] = when
        return found

    @cached_property
    def ran(self) -> Mapping[str, frozenset[str]]:
        """Workers that ran each image; see ``Images.by_image``."""
        return self.seen.images.by_image()

    def shelves_for(self, spec: JobSpec) -> Shelves:
        """The workers in the order of what does not depend on the job alone."""
        key = (spec.model.resources.gpu_memory_mib > 0, spec.placement.prefer == "pack")
        if key not in self.shelves:
            self.shelves[key] = Shelves.of(self.rooms.values(), *key)
        return self.shelves[key]

    def take(self, room: Room, need: Resources, gpus: Sequence[str]) -> None:
        """Account for a replica on a worker."""
        self._change(room, lambda: room.take(need, gpus))

    @contextmanager
    def without(self, room: Room, need: Resources, gpus: Sequence[str]) -> Iterator[None]:
        """Within it, as if this replica were not there."""
        self._change(room, lambda: room.give_back(need, gpus))
        yield
        self.take(room, need, gpus)

    def _change(self, room: Room, change: Callable[[], None]) -> None:
        for shelves in self.shelves.values():
            shelves.remove(room)
        change()
        self.changes += 1
        for shelves in self.shelves.values():
            shelves.add(room)


@dataclass(slots=True)
class Search:
    """Where the next replica of one job goes."""

    work: Round
    job: JobState
    liking: Liking
    failures: Mapping[str, tuple[datetime, ...]]
    known: set[str]  # workers that have a part of their score for themselves
    yielded: Mapping[str, Yielded]
    trial: Trial | None = None  # its model has not passed: see ``trials.gate``
    taken: set[str] = field(default_factory=set)  # see ``place_of``
    passed: list[Candidate] = field(default_factory=list)
    has_room: bool = False  # somewhere, were it not for its other replicas and for failures
    waits: bool = False  # a worker has a place, and is only left alone for a while
    # Of known workers by owner, the best first, as if no replica were near; see ``_ranks``.
    _by_owner: dict[str, list[Rank]] = field(default_factory=dict)
    _as_of: int = -1  # changes of the round

    @classmethod
    def of(cls, work: Round, job: JobState, current: Iterable[ReplicaState]) -> Search:
        spec, model = job.spec, job.spec.model
        liking = Liking(
            spec.placement.prefer == "spread",
            SpeedsOfModel.of(work.told.get((job.tenant, model.ref), {})),
            None if model.image is None else work.ran.get(model.image, frozenset()),
        )
        failures = work.failures.get((job.tenant, spec.name), {})
        yielded = work.yielded.get((job.tenant, spec.name), {})
        if (closed := gate(work.fleet, job)) is not None:
            failures = closed.failures()
        search = cls(work, job, liking, failures, {*liking.known(), *failures}, yielded, closed)
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
        ranked = self.best()
        if ranked:
            self.decide(ranked, f"best of {len(self.work.rooms)} workers: ")
        return bool(ranked)

    def best(self) -> list[Rank]:
        """The workers that are liked best of those that can take one more, the first the best."""
        self.passed, self.has_room, self.waits = [], False, False
        ran = (None,) if not self.liking.has_image else (True, False)
        each = (self._of_owner(*known) for known in sorted(self._ranks().items()))
        others = (
            self._walk(shelf, with_image)
            for shelf in self.work.shelves_for(self.job.spec).all()
            for with_image in ran
        )
        return list(islice(merge(*each, *others), SCORED))

    def consider(self) -> tuple[Candidate, ...]:
        """All workers, those that can take one more first, the best of them the first."""
        ranks, rejected = [], []
        for name, room in self.work.rooms.items():
            if objection := self._objection_now(room):
                rejected.append(Candidate(worker=name, rejected=objection))
            else:
                ranks.append(self.rank(room))
        return (*_scored(sorted(ranks)), *rejected)

    def rank(self, room: Room) -> Rank:
        """What is thought of a worker, whether it can take one more or not."""
        score, price, replicas, name = self._rank_alone(room)
        return (score - self.liking.near(room.worker.owner), price, replicas, name)

    def _rank_alone(self, room: Room) -> Rank:
        """The same as if no replica of the job were with its owner."""
        score, price, replicas, name = self.work.shelves_for(self.job.spec).rank(room)
        gpus = room.gpus_for(self.job.spec.model.resources) or ()
        own = self.liking.own(name, room.kind_of(gpus))
        return (score - own + len(self.failures.get(name, ())), price, replicas, name)

    def decide(self, ranked: Sequence[Rank], why: str, replaces: str = "") -> None:
        """Assign a replica to the first of these."""
        spec, name = self.job.spec, ranked[0][-1]
        room, need = self.work.rooms[name], spec.model.resources
        gpus = room.gpus_for(need) or ()
        shelves = self.work.shelves_for(spec)
        parts = {
            **self.liking.parts(name, room.worker.owner, room.kind_of(gpus)),
            **standing(room, shelves.gpu, shelves.pack),
        }
        reason = why + ", ".join(f"{part} {parts[part]:.2g}" for part in WEIGHTS)
        if failed := len(self.failures.get(name, ())):
            reason += f", {failed} failures"
        candidates = (*_scored(ranked), *self.passed)
        self.work.decisions.append(
            Assign(
                self.job.tenant,
                spec,
                name,
                reason,
                candidates,
                gpus,
                replaces,
                trial=self.trial is not None,
            )
        )
        ranks = self._ranks().setdefault(room.worker.owner, [])
        ranks[:] = [rank for rank in ranks if rank[-1] != name]
        self.work.take(room, need, gpus)
        self.occupy(room)
        insort(ranks, self._rank_alone(room))
        self._as_of = self.work.changes

    def _ranks(self) -> dict[str, list[Rank]]:
        """Those that something is known of; anew where a worker changed by another's decision.

        A replica more changes the score of all workers of its owner by the same, so they stay in
        order, and the next replica of a large job is found without a look at each.
        """
        if self._as_of != self.work.changes:
            self._by_owner, self._as_of = {}, self.work.changes
            for name in self.known:
                room = self.work.rooms.get(name)
                if room is not None:
                    rank = self._rank_alone(room)
                    self._by_owner.setdefault(room.worker.owner, []).append(rank)
            for ranks in self._by_owner.values():
                ranks.sort()
        return self._by_owner

    def _of_owner(self, owner: str, ranks: Sequence[Rank]) -> Iterator[Rank]:
        """Those of them that can take one more."""
        near = self.liking.near(owner)
        for score, price, replicas, name in ranks:
            if self._takes(self.work.rooms[name]):
                yield (score - near, price, replicas, name)

    def _walk(self, shelf: Shelf, with_image: bool | None) -> Iterator[Rank]:
        """The others of a shelf, the best first: those that ran the image, or did not; or all."""
        own, near = None, self.liking.near(shelf.owner)
        has_image = self.liking.has_image or frozenset()
        for score, price, replicas, name in shelf.ranks:
            if name in self.known or with_image not in (None, name in has_image):
                continue
            room = self.work.rooms[name]
            if not self._takes(room):
                continue
            if own is None:
                gpus = room.gpus_for(self.job.spec.model.resources) or ()
                kind = room.kind_of(gpus) if shelf.kind is None else shelf.kind
                own = self.liking.own(name, kind)
            yield (score - own - near, price, replicas, name)

    def _takes(self, room: Room) -> bool:
        """Whether it passes all filters; notes the first that do not, and why."""
        objection = self._objection_now(room)
        if objection and len(self.passed) < REJECTED:
            self.passed.append(Candidate(worker=room.worker.name, rejected=objection))
        return not objection

    def _objection_now(self, room: Room) -> str:
        """The same, also of a worker that will be lost or heard again in a moment."""
        if objection := self.objection(room):
            return objection
        if room.worker.name not in self.work.seen.silent:
            return ""
        self.waits = True
        return "has not been heard of for a while"

    def objection(self, room: Room) -> str:
        """What stands against one more replica there; empty: nothing."""
        spec, worker, trial = self.job.spec, room.worker, self.trial
        if trial is not None and trial.status == "failed":
            return f"its example input failed on {trial.worker}"
        closed = trial is not None
        if objection := unsuitable(spec, worker, trial=closed) or no_room(
            spec.model.resources, room
        ):
            return objection
        self.has_room = True
        return self.own_objection(room)

    def own_objection(self, room: Room) -> str:
        """What stands against it there, however suitable the worker and its room are."""
        spec, worker, now = self.job.spec, room.worker, self.work.now
        if self.taken and (objection := too_close(spec, worker, self.taken)):
            return objection
        objection = back_off(self.failures.get(worker.name, ()), now) or gave_way(
            self.yielded.get(worker.name), now
        )
        if not objection and worker.name in self.work.yielding.get(self.job.key, ()):
            objection = "makes room there for a more important job"
        self.waits |= bool(objection)
        return objection


def _scored(ranked: Iterable[Rank]) -> Iterator[Candidate]:
    return (Candidate(worker=w, score=round(-score, DIGITS)) for score, *_, w in ranked)
