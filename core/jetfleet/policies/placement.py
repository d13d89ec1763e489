"""Placement: which worker, and which of its GPUs, runs a replica. Enough free memory first, then
the least loaded.

GPU memory is accounted by the GPUs that decisions gave to replicas: two replicas share a GPU only
if what both need fits into it.

A pure function of an observation and ``now``. It also says which replicas to let go: of deleted
jobs, above the wanted number, and of an older spec once the newer one serves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from jetfleet.events import Candidate
from jetfleet.fleet import FleetState, JobKey, JobState, RegistryState, ReplicaState, WorkerState
from jetfleet.scaling_specs import SloScaling, StaticScaling
from jetfleet.specs import JobSpec, Resources

NAME = "least-loaded"
VERSION = 2
RESERVED_MIB = 512  # of each worker's memory: the system and the agent itself
LONGEST_BACKOFF_S = 60.0
UNBEGUN = timedelta(seconds=30)  # a worker says that it prepares as soon as it hears


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees: the two folds, as of their ``seq``."""

    registry: RegistryState
    fleet: FleetState


@dataclass(frozen=True, slots=True)
class Assign:
    """Run a new replica of a job on a worker."""

    tenant: str
    spec: JobSpec
    worker: str
    reason: str
    candidates: tuple[Candidate, ...]
    gpus: tuple[str, ...] = ()  # names of the GPUs that it runs on (``GpuSpec.id``)


@dataclass(frozen=True, slots=True)
class Release:
    """Drain and stop a replica."""

    replica: ReplicaState
    reason: str


Decision = Assign | Release


@dataclass(slots=True)
class _Room:
    """What is left on a worker while a round of decisions is made."""

    worker: WorkerState
    memory_mib: int
    gpus_mib: dict[str, int]  # free, by the GPU's name
    replicas: int

    @property
    def load(self) -> float:
        """Share of the worker's memory that is spoken for."""
        return 1 - self.memory_mib / max(1, self.worker.machine.memory_mib)

    def take(self, need: Resources, gpus: Sequence[str]) -> None:
        """Account for a replica on these GPUs; one that the machine has no more costs nothing."""
        self.memory_mib -= need.memory_mib
        self.replicas += 1
        for gpu in gpus:
            if gpu in self.gpus_mib:
                self.gpus_mib[gpu] -= need.gpu_memory_mib

    def gpus_for(self, need: Resources) -> tuple[str, ...] | None:
        """The first GPU with room and capability; none where none is needed; None: no room."""
        if not need.gpu_memory_mib:
            return ()
        for gpu in self.worker.machine.gpus:
            capable = need.gpu_capability is None or (
                gpu.compute_capability is not None and gpu.compute_capability >= need.gpu_capability
            )
            if capable and self.gpus_mib[gpu.id] >= need.gpu_memory_mib:
                return (gpu.id,)
        return None


@dataclass(slots=True)
class _Round:
    rooms: Mapping[str, _Room]
    fleet: FleetState
    now: datetime
    decisions: list[Decision] = field(default_factory=list)


def place(observation: Observation, now: datetime) -> tuple[Decision, ...]:
    """The decisions due now, in order; none when every job has what it wants."""
    fleet, jobs = observation.fleet, observation.registry.jobs
    joined = {name for name, worker in fleet.workers.items() if worker.status == "joined"}
    work = _Round(_rooms(fleet), fleet, now)
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


def _rooms(fleet: FleetState) -> dict[str, _Room]:
    rooms = {
        name: _empty(worker) for name, worker in fleet.workers.items() if worker.status == "joined"
    }
    # Decisions of version 1 named no GPU: their replicas count where they would be put now, after
    # all those that we know of.
    for replica in sorted(fleet.replicas.values(), key=lambda r: (not r.gpus, r.assigned_seq)):
        if replica.worker in rooms:
            room, need = rooms[replica.worker], replica.spec.model.resources
            room.take(need, replica.gpus or room.gpus_for(need) or ())
    return rooms


def _empty(worker: WorkerState) -> _Room:
    machine = worker.machine
    # A GPU that is split (MIG) gives a process one of its parts, of a size that we do not know.
    gpus = {gpu.id: 0 if gpu.mig else gpu.memory_mib or 0 for gpu in machine.gpus}
    return _Room(worker, machine.memory_mib - RESERVED_MIB, gpus, 0)


