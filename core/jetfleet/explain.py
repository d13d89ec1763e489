"""Why an invocation is as it is: the cause, what was waited for, and the timeline.

Values in, a frozen ``Explanation`` out; no clock, no I/O. ``jetfleet.evidence`` gathers the values,
``jetfleet.causes`` knows what the invocations of a job wait for, and ``jetfleet.explain_fleet``
explains jobs and workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from jetfleet.catalog import JobKey
from jetfleet.causes import (
    READY,
    Cause,
    Queue,
    Seen,
    busy_slots,
    duration,
    ready_replicas,
    silence,
    slots_told,
    waits_for,
)
from jetfleet.causes_placed import left_to_faster
from jetfleet.events import (
    OUTCOMES,
    AnyEvent,
    InvocationCancelRequested,
    InvocationFailed,
    InvocationQueued,
    InvocationStarted,
    OutcomeEvent,
)
from jetfleet.story import Entry, Story, entry, last_line, words

if TYPE_CHECKING:
    from jetfleet.log import Record
    from jetfleet.views import InvocationView

SHOWN = 60  # entries of a timeline, the first third and the rest from its end
BRIEF = timedelta(milliseconds=10)  # a wait so short is not told beside others
Kind = Literal["invocation", "job", "worker"]


@dataclass(frozen=True, slots=True)
class Wait:
    """A stretch of time in which one thing was waited for; ``code``: of ``cause_codes``."""

    code: str
    start: datetime
    end: datetime

    @property
    def length(self) -> timedelta:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. ``at``: of when it is; ``waits``: of an invocation, until it started or now."""

    kind: Kind
    name: str
    state: str
    cause: Cause
    at: datetime
    waits: tuple[Wait, ...] = ()
    timeline: tuple[Entry, ...] = ()


# -- invocations


@dataclass(frozen=True, slots=True)
class Work:
    """An invocation and its events. Times are the broker's."""

    view: InvocationView
    queued_at: datetime
    entries: tuple[Entry, ...] = ()
    started_at: datetime | None = None  # of the last attempt that is told of
    first_started_at: datetime | None = None
    replica: str = ""  # of that attempt
    expires_at: datetime | None = None
    cancel_at: datetime | None = None

    @property
    def began_at(self) -> datetime | None:
        """When its first attempt began, as far as is known."""
        return self.first_started_at or self.view.started_at


def work_of(view: InvocationView, records: Iterable[Record]) -> Work:
    """From its own events, oldest first; what the log has no more, the view knows."""
    work = Work(view, view.queued_at, started_at=view.started_at)
    for record in records:
        event = record.event
        if event is None:
            continue
        told = replace(entry(record, event), text=invocation_words(event))
        work = replace(work, entries=(*work.entries, told))
        if isinstance(event, InvocationQueued):
            work = replace(work, queued_at=record.time, expires_at=event.data.expires_at)
        elif isinstance(event, InvocationCancelRequested):
            work = replace(work, cancel_at=record.time)
        elif isinstance(event, InvocationStarted | OutcomeEvent) and event.data.run_s is not None:
            began = record.time - timedelta(seconds=event.data.run_s)
            work = replace(
                work, started_at=began, first_started_at=work.first_started_at or began,
                replica=event.data.replica or work.replica,
            )  # fmt: skip
    return work


def explain_invocation(
    story: Story, work: Work, seen: Seen, waits: Sequence[Wait] = ()
) -> Explanation:
    """``story``: of the invocation's job."""
    cause = invocation_cause(story, work, seen)
    timeline = sorted((*work.entries, *_context(story, work)), key=lambda e: (e.at, e.seq))
    told = _brief(waits, cause, work.started_at is None and not work.view.ended)
    view = work.view
    return Explanation(
        "invocation", view.invocation, view.state, cause, seen.now, told, shown(timeline)
    )


def invocation_cause(story: Story, work: Work, seen: Seen) -> Cause:
    """What it waits for now, or how it ended."""
    view = work.view
    if view.ended:
        return _ended(work)
    going = _attempt(story, work, seen) if view.state == "started" else ""
    if work.cancel_at is not None:
        whom = "it is taken from the queue"
        if isinstance(going, Cause) and going.code != "redelivery":
            whom = f"{view.worker} stops it"
            whom += "" if going.code == "running" else f"; {going.text}"
        return Cause("cancelling", f"a cancellation was asked for: {whom}", work.cancel_at)
    if isinstance(going, Cause):
        return going
    lost = f"{going}; attempt {view.attempts + 1} waits: " if going else ""
    if not lost and work.expires_at is not None and work.expires_at < seen.now:
        text = "its time in the queue has ended, and its outcome is due"
        return Cause("expiring", text, work.expires_at)
    cause = waits_for(story, (view.tenant, view.job), seen, work.queued_at)
    if cause is READY:
        cause = _in_queue(story, work, seen, again=bool(lost))
    return replace(cause, text=lost + cause.text)


