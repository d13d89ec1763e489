"""What keeps a job's invocations waiting, from the folded log, its queue and heartbeats.

Values in, a ``Cause`` out: a code to branch on and words to read. No clock, no I/O. Where no
decision was made, the placement policy itself is asked what it thinks of each worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from jetfleet import capacity_words
from jetfleet.catalog import JobKey, JobState
from jetfleet.causes_placed import by_precedence
from jetfleet.causes_trials import by_trial
from jetfleet.events import Candidate
from jetfleet.fleet import FleetState, ReplicaState
from jetfleet.policies import placement_asked
from jetfleet.policies.placement import Observation
from jetfleet.scaling_specs import StaticScaling
from jetfleet.specs import JobSpec
from jetfleet.story import Story

if TYPE_CHECKING:
    from jetfleet.telemetry import Heard

# What a conductor has not done for so long, none does: it looks twice a second, and one that was
# restarted waits two seconds before it takes a job over.
CONDUCTOR_S = timedelta(seconds=5)
LATER = timedelta(hours=1)  # longer than any back-off
LISTED = 20  # workers named one by one

PAST = frozenset({"job_deleted", "job_disabled", "admitted", "draining", "left", "lost"})


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something is as it is. ``code``: one of ``cause_codes``; ``since``: None: not known."""

    code: str
    text: str
    since: datetime | None = None
    details: tuple[str, ...] = ()

    def sentence(self, now: datetime) -> str:
        """With how long it has been so."""
        if self.since is None:
            return self.text
        length = duration(now - self.since)
        return f"{self.text} ({length} ago)" if self.code in PAST else f"{self.text} (for {length})"


@dataclass(frozen=True, slots=True)
class Queue:
    """A job's queue as the broker has it; fields that are None are not known.

    Args:
        unfinished: invocations in it, running ones included.
        position: up to where it follows the log.
        oldest_at: when the first of them was queued.
        holds: whether the invocation that is explained is in it, ``before`` others of its class.
        counted: False: more than ``before`` are before it.
        consumer: whether the job has one; workers pull through it.
        running: handed out and not acknowledged.
        handed_out: whether the invocation was, once at least.
        priority_class: its own, where the job has several; ``of_others``: how many of
            ``unfinished`` are of the others, ``running_of_others``: how many of ``running``.
        higher: how many wait in higher classes.
    """

    unfinished: int
    position: int
    oldest_at: datetime | None = None
    holds: bool | None = None
    before: int = 0
    counted: bool = True
    consumer: bool | None = None
    running: int | None = None
    handed_out: bool | None = None
    priority_class: str = ""
    of_others: int = 0
    running_of_others: int = 0
    higher: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known now beside the log. ``heard``: last heartbeats; None: nobody listened."""

    now: datetime
    queue: Queue | None = None
    heard: Mapping[str, Heard] | None = None


READY = Cause("ready", "replicas serve")
NOTHING_TO_PULL = Cause(
    "no_conductor",
    "workers have nothing to pull through: the conductor makes it; is one running?",
)


def waits_for(story: Story, key: JobKey, seen: Seen, since: datetime | None) -> Cause:
    """What the invocations of a job wait for before one can be pulled; ``READY``: for nothing.

    ``since``: when the first that waits was queued; None: none waits.
    """
    job = story.registry.jobs.get(key)
    if job is None:
        closed = story.closed.get(key)
        text = "the job was deleted; what is queued is being cancelled"
        return Cause("job_deleted", text, None if closed is None else closed.at)
    mine = [r for r in story.fleet.replicas.values() if r.key == key and at_work(story.fleet, r)]
    ready = [r for r in mine if r.status == "ready"]
    coming = [r for r in mine if r.status in ("assigned", "preparing")]
    if ready:
        return _of_ready(story, seen, ready)
    return _of_coming(story, seen, coming) if coming else shortage(story, job, seen, since)


def at_work(fleet: FleetState, replica: ReplicaState) -> bool:
    """Whether its worker takes work."""
    worker = fleet.workers.get(replica.worker)
    return worker is not None and worker.status == "joined"


# -- there are replicas


def _of_ready(story: Story, seen: Seen, ready: Sequence[ReplicaState]) -> Cause:
    if seen.queue is not None and seen.queue.consumer is False:
        return NOTHING_TO_PULL
    silences = [silence(story, seen, worker) for worker in sorted({r.worker for r in ready})]
    if silences and all(silences):
        return next(each for each in silences if each is not None)
    if any(slots_told(seen, replica) != 0 for replica in ready):
        return READY
    names = listed(sorted({replica.worker for replica in ready}))
    return Cause("restarting", f"its model ended and is being started again on {names}")


def slots_told(seen: Seen, replica: ReplicaState) -> int | None:
    """Slots of the job on a replica's worker, by a heartbeat since it was ready; None: unknown."""
    heard = (seen.heard or {}).get(replica.worker)
    if heard is None or replica.ready_at is None or heard.heartbeat.time <= replica.ready_at:
        return None
    return sum(
        load.slots for load in heard.heartbeat.data.jobs if (load.tenant, load.job) == replica.key
    )


