"""What preemption and balancing have to do with a wait, in words; ``jetfleet.causes`` asks.

Values in, words out. No clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from jetfleet.catalog import JobKey, JobState
from jetfleet.fleet import FleetState, ReplicaState
from jetfleet.policies import placement_asked
from jetfleet.policies.placement import Observation

if TYPE_CHECKING:
    from jetfleet.events import JobBalanced
    from jetfleet.story import Story
    from jetfleet.telemetry import Heard

Told = tuple[str, datetime | None]  # what is so, and since when


def by_precedence(
    story: Story, job: JobState, now: datetime, against: Mapping[str, str], patience: timedelta
) -> tuple[str, str, datetime | None] | None:
    """Code and words: that room is made for a job, was made by it for another, or could be made.

    Args:
        against: what stands against another replica, by worker.
        patience: who has not decided for so long is not there.
    """
    if (making := _room_being_made(story.fleet, job.key)) is not None:
        return ("making_room", *making)
    if (made := _room_made(story.fleet, job.key, against)) is not None:
        return ("preempted", *made)
    if not placement_asked.room_could_be_made(Observation(story.registry, story.fleet), job, now):
        return None
    changed = story.last_change(job.key) or job.created_at
    if now - changed > patience:
        text = "less important replicas could make room, and nobody decides: is a conductor there?"
        return "no_conductor", text, changed
    return "deciding", "less important replicas are about to be asked to make room for it", None


def _room_being_made(fleet: FleetState, key: JobKey) -> Told | None:
    """That less important replicas go for this job, and have not ended yet."""
    going = [r for r in fleet.replicas.values() if r.yields_to == key and r.status == "releasing"]
    if not going:
        return None
    places = sorted({(r.worker, r.job) for r in going})
    names = ", ".join(f"{job} on {worker}" for worker, job in places)
    since = [fleet.yielded[r.key, r.worker].at for r in going if (r.key, r.worker) in fleet.yielded]
    text = f"less important replicas make room for it and end what they run: {names}"
    return text, min(since, default=None)


def _room_made(fleet: FleetState, key: JobKey, against: Mapping[str, str]) -> Told | None:
    """That replicas of this job made room for more important jobs, which have it still."""
    lost = [
        (yielded, worker)
        for (job, worker), yielded in fleet.yielded.items()
        if job == key and worker in against and _keeps(fleet, yielded.to, worker, against[worker])
    ]
    if not lost:
        return None
    yielded, worker = max(lost, key=lambda each: each[0].at)
    more = f", and so on {len(lost) - 1} other workers" if len(lost) > 1 else ""
    text = (
        f"a replica on {worker} made room for {yielded.to[1]} (priority {yielded.priority}){more},"
        " and no worker can take another"
    )
    return text, yielded.at


def _keeps(fleet: FleetState, job: JobKey, worker: str, objection: str) -> bool:
    """Whether a job has the room made for it, or the one that made it is kept away for now."""
    mine = (r for r in fleet.replicas.values() if r.worker == worker)
    return "made room there" in objection or any(job in (r.key, r.yields_to) for r in mine)


def left_to_faster(
    balanced: JobBalanced | None,
    heard: Mapping[str, Heard] | None,
    ready: Sequence[ReplicaState],
    busy: int,
    waiting: int,
) -> str:
    """That free slots are only of slower workers, which leave what waits to faster ones; or "".

    ``busy``: slots of the job, as the broker counts them.
    """
    waits = _thresholds(balanced, heard or {}, ready)
    holding = {w: least for w, least in waits.items() if least is not None and waiting < least}
    theirs = [r for r in ready if r.worker in holding]
    free = sum(r.spec.concurrency for r in theirs) - _running(heard or {}, theirs)
    eager = [r for r in ready if r.worker not in holding]
    taken = busy - _running(heard or {}, theirs)
    if not theirs or not eager or free <= 0 or taken < sum(r.spec.concurrency for r in eager):
        return ""
    names = ", ".join(f"{w} (from {holding[w]} waiting on)" for w in sorted(holding))
    faster = ", ".join(sorted({r.worker for r in eager}))
    return f"{waiting} that {names} leaves to the faster {faster}, whose slots are all busy"


def thresholds_in_words(balanced: JobBalanced) -> str:
    """Who leaves work to whom, as decided; empty: all workers pull whenever they are free."""
    slow = [level for level in balanced.data.levels if level.min_pending is not None]
    each = "; ".join(
        f"{', '.join(level.workers)} from {level.min_pending} waiting on" for level in slow
    )
    return f"slower workers leave to faster ones what these get to sooner: {each}" if each else ""


def _thresholds(
    balanced: JobBalanced | None, heard: Mapping[str, Heard], ready: Sequence[ReplicaState]
) -> dict[str, int | None]:
    """From which backlog on each worker pulls: as it says itself, or else as was decided."""
    found: dict[str, int | None] = {}
    for level in balanced.data.levels if balanced is not None else ():
        found.update(dict.fromkeys(level.workers, level.min_pending))
    for replica in ready:
        for load in heard[replica.worker].heartbeat.data.jobs if replica.worker in heard else ():
            if (load.tenant, load.job) == replica.key:
                found[replica.worker] = load.min_pending
    return found


def _running(heard: Mapping[str, Heard], replicas: Sequence[ReplicaState]) -> int:
    """Busy slots of a job on the workers of these replicas, as they said last."""
    workers, keys = {r.worker for r in replicas}, {r.key for r in replicas}
    return sum(
        load.running
        for worker in workers & heard.keys()
        for load in heard[worker].heartbeat.data.jobs
        if (load.tenant, load.job) in keys
    )