def _ended(work: Work) -> Cause:
    view = work.view
    if view.outcome is None:
        return Cause("unreadable", f"its outcome cannot be read: {view.unreadable}")
    text = invocation_words(view.outcome)
    waited = (work.began_at or view.finished_at or work.queued_at) - work.queued_at
    if view.started_at is not None:
        text += f", after a wait of {duration(waited)}"
    if view.attempts > 1:
        text += f" and {view.attempts} attempts"
    return Cause(view.state, text)


def _attempt(story: Story, work: Work, seen: Seen) -> Cause | str:
    """That its last attempt goes on, or is to be repeated soon; else how it was lost, in words."""
    view, gone = work.view, story.gone.get(work.replica)
    said = f"attempt {view.attempts} runs on {view.worker}"
    anew = story.anew.get(view.worker or "")
    if anew is not None and work.started_at is not None and work.started_at < anew.at:
        gone = gone or anew  # its container may outlive an agent, a call does not
    if gone is None:
        quiet = silence(story, seen, view.worker or "")
        if quiet is not None:
            return replace(quiet, text=f"{said}, as far as is known: {quiet.text}")
        if _without_a_model(story, work, seen):
            ended = f"the model ended under attempt {view.attempts}"
            return Cause("restarting", f"{ended} and is being started again on {view.worker}")
        return Cause("running", said, work.started_at)
    lost = f"attempt {view.attempts} was lost: {gone.text}, {duration(seen.now - gone.at)} ago"
    job = story.registry.jobs.get((view.tenant, view.job))
    wait_s = job.spec.ack_wait_s if job is not None else 0.0
    if gone.handed_back or seen.now - gone.at > timedelta(seconds=wait_s):
        return lost
    return Cause("redelivery", f"{lost}; the queue hands it out again within {wait_s:g} s of that")


def _without_a_model(story: Story, work: Work, seen: Seen) -> bool:
    """Whether, by a heartbeat since the attempt began, its worker has no slot of the job."""
    replica, heard = story.fleet.replicas.get(work.replica), seen.heard or {}
    beat, began = heard.get(work.view.worker or ""), work.view.started_at
    if replica is None or replica.status != "ready":  # one that is let go has no slots either
        return False
    if beat is None or began is None or beat.heartbeat.time <= began:
        return False
    return slots_told(seen, replica) == 0


def _in_queue(story: Story, work: Work, seen: Seen, *, again: bool) -> Cause:
    """There are replicas: where it stands in the queue. ``again``: an attempt of it was lost."""
    queue, view, key = seen.queue, work.view, (work.view.tenant, work.view.job)
    if queue is None:
        return Cause("in_queue", "its turn in the queue has not come")
    if again and queue.handed_out and queue.running:  # to the one that lost it, for all we know
        queue = replace(queue, handed_out=False, running=queue.running - 1)
        seen = replace(seen, queue=queue)
    if queue.holds is False:
        text = f"the queue follows the log up to {queue.position}, and this is at {view.queued_seq}"
        if queue.position >= view.queued_seq:
            text = "the queue does not have it: its outcome is on its way, or a crash of the broker"
            text += " kept it out, and the conductor puts it back"
        return Cause("not_in_queue", text)
    if queue.handed_out and queue.running:
        text = "a worker has pulled it and has not said that it runs"
        return Cause("taken", text)
    return _place(story, key, seen, queue)


def _place(story: Story, key: JobKey, seen: Seen, queue: Queue) -> Cause:
    """Where it stands in a queue that holds it, and who could take it."""
    busy, slots, names = busy_slots(story, key, seen)
    running = max(0, (queue.running or 0) - queue.running_of_others)
    before = max(0, queue.before - running)
    waiting = max(queue.unfinished - queue.of_others - running, before + 1)
    of_slots = f"{busy} of {slots} slots are busy on {names}"
    ready, balanced = ready_replicas(story, key), story.balanced.get(key)
    if left := left_to_faster(balanced, seen.heard, ready, busy, waiting):
        return Cause("left_to_faster", f"it is {before + 1} of {left}; {of_slots}")
    if before + queue.higher < slots - busy:
        return Cause("next", f"a slot is free for it and is about to take it; {of_slots}")
    place = f"it is {before + 1} of {waiting}" if queue.counted else f"over {before} are before it"
    of_class = f" of class {queue.priority_class}" if queue.priority_class else ""
    first = f", and {queue.higher} of higher classes go first" if queue.higher else ""
    return Cause("in_queue", f"{place}{of_class} in the queue of {key[1]}{first}; {of_slots}")