def _serve(work: _Round, job: JobState, replicas: Sequence[ReplicaState]) -> None:
    staying = [r for r in replicas if r.status != "releasing"]
    current = [r for r in staying if _is_current(r, job.spec)]
    outdated = [r for r in staying if not _is_current(r, job.spec)]
    wanted = _wanted(work.fleet, job, len(staying))
    for replica in _least_useful(current, job, work.now)[: max(0, len(current) - wanted)]:
        work.decisions.append(Release(replica, f"{wanted} replicas are wanted"))
    unplaced = 0
    for _ in range(wanted - len(current)):
        unplaced += not _assign(work, job)
    ready = sum(replica.status == "ready" for replica in current)
    if outdated and (ready >= wanted or unplaced):
        # The newer spec serves, or finds no room until an older one goes; what was let go before
        # and has not stopped yet will make room too.
        leaving = len(replicas) - len(staying)
        gone = outdated
        if ready < wanted:
            useful = [r for r in outdated if not _unfit(job, _empty(work.rooms[r.worker].worker))]
            gone = _least_useful(useful, job, work.now)[: max(0, unplaced - leaving)]
        work.decisions += [
            Release(replica, "the job's model or settings changed") for replica in gone
        ]


def _wanted(fleet: FleetState, job: JobState, there: int) -> int:
    """How many replicas a job shall have: as declared, or as decided within its bounds."""
    spec = job.spec
    if isinstance(spec.scaling, StaticScaling):
        return spec.replicas
    decided = fleet.desired(job)
    return min(max(there if decided is None else decided, spec.min_replicas), spec.max_replicas)


def _is_current(replica: ReplicaState, wanted: JobSpec) -> bool:
    """Whether a replica is what the job asks for now, where it asks for it."""
    elsewhere = wanted.assignment == "manual" and replica.worker not in wanted.workers
    return serves(replica.spec, wanted) and not elsewhere


def serves(running: JobSpec, wanted: JobSpec) -> bool:
    """Whether a replica of one spec may stand for another: what it was started with is the same."""
    return all(
        getattr(running, name) == getattr(wanted, name)
        for name in ("model", "concurrency", "ack_wait_s", "retry_limit", "priority_class")
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


def _assign(work: _Round, job: JobState) -> bool:
    """Place one replica if a worker can take it now; False when none has room for it."""
    key = (job.tenant, job.spec.name)
    verdicts = {
        name: _unfit(job, room) or _back_off(work, job, name)
        for name, room in sorted(work.rooms.items())
    }
    able = [name for name, objection in verdicts.items() if not objection]
    if not able:  # one that has room and only waits after a failure is worth waiting for
        return any(not _unfit(job, room) for room in work.rooms.values())

    def rank(name: str) -> tuple[int, float, int, str]:
        room = work.rooms[name]
        return (len(work.fleet.failures.get((key, name), ())), room.load, room.replicas, name)

    chosen = min(able, key=rank)
    candidates = tuple(
        Candidate(worker=name, rejected=objection)
        if objection
        else Candidate(worker=name, score=round(1 - work.rooms[name].load, 4))
        for name, objection in verdicts.items()
    )
    reason = f"least loaded of {len(able)} workers with room"
    room, need = work.rooms[chosen], job.spec.model.resources
    gpus = room.gpus_for(need) or ()
    work.decisions.append(Assign(job.tenant, job.spec, chosen, reason, candidates, gpus))
    room.take(need, gpus)
    return True


def _unfit(job: JobState, room: _Room) -> str:
    """Why a worker has no place for a replica of this job; empty when it has."""
    need, name = job.spec.model.resources, room.worker.name
    if job.spec.assignment == "manual" and name not in job.spec.workers:
        return "not among the workers this job is assigned to"
    if room.memory_mib < need.memory_mib:
        return f"{room.memory_mib} MiB free, {need.memory_mib} needed"
    if room.gpus_for(need) is None:
        return f"no GPU with {need.gpu_memory_mib} MiB free and the capability needed"
    return ""


def _back_off(work: _Round, job: JobState, worker: str) -> str:
    """Why a worker on which the job failed is left alone for now; empty when it is not."""
    failures = work.fleet.failures.get(((job.tenant, job.spec.name), worker), ())
    if failures:
        wait = min(2.0 ** (len(failures) - 1), LONGEST_BACKOFF_S)
        if work.now < failures[-1] + timedelta(seconds=wait):
            return f"{len(failures)} failures there, waiting {wait:g} s after the last"
    return ""
