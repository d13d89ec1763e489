"""How much a worker is liked for one more replica of a job: a weighted sum of parts.

Each part is 0 to 1 and looks at one worker alone, never at who else is there, so a worker that
comes does not change what others are worth. ``docs/policies.md`` has the table.

What does not depend on the job (price and room) keeps workers in order on ``Shelves``; what the job
adds is the same for most workers of a shelf. So the best few are found without looking at all.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import fsum

from jetfleet.policies.placement_rooms import Room
from jetfleet.speeds import Sample

WEIGHTS = {"apart": 0.35, "speed": 0.30, "price": 0.15, "room": 0.12, "image": 0.08}
ON_THE_WORKER = 0.5  # of "apart": the rest is for the owner
UNKNOWN_SPEED = 0.5  # as good as one that takes twice as long as the fastest known
HALF_AT = 1.0  # the price an hour that is worth half of nothing

# Minus the score, price, replicas, name: the least is the best.
Rank = tuple[float, float, int, str]


@dataclass(frozen=True, slots=True)
class SpeedsOfModel:
    """How long one run of a model takes. ``samples``: by type of GPU and worker."""

    samples: Mapping[str, Mapping[str, Sample]] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)  # by type of GPU
    fastest_s: float = 0.0

    @classmethod
    def of(cls, samples: Mapping[str, Mapping[str, Sample]]) -> SpeedsOfModel:
        means = {}
        for gpu, told in samples.items():
            runs = sum(sample.runs for sample in told.values())
            means[gpu] = fsum(sample.service_s * sample.runs for sample in told.values()) / runs
        single = (sample.service_s for told in samples.values() for sample in told.values())
        return cls(samples, means, min(single, default=0.0))

    def part(self, worker: str, gpu: str) -> float:
        """The fastest time known over the worker's own, or else over that of its type of GPU."""
        told = self.samples.get(gpu)
        if told is None:
            return UNKNOWN_SPEED
        takes_s = told[worker].service_s if worker in told else self.means[gpu]
        return self.fastest_s / takes_s if takes_s > 0 else 1.0


@dataclass(slots=True)
class Liking:
    """What one job adds. ``workers``, ``owners``: how many of its replicas each has."""

    spread: bool
    speeds: SpeedsOfModel
    has_image: frozenset[str] | None  # workers; None: the model has no image
    workers: dict[str, int] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)

    def add(self, worker: str, owner: str) -> None:
        """One more of its replicas is there."""
        self.workers[worker] = self.workers.get(worker, 0) + 1
        self.owners[owner] = self.owners.get(owner, 0) + 1

    def parts(self, worker: str, owner: str, gpu: str) -> dict[str, float]:
        """``gpu``: type of the one that the replica would get."""
        apart = self._apart(self.workers, worker, ON_THE_WORKER)
        near = self._apart(self.owners, owner, 1 - ON_THE_WORKER)
        return {**self._own(worker, gpu, apart), "apart": apart + near}

    def own(self, worker: str, gpu: str) -> float:
        """What these parts weigh, but for ``near``: it is the same for all workers of an owner."""
        return weigh(self._own(worker, gpu, self._apart(self.workers, worker, ON_THE_WORKER)))

    def near(self, owner: str) -> float:
        """What it weighs how few of the job's replicas are on workers of this owner."""
        return WEIGHTS["apart"] * self._apart(self.owners, owner, 1 - ON_THE_WORKER)

    def _own(self, worker: str, gpu: str, apart: float) -> dict[str, float]:
        image = self.has_image is None or worker in self.has_image
        speed = self.speeds.part(worker, gpu)
        return {"apart": apart, "speed": speed, "image": float(image)}

    def _apart(self, counts: Mapping[str, int], name: str, whole: float) -> float:
        return whole / (1 + counts.get(name, 0)) if self.spread else whole

    def known(self) -> set[str]:
        """Workers that differ from others of their shelf by more than an image that ran there."""
        told = (worker for samples in self.speeds.samples.values() for worker in samples)
        return {*told, *self.workers}


def standing(room: Room, gpu: bool, pack: bool) -> dict[str, float]:
    """The parts that are the same for every job of this need and preference."""
    free = room.free(gpu)
    price = HALF_AT / (HALF_AT + room.worker.price_per_hour)
    return {"price": price, "room": 1 - free if pack else free}


def weigh(parts: Mapping[str, float]) -> float:
    """The score that these parts add up to."""
    return sum(WEIGHTS[name] * part for name, part in parts.items())


@dataclass(slots=True)
class Shelf:
    """Workers that are alike but for their standing, by it. ``kind``: type of GPU."""

    owner: str
    kind: str | None  # None: of several types, so which one depends on what is free
    ranks: list[Rank] = field(default_factory=list)


@dataclass(slots=True)
class Shelves:
    """All workers, for one kind of need and one preference."""

    gpu: bool
    pack: bool
    _shelves: dict[tuple[str, ...], Shelf] = field(default_factory=dict)

    @classmethod
    def of(cls, rooms: Iterable[Room], gpu: bool, pack: bool) -> Shelves:
        shelves = cls(gpu, pack)
        for room in rooms:
            shelves._shelf(room).ranks.append(shelves.rank(room))
        for shelf in shelves.all():
            shelf.ranks.sort()
        return shelves

    def all(self) -> Iterable[Shelf]:
        """Each."""
        return self._shelves.values()

    def rank(self, room: Room) -> Rank:
        """Its place among the others, by its standing."""
        worker = room.worker
        parts = standing(room, self.gpu, self.pack)
        return (-weigh(parts), worker.price_per_hour, room.replicas, worker.name)

    def remove(self, room: Room) -> None:
        """Take a room out, before it changes."""
        ranks = self._shelf(room).ranks
        del ranks[bisect_left(ranks, self.rank(room))]

    def add(self, room: Room) -> None:
        """Put it back where it belongs now."""
        insort(self._shelf(room).ranks, self.rank(room))

    def _shelf(self, room: Room) -> Shelf:
        owner, kinds = room.worker.owner, room.kinds if self.gpu else ()
        mixed = len(kinds) > 1
        key: tuple[str, ...] = (owner, room.worker.name, "") if mixed else (owner, *kinds)
        if key not in self._shelves:
            self._shelves[key] = Shelf(owner, None if mixed else "".join(kinds))
        return self._shelves[key]