def _context(story: Story, work: Work) -> list[Entry]:
    """What happened to the job meanwhile, and before that the decisions which that rests on."""
    end = None if not work.entries or not work.view.ended else work.entries[-1].at
    key = (work.view.tenant, work.view.job)
    now = {work.replica, *(r.id for r in story.fleet.replicas.values() if r.key == key)}
    found: list[Entry] = []
    before: dict[str, Entry] = {}  # the last decision of each kind
    for each in story.entries:
        if end is not None and each.at > end:
            break
        if each.at >= work.queued_at or each.about in now:
            found.append(each)
        elif each.type in ("jetfleet.job.scaled", "jetfleet.job.balanced"):
            before[each.type] = each
    return [*before.values(), *found]


def invocation_words(event: AnyEvent) -> str:
    """What happened to an invocation, in a few words."""
    data: Any = event.data
    if isinstance(event, InvocationStarted):
        return f"attempt {data.attempt} runs on {data.worker}"
    if isinstance(event, InvocationCancelRequested):
        return "a cancellation was asked for" + (f": {data.reason}" if data.reason else "")
    if not isinstance(event, OUTCOMES):
        return words(event).removeprefix("invocation ")
    text: str = event.type.rpartition(".")[2]
    if data.worker:
        text += f" on {data.worker}"
    if data.run_s is not None:
        text += f" in {duration(timedelta(seconds=data.run_s))}"
    if isinstance(event, InvocationFailed):
        text += f": {data.error.code}: {last_line(data.error.message)}"
    return text


# -- what was waited for


@dataclass(slots=True, eq=False)
class Waits:
    """Folds a story of the job and notes, from ``since`` on, what was waited for.

    ``until``: when it started or ended; None: it waits still.
    """

    story: Story
    key: JobKey
    since: datetime
    until: datetime | None = None
    found: list[Wait] = field(default_factory=list)

    def fold(self, record: Record) -> None:
        """Records of REGISTRY and FLEET, in the order of time."""
        if not self.found and record.time > self.since:
            self._look(self.since)
        mine = self.story.fold(record)
        meanwhile = self.until is None or record.time <= self.until
        if mine and meanwhile and record.time > self.since:
            self._look(record.time)

    def all(self, now: datetime) -> tuple[Wait, ...]:
        """What was waited for, in order, without gaps."""
        if not self.found:
            self._look(self.since)
        last = self.found[-1]
        ended = replace(last, end=max(last.start, self.until or now))
        return (*self.found[:-1], ended)

    def _look(self, at: datetime) -> None:
        code = waits_for(self.story, self.key, Seen(at), self.since).code
        code = "in_queue" if code == READY.code else code
        if self.found:
            self.found[-1] = replace(self.found[-1], end=at)
        if not self.found or self.found[-1].code != code:
            self.found.append(Wait(code, at, at))


def _brief(waits: Sequence[Wait], cause: Cause, waiting: bool) -> tuple[Wait, ...]:
    """Without those too short to tell; the one that goes on is the cause itself."""
    told = [wait for wait in waits if wait.length >= BRIEF]
    if waiting and waits:
        last = replace(waits[-1], code=cause.code)
        told = [*(wait for wait in told if wait.start != last.start), last]
    return tuple(told or waits[-1:])


def shown(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """As many as people read: the first and the last."""
    if len(entries) <= SHOWN:
        return tuple(entries)
    first = SHOWN // 3
    return (*entries[:first], *entries[first - SHOWN :])


def document(explanation: Explanation) -> dict[str, Any]:
    """The explanation as JSON."""
    cause = explanation.cause
    return {
        explanation.kind: explanation.name,
        "state": explanation.state,
        "at": explanation.at,
        "code": cause.code,
        "cause": cause.text,
        "since": cause.since,
        "details": list(cause.details),
        "waits": [
            {"code": w.code, "from": w.start, "to": w.end, "s": round(w.length.total_seconds(), 3)}
            for w in explanation.waits
        ],
        "timeline": [
            {
                "at": each.at, "stream": each.stream, "seq": each.seq, "type": each.type,
                "text": each.text,
                **({} if each.why is None else {"why": each.why.model_dump(mode="json")}),
            }
            for each in explanation.timeline
        ],
    }  # fmt: skip
