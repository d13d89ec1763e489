"""Placement: which worker, and which of its GPUs, runs a replica: filters, then scores.

``placement_filters`` says which workers may run it, ``placement_rooms`` what is left on them,
``placement_scores`` which of those that can is liked best; ``placement_search`` finds that one.

A pure function of an observation and ``now``. It also says which replicas to let go: of deleted
jobs, above the wanted number, of an older spec once the newer one serves, and those that are where
the job no longer allows them; where there is nothing else to do, it moves one that would be better
off elsewhere (``placement_moves``).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from jetfleet.catalog import JobKey, JobState
from jetfleet.events import Candidate
from jetfleet.fleet import FleetState, ReplicaState
from jetfleet.policies.placement_filters import no_room, place_of, too_close, unsuitable
from jetfleet.policies.placement_moves import after_moves, move
from jetfleet.policies.placement_preempt import Precedence, waited_for
from jetfleet.policies.placement_rooms import RESERVED_MIB, Room, rooms_of
from jetfleet.policies.placement_search import (
    Assign,
    Decision,
    Observation,
    Release,
    Round,
    Search,
)
from jetfleet.policies.trials import before, gate
from jetfleet.scaling_specs import SloScaling, StaticScaling
from jetfleet.specs import JobSpec
from jetfleet.trials import Trial

__all__ = [
    "RESERVED_MIB", "Assign", "Decision", "Observation", "Release", "consider", "place", "serves",
]  # fmt: skip

NAME = "weighted"
VERSION = 2  # 1 knew no priorities
# Decisions of one round, about: the rest is the next one's, half a second later. A round that took
# seconds would decide by what is no more, and its decisions would not be taken.
MOST = 250
UNBEGUN = timedelta(seconds=30)  # a worker says that it prepares as soon as it hears


def place(observation: Observation, now: datetime) -> tuple[Decision, ...]:
    """The decisions due now, in order; none when every job has what it wants."""
    return tuple(placed(observation, now).decisions)


def placed(observation: Observation, now: datetime) -> Round:
    """A whole round of placement: the decisions due now, and what found no place."""
    fleet, jobs = observation.fleet, observation.registry.jobs
    joined = {name for name, worker in fleet.workers.items() if worker.status == "joined"}
    work = Round(observation, rooms_of(fleet), now)
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
    by_age = sorted(jobs.values(), key=lambda job: (job.created_seq, job.spec.name))
    needs = list[Need]()
    for job in by_age:
        if (trial := gate(fleet, job)) is None:
            needs.append(_settle(work, job, by_job.get(job.key, [])))
        else:  # and none of its replicas moves
            needs += _try_out(work, job, trial, by_job.pop(job.key, []))
    _fill_all(work, needs)
    if not work.decisions:
        move(work, jobs, by_job)
    return work


def consider(observation: Observation, key: JobKey, now: datetime) -> tuple[Candidate, ...]:
    """Every worker for one more replica of a job: with its score, the best first, or with the
    reason why it cannot have one now. Nothing is decided."""
    job, work = observation.registry.jobs[key], Round(observation, rooms_of(observation.fleet), now)
    there = [
        replica
        for replica in observation.fleet.replicas.values()
        if replica.key == key and replica.status != "releasing" and replica.worker in work.rooms
    ]
    return Search.of(work, job, _current(work, job, there)).consider()


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


@dataclass(slots=True)
class Need:
    """What a job has of what it wants."""

    job: JobState
    wanted: int
    staying: Sequence[ReplicaState]
    current: Sequence[ReplicaState]  # of those, the ones that count
    leaving: int = 0  # let go before, and not yet stopped

    @property
    def met(self) -> bool:
        return len(self.current) == len(self.staying) == self.wanted

    def without(self, gone: Container[str]) -> Need:
        """As it is without these replicas."""
        staying = [r for r in self.staying if r.id not in gone]
        current = [r for r in self.current if r.id not in gone]
        leaving = self.leaving + len(self.staying) - len(staying)
        return replace(self, staying=staying, current=current, leaving=leaving)


def _settle(work: Round, job: JobState, replicas: Sequence[ReplicaState]) -> Need:
    """Let go what must not be where it is or is too many; what the job then has."""
    staying = [r for r in replicas if r.status != "releasing"]
    wanted = _wanted(work.fleet, job, len(staying))
    if job.spec.placement.trusted:  # its data must not go there: this does not wait for a better
        astray = [r for r in staying if not work.fleet.workers[r.worker].trusted]
        work.decisions += [Release(r, "its worker is not trusted") for r in astray]
        staying = [r for r in staying if work.fleet.workers[r.worker].trusted]
    current = _current(work, job, staying)
    if any(replica.replaces for replica in current):
        current, aside = after_moves(work, current, wanted)
        staying = [replica for replica in staying if replica.id not in aside]
    need = Need(job, wanted, staying, _apart(work, job, current), len(replicas) - len(staying))
    surplus = len(need.current) - wanted
    if need.met or surplus <= 0:
        return need
    many = _least_useful(need.current, job, work.now)[:surplus]
    work.decisions += [Release(replica, f"{wanted} replicas are wanted") for replica in many]
    return need


def _fill_all(work: Round, needs: Sequence[Need]) -> None:
    """Give each job what it lacks, the most important first; of equals those that room is made
    for, then the oldest. ``needs``: by age."""
    if all(need.met for need in needs):
        return
    rights = Precedence(work, min(need.job.spec.placement.priority for need in needs))
    ahead = waited_for(work.fleet, work.now)
    order = sorted(needs, key=lambda n: (-n.job.spec.placement.priority, n.job.key not in ahead))
    rights.share(sum(not need.met and rights.may(need.job) for need in order))
    for need in order:
        if len(work.decisions) >= MOST:
            return
        if not need.met or need.job.key in rights.touched:
            _fill(work, rights, need.without(rights.gone) if rights.gone else need)


def _fill(work: Round, rights: Precedence, need: Need) -> None:
    job, wanted, staying, current = need.job, need.wanted, need.staying, need.current
    present = {replica.id for replica in current}
    outdated = [replica for replica in staying if replica.id not in present]
    unplaced = _add(work, job, current, wanted - len(current)) if len(current) < wanted else 0
    made = 0
    if rights.may(job):
        # What an older version of its own has is the job's already: nobody makes room for that.
        short = min(unplaced, wanted - len(staying))
        made = rights.make_room(job, current, short, _needs(job.spec))
    lacking = unplaced - len(outdated) - need.leaving - made
    if lacking > 0:  # what neither those that go nor less important ones make room for
        work.unplaced[job.key] = lacking
    ready = sum(replica.status == "ready" for replica in current)
    if outdated and (ready >= wanted or unplaced):
        # The newer spec serves, or finds no room until an older one goes; what was let go before
        # and has not stopped yet will make room too.
        gone = outdated
        if ready < wanted:
            useful = [r for r in outdated if _would_help(work, job, r, current)]
            gone = _least_useful(useful, job, work.now)[: max(0, unplaced - need.leaving)]
        work.decisions += [
            Release(replica, "the job's model or settings changed") for replica in gone
        ]


def _try_out(
    work: Round, job: JobState, trial: Trial, replicas: Sequence[ReplicaState]
) -> list[Need]:
    """Its model has not passed its trial: that comes first, and what was before it serves on:
    what it then has and needs of that."""
    fleet, ref = work.fleet, job.spec.model.ref
    there = [replica for replica in replicas if replica.status != "releasing"]
    wanted = _wanted(fleet, job, len(there))
    tried = [r for r in there if r.spec.model.ref == ref]
    others = [r for r in replicas if r.spec.model.ref != ref]
    kept = [r for r in tried if _is_trial_of(work, job, r)][: min(1, wanted)]
    why = "the job's model or settings changed" if wanted else f"{wanted} replicas are wanted"
    if trial.status == "failed":
        kept, why = [], "its model failed its trial"
    # Also the trials of models that are wanted no more.
    stray = [r for r in others if r.status != "releasing" and r.trial and not _passed(fleet, r)]
    gone = {r.id for r in (*tried, *stray)} - {r.id for r in kept}
    work.decisions += [Release(replica, why) for replica in there if replica.id in gone]
    others = [replica for replica in others if replica.id not in gone]
    if not kept and wanted and trial.status == "unverified":
        search = Search.of(work, job, ())
        if not search.assign() and not search.waits and not trial.lost:
            others = _make_way(work, job, others)
    earlier = before(fleet, job)
    return [] if earlier is None else [_settle(work, earlier, others)]


def _is_trial_of(work: Round, job: JobState, replica: ReplicaState) -> bool:
    worker = work.fleet.workers[replica.worker]
    fits = not unsuitable(job.spec, worker, trial=True)
    return replica.trial and fits and serves(replica.spec, job.spec)


def _passed(fleet: FleetState, replica: ReplicaState) -> bool:
    trial = fleet.trials.get(replica.trial_key)
    return trial is not None and trial.status == "verified"


def _make_way(work: Round, job: JobState, others: list[ReplicaState]) -> list[ReplicaState]:
    """Let one go that is where a trial has no room but for it; those that are left."""
    if any(replica.status == "releasing" for replica in others):
        return others
    for replica in _least_useful(others, job, work.now):
        room, need = work.rooms[replica.worker], replica.spec.model.resources
        if unsuitable(job.spec, room.worker, trial=True):
            continue
        with work.without(room, need, replica.gpus):
            enough = not no_room(job.spec.model.resources, room)
        if enough:
            work.decisions.append(Release(replica, f"{job.spec.model.ref} is to be tried there"))
            return [other for other in others if other is not replica]
    return others


def _current(work: Round, job: JobState, staying: Sequence[ReplicaState]) -> Sequence[ReplicaState]:
    """Those that are what the job asks for now, where it asks for it."""
    workers, spec = work.fleet.workers, job.spec
    return [r for r in staying if serves(r.spec, spec) and not unsuitable(spec, workers[r.worker])]


def _apart(work: Round, job: JobState, current: Sequence[ReplicaState]) -> Sequence[ReplicaState]:
    """Without those that are too close to another: of two the first that is ready counts."""
    workers, spec = work.fleet.workers, job.spec
    if spec.placement.apart is None or len(current) < 2:
        return current
    kept: dict[str | None, ReplicaState] = {}
    for replica in sorted(current, key=lambda r: (r.status != "ready", r.assigned_seq)):
        kept.setdefault(place_of(spec, workers[replica.worker]), replica)
    return list(kept.values())


def _would_help(
    work: Round, job: JobState, outdated: ReplicaState, current: Iterable[ReplicaState]
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
        and running.classes == wanted.classes
        and running.priority_floor == wanted.priority_floor
        and running.weight == wanted.weight
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


def _add(work: Round, job: JobState, current: Iterable[ReplicaState], missing: int) -> int:
    """Place as many replicas as are missing; how many found no room."""
    spec = job.spec
    if (needs := _needs(spec)) in work.full:
        return missing
    search = Search.of(work, job, current)
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
