"""What is left on the workers while a round of placement is made.

Memory, and the memory of each GPU, is accounted by what decisions gave to replicas: two share a GPU
only if what both need fits into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jetfleet.fleet import FleetState, WorkerState
from jetfleet.specs import GpuSpec, Resources

RESERVED_MIB = 512  # of each worker's memory: the system and the agent itself


@dataclass(slots=True)
class Room:
    """One worker."""

    worker: WorkerState
    memory_mib: int  # free
    gpus_mib: dict[str, int]  # free, by the GPU's name
    replicas: int = 0
    gpu_memory_mib: int = 0  # of all GPUs that may be used, free or not
    kinds: tuple[str, ...] = ()  # types of its GPUs

    @classmethod
    def empty(cls, worker: WorkerState) -> Room:
        """A worker without replicas."""
        machine = worker.machine
        # A GPU that is split (MIG) gives a process one of its parts, of a size we do not know.
        gpus = {gpu.id: 0 if gpu.mig else gpu.memory_mib or 0 for gpu in machine.gpus}
        memory = machine.memory_mib - RESERVED_MIB
        kinds = tuple(sorted({gpu.name for gpu in machine.gpus}))
        return cls(worker, memory, gpus, gpu_memory_mib=sum(gpus.values()), kinds=kinds)

    def take(self, need: Resources, gpus: Sequence[str]) -> None:
        """Account for a replica on these GPUs; one that the machine has no more costs nothing."""
        self._change(need, gpus, 1)

    def give_back(self, need: Resources, gpus: Sequence[str]) -> None:
        """Undo ``take``."""
        self._change(need, gpus, -1)

    def _change(self, need: Resources, gpus: Sequence[str], replicas: int) -> None:
        self.memory_mib -= need.memory_mib * replicas
        self.replicas += replicas
        for gpu in gpus:
            if gpu in self.gpus_mib:
                self.gpus_mib[gpu] -= need.gpu_memory_mib * replicas

    def gpus_for(self, need: Resources) -> tuple[str, ...] | None:
        """The first GPU with room and capability; none where none is needed; None: no room."""
        if not need.gpu_memory_mib:
            return ()
        for gpu in self.worker.machine.gpus:
            if capable(gpu, need) and self.gpus_mib[gpu.id] >= need.gpu_memory_mib:
                return (gpu.id,)
        return None

    def kind_of(self, gpus: Sequence[str]) -> str:
        """The type of these GPUs, as heartbeats name it; empty: none."""
        if not gpus:
            return ""
        return " + ".join(sorted({g.name for g in self.worker.machine.gpus if g.id in gpus}))

    def free(self, gpu: bool) -> float:
        """The share of the memory, or of that of all GPUs, that is free: 0 to 1."""
        if gpu:
            return max(0, sum(self.gpus_mib.values())) / max(1, self.gpu_memory_mib)
        return max(0, self.memory_mib) / max(1, self.worker.machine.memory_mib)


def capable(gpu: GpuSpec, need: Resources) -> bool:
    """Whether a GPU has the capability needed."""
    has, least = gpu.compute_capability, need.gpu_capability
    return least is None or (has is not None and has >= least)


def rooms_of(fleet: FleetState) -> dict[str, Room]:
    """The workers that take replicas, by name and in order of it, with what is left on them."""
    rooms = {
        name: Room.empty(worker)
        for name, worker in sorted(fleet.workers.items())
        if worker.status == "joined"
    }
    # Decisions of version 1 named no GPU: their replicas count where they would be put now, after
    # all those that we know of.
    for replica in sorted(fleet.replicas.values(), key=lambda r: (not r.gpus, r.assigned_seq)):
        if replica.worker in rooms:
            room, need = rooms[replica.worker], replica.spec.model.resources
            room.take(need, replica.gpus or room.gpus_for(need) or ())
    return rooms
