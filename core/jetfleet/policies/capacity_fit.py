"""What fits on a worker that a provider would start, and how many of them hold what is missing.

The filters are placement's own, asked about an empty worker of the shape that is offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

from jetfleet.capacity import Offer
from jetfleet.catalog import JobKey
from jetfleet.events import WorkerShape
from jetfleet.fleet import WorkerState
from jetfleet.policies.placement_filters import no_room, unsuitable
from jetfleet.policies.placement_rooms import RESERVED_MIB, Room
from jetfleet.specs import GpuSpec, JobSpec, Machine


@dataclass(frozen=True, slots=True)
class Missing:
    """Replicas of a job that fit nowhere on the fleet, for so long."""

    tenant: str
    spec: JobSpec
    replicas: int
    for_s: float = inf
    owners: frozenset[str] = frozenset()  # of the workers that have replicas of it

    @property
    def key(self) -> JobKey:
        return (self.tenant, self.spec.name)


def objection(missing: Missing, empty: Room) -> str:
    """What stands against a job on such a worker, were it empty; empty: nothing."""
    spec, worker = missing.spec, empty.worker
    if why := unsuitable(spec, worker):
        return why
    if why := no_room(spec.model.resources, empty):
        return f"its workers: {why}"
    if spec.placement.apart == "owners" and worker.owner in missing.owners:
        return "its owner has a replica: they are kept apart by owners"
    return ""


def empty_worker(offer: Offer) -> Room:
    """A worker of this offer as placement would see it, before anything runs there."""
    shape = offer.shape
    gpus = tuple(
        GpuSpec(
            index=index, name="GPU", memory_mib=shape.gpu_memory_mib,
            compute_capability=shape.gpu_capability,
        )
        for index in range(shape.gpus)
    )  # fmt: skip
    machine = Machine(
        hostname="-", cpu_count=1, memory_mib=shape.memory_mib, disk_free_mib=0, gpus=gpus
    )
    worker = WorkerState(
        offer.provider, "-", machine, "joined", 0, "-", 1.0, shape.labels, shape.owner,
        shape.trusted, shape.price_per_hour,
    )  # fmt: skip
    return Room.empty(worker)


def pack(
    shape: WorkerShape, missing: Sequence[Missing], most: int
) -> tuple[int, dict[JobKey, Missing]]:
    """Workers that hold these replicas, at most so many, and what they do not hold, by job.

    Next fit: a worker that did not hold a replica gets none of those that follow. So it takes
    more workers than the best packing would, and never fewer where more is missing.
    """
    open_, count, beyond = None, 0, dict[JobKey, Missing]()
    full = False
    for m in missing:
        by_owner = m.spec.placement.apart == "owners"
        for held in range(m.replicas):
            if held and by_owner:  # all of these workers are of one owner
                rest = m.replicas - held
                beyond[m.key] = replace(m, replicas=rest, owners=m.owners | {shape.owner})
                break
            if not full and (open_ is None or not open_.take(m)):
                full = count >= most
                if not full:
                    open_, count = Bin(shape), count + 1
                    open_.take(m)
            if full:
                beyond[m.key] = replace(m, replicas=m.replicas - held)
                break
    return count, beyond


@dataclass(slots=True)
class Bin:
    """A worker that is being filled: host memory, and its GPUs one after the other."""

    shape: WorkerShape
    memory_mib: int = 0
    gpu: int = 0
    gpu_mib: int = 0
    jobs: set[JobKey] = field(default_factory=set)

    def take(self, missing: Missing) -> bool:
        """Whether one more replica of the job fits; it is there then."""
        need, spec = missing.spec.model.resources, missing.spec
        if self.memory_mib + need.memory_mib > self.shape.memory_mib - RESERVED_MIB:
            return False
        if spec.placement.apart is not None and missing.key in self.jobs:
            return False
        if need.gpu_memory_mib:
            if self.gpu_mib + need.gpu_memory_mib > self.shape.gpu_memory_mib:
                if self.gpu + 1 >= self.shape.gpus:
                    return False
                self.gpu, self.gpu_mib = self.gpu + 1, 0
            self.gpu_mib += need.gpu_memory_mib
        self.memory_mib += need.memory_mib
        self.jobs.add(missing.key)
        return True