def silence(story: Story, seen: Seen, worker: str) -> Cause | None:
    """That nothing is heard from a worker which should be at work; None: all is well."""
    state, said = story.fleet.workers.get(worker), story.workers.get(worker)
    if seen.heard is None or state is None or said is None:
        return None
    heard = seen.heard.get(worker)
    last = said.at if heard is None else max(said.at, heard.at)
    silent_s = (seen.now - last).total_seconds()
    if silent_s <= 2 * state.heartbeat_s + 1:
        return None
    if heard is None:  # heartbeats are kept for ten minutes, and a broker that began has none
        text = f"no heartbeat of {worker} is kept: none came for long, or the broker has just begun"
        return Cause("worker_silent", text)
    if silent_s <= 5 * state.heartbeat_s + CONDUCTOR_S.total_seconds():
        text = f"nothing is heard from {worker}; it will be declared lost if that goes on"
        return Cause("worker_silent", text, last)
    text = f"nothing is heard from {worker}, and no conductor declares it lost: is one running?"
    return Cause("no_conductor", text, last)


def _of_coming(story: Story, seen: Seen, coming: Sequence[ReplicaState]) -> Cause:
    first = min(coming, key=lambda r: (r.status != "preparing", r.assigned_seq))
    if (cause := silence(story, seen, first.worker)) is not None:
        return cause
    stage = story.stages.get(first.id)
    since = first.assigned_at if stage is None else stage.at
    more = f"; {len(coming) - 1} more are to come" if len(coming) > 1 else ""
    if first.status == "assigned":
        text = f"{first.worker} was chosen for a replica and has not begun{more}"
        return Cause("assigned", text, since)
    doing = f" ({stage.text})" if stage is not None and stage.text else ""
    failure = story.failures.get((first.key, first.worker), "")
    before = f"; the last one there failed: {failure}" if failure else ""
    text = f"a replica is being prepared on {first.worker}{doing}{before}{more}"
    return Cause("preparing", text, since)


def busy_slots(story: Story, key: JobKey, seen: Seen) -> tuple[int, int, str]:
    """Busy slots, slots, and on which workers, by the newest that is known."""
    ready = ready_replicas(story, key)
    slots = sum(replica.spec.concurrency for replica in ready)
    workers = sorted({replica.worker for replica in ready})
    if seen.queue is not None and seen.queue.running is not None:
        busy = seen.queue.running
    else:
        heard = [(seen.heard or {}).get(worker) for worker in workers]
        loads = [load for each in heard if each is not None for load in each.heartbeat.data.jobs]
        busy = sum(load.running for load in loads if (load.tenant, load.job) == key)
    return min(busy, slots), slots, listed(workers)


def ready_replicas(story: Story, key: JobKey) -> list[ReplicaState]:
    """Those that can be given work."""
    return [
        r for r in story.fleet.replicas.values()
        if r.key == key and r.status == "ready" and at_work(story.fleet, r)
    ]  # fmt: skip


# -- there are none, or not enough


def shortage(story: Story, job: JobState, seen: Seen, since: datetime | None) -> Cause:
    """Why a job has no further replica, none being on its way."""
    observation = Observation(story.registry, story.fleet)
    if not placement_asked.wanted(observation, job):
        return _none_wanted(story, job, seen, since)
    against = placement_asked.objections(observation, job, seen.now)
    told = by_trial(story.fleet, job, against)
    if told is None and not all(against.values()):
        return _undecided(story, job, seen)
    told = told or by_precedence(story, job, seen.now, against, CONDUCTOR_S)
    if told is not None:
        return Cause(*told, _one_by_one(against))
    return _by_filters(story, job, seen, against)


def _by_filters(story: Story, job: JobState, seen: Seen, against: Mapping[str, str]) -> Cause:
    """What each worker objects to, or that there is none."""
    observation = Observation(story.registry, story.fleet)
    spec, away = job.spec, dict[str, str]()
    if spec.assignment == "manual":
        away = {n: whereabouts(story, seen.now, n) for n in spec.workers if n not in against}
        against = {name: why for name, why in against.items() if name in spec.workers}
        if not against:
            names = listed([f"{name} ({where})" for name, where in away.items()])
            text = f"the workers that it is assigned to are not at work: {names}"
            return Cause("workers_away", text)
    later = placement_asked.objections(observation, job, seen.now + LATER)
    pausing = {name: against[name] for name, objection in later.items() if not objection}
    if pausing:
        return _backing_off(story, job, pausing, against)
    awaited = capacity_words.awaited(story.capacity, (job.tenant, spec.name), seen.now)
    if awaited is not None:
        return Cause(*awaited, details=_one_by_one({**against, **away}))
    no_fit = Cause("no_fit", _no_fit(spec, len(against)), details=_one_by_one({**against, **away}))
    return no_fit if against else _no_worker(story, seen)


