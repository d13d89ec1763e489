"""Rebalancing: a replica moves where it would be so much better off that this pays for the move.

The new replica serves before the old one goes (``ReplicaAssigned.replaces``), so nobody waits for a
move; what it costs is a start, and room for both meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta

from jetfleet.catalog import JobKey, JobState
from jetfleet.fleet import ReplicaState
from jetfleet.policies.placement_search import Release, Round, Search

COST = 0.15  # a move must raise the score by more
EVERY = timedelta(seconds=60)  # no more than one move is begun in this time, in the whole fleet
SETTLED = timedelta(seconds=300)  # a replica that has served for less stays
# So many replicas are looked at in the first second of every so many. Who misses that second (a
# round late) looks at the next ones in the next: looking costs, and a move can wait.
LOOKED_AT, TURN_S = 8, 10


def move(
    work: Round,
    jobs: Mapping[JobKey, JobState],
    replicas: Mapping[JobKey, Sequence[ReplicaState]],
) -> None:
    """Decide on one move, if one pays. ``replicas``: of each job, on workers that are joined."""
    if int(work.now.timestamp()) % TURN_S:
        return
    every = sorted(
        (r for there in replicas.values() for r in there), key=lambda r: (r.assigned_seq, r.id)
    )
    if any(r.replaces and work.now - r.assigned_at < EVERY for r in every):
        return
    for replica in _in_turn(every, work):
        job, there = jobs[replica.key], replicas[replica.key]
        calm = all(r.status == "ready" for r in there)
        if calm and _has_settled(replica, work) and not job.spec.placement.stay:
            others = [r for r in there if r.id != replica.id]
            if _moves(work, Search.of(work, job, others), replica):
                return


def _in_turn(every: Sequence[ReplicaState], work: Round) -> Iterator[ReplicaState]:
    first = int(work.now.timestamp() / TURN_S) * LOOKED_AT
    for n in range(min(LOOKED_AT, len(every))):
        yield every[(first + n) % len(every)]


def _has_settled(replica: ReplicaState, work: Round) -> bool:
    return replica.ready_at is not None and work.now - replica.ready_at >= SETTLED


def _moves(work: Round, search: Search, replica: ReplicaState) -> bool:
    """Compare where it is with where it could be, both as if it were nowhere."""
    room, need = work.rooms[replica.worker], replica.spec.model.resources
    with work.without(room, need, replica.gpus):
        here, best = search.rank(room), search.best()
    gain = here[0] - best[0][0] if best else 0.0
    if gain <= COST:
        return False
    search.decide(best, f"{gain:.2f} better than {replica.worker}: ", replaces=replica.id)
    return True


def after_moves(
    work: Round, current: Sequence[ReplicaState], wanted: int
) -> tuple[Sequence[ReplicaState], frozenset[str]]:
    """The replicas that count, and ids of those that do not: a move's old one once the new one
    serves (it is released), the new one until then, unless too many are there anyway."""
    by_id = {replica.id: replica for replica in current}
    pairs = [(by_id[new.replaces], new) for new in current if new.replaces in by_id]
    served = {old.id: new for old, new in pairs if new.status == "ready"}
    work.decisions += [
        Release(by_id[old], f"it has moved to {new.worker}") for old, new in served.items()
    ]
    coming = {new.id for old, new in pairs if new.status != "ready"}
    if len(current) - len(served) - len(coming) > wanted:
        coming = set()
    aside = frozenset({*served, *coming})
    return [replica for replica in current if replica.id not in aside], aside