def _none_wanted(story: Story, job: JobState, seen: Seen, since: datetime | None) -> Cause:
    key, spec = (job.tenant, job.spec.name), job.spec
    if isinstance(spec.scaling, StaticScaling) or not spec.max_replicas:
        name = "max_replicas" if not spec.max_replicas else "its number of replicas"
        return Cause("no_replicas_wanted", f"the job wants no replicas: {name} is 0")
    if since is None:
        decision = story.scaled.get(key)
        return Cause(
            "idle", "the job is at zero replicas: nothing is to do",
            None if decision is None else decision.at,
        )  # fmt: skip
    if seen.now - max(since, story.last_change(key) or since) > CONDUCTOR_S:
        text = (
            "the job is at zero replicas and nobody scales it up: is `jetfleet conductor` running?"
        )
        return Cause("no_conductor", text, since)
    return Cause("waking", "the job is at zero replicas and is about to be scaled up", since)


def _undecided(story: Story, job: JobState, seen: Seen) -> Cause:
    """A worker can take a replica: whoever decides has not, yet."""
    changed = story.last_change((job.tenant, job.spec.name)) or job.created_at
    before = seen.now - CONDUCTOR_S
    observation = Observation(story.registry, story.fleet)
    against = placement_asked.objections(observation, job, before)
    if changed <= before and not all(against.values()):
        text = "a worker has room and nobody decides: is a conductor running?"
        return Cause("no_conductor", text, changed)
    return Cause("deciding", "a worker has room; the conductor is about to choose one")


def _no_worker(story: Story, seen: Seen) -> Cause:
    gone = [
        f"{name}: {whereabouts(story, seen.now, name)}"
        for name, worker in sorted(story.fleet.workers.items())
        if worker.status != "joined"
    ]
    text = "no worker is at work" if gone else "no worker has joined"
    return Cause("no_worker", f"{text}; `jetfleet agent` starts one", details=some(gone))


def _backing_off(
    story: Story, job: JobState, pausing: Mapping[str, str], against: Mapping[str, str]
) -> Cause:
    key = (job.tenant, job.spec.name)
    reasons = [story.failures[key, name] for name in pausing if (key, name) in story.failures]
    why = f"its model does not start: {reasons[-1]}" if reasons else "its model does not start"
    paused = listed(_objection_lines(pausing))
    return Cause("backing_off", f"{why} ({paused})", details=_one_by_one(against))


def _no_fit(spec: JobSpec, workers: int) -> str:
    needs = spec.model.resources.model_dump(exclude_defaults=True)
    words = ", ".join(f"{name} {value}" for name, value in needs.items())
    of = " at work that it is assigned to" if spec.assignment == "manual" else ""
    count = f"the only worker{of} cannot" if workers == 1 else f"none of {workers} workers{of} can"
    return f"{count} take it" + (f"; its model needs {words}" if words else "")


def _one_by_one(against: Mapping[str, str]) -> tuple[str, ...]:
    return some(_objection_lines(against))


def _objection_lines(against: Mapping[str, str]) -> list[str]:
    return [f"{worker}: {objection or 'has room'}" for worker, objection in against.items()]


def some(lines: Sequence[str]) -> tuple[str, ...]:
    """The first of many lines, and how many there are more."""
    more = (f"and {len(lines) - LISTED} more",) if len(lines) > LISTED else ()
    return (*lines[:LISTED], *more)


# -- words


def verdict_words(candidate: Candidate) -> str:
    """A worker that was considered: ``w1: 0.94``, or why not."""
    if candidate.rejected or candidate.score is None:
        return f"{candidate.worker}: {candidate.rejected or 'no score'}"
    return f"{candidate.worker}: {candidate.score:g}"


def whereabouts(story: Story, now: datetime, worker: str) -> str:
    """Where a worker is that is not at work."""
    state, said = story.fleet.workers.get(worker), story.workers.get(worker)
    if state is None or said is None:
        return "never joined"
    return f"{said.text.removeprefix(worker).strip()}, {duration(now - said.at)} ago"


def duration(length: timedelta) -> str:
    """As people say it: ``3.2 s``, ``4 min``, ``2.5 h``."""
    seconds = max(0.0, length.total_seconds())
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def listed(names: Sequence[str]) -> str:
    """``a, b and 3 more``."""
    if len(names) <= LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:LISTED])} and {len(names) - LISTED} more"
