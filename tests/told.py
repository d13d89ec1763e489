"""A story for tests of explanations: events of ``given`` as records of the log, told in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import given
from given import TENANT, at
from jetfleet.agreement import subject_of
from jetfleet.causes import Queue, Seen
from jetfleet.events import (
    Event,
    JobLoad,
    RegistryEvent,
    WorkerHeartbeat,
    encode,
)
from jetfleet.explain import Explanation, Waits, explain_invocation, work_of
from jetfleet.explain_fleet import explain_job, explain_worker
from jetfleet.log import Record
from jetfleet.story import Story
from jetfleet.telemetry import Heard
from jetfleet.views import InvocationView, evolve_view

ID = "0192f0c1-2345-7abc-8def-0123456789ab"


@dataclass
class Told:
    """A log in the making; ``then`` appends, the rest explains what it tells at some second."""

    job: str = "echo"
    records: list[Record] = field(default_factory=list)
    work: list[Record] = field(default_factory=list)

    def then(self, seconds: float, *events: Event | Iterable[Event]) -> Told:
        """These events, taken by the broker at this second."""
        for event in given._flat(events):
            seq = len(self.records) + 1
            stream = "REGISTRY" if isinstance(event, RegistryEvent) else "FLEET"
            self.records.append(record(stream, seq, seconds, event))
        return self

    def invocation(self, seconds: float, event: Event) -> Told:
        self.work.append(record("INVOCATIONS", len(self.work) + 1, seconds, event))
        return self

    def queued(self, seconds: float, **more: Any) -> Told:
        return self.invocation(seconds, given.queued(ID, self.job, **more))

    # -- explaining

    def why_invocation(
        self,
        seconds: float,
        queue: Queue | None = None,
        heard: Mapping[str, Heard] | None = None,
    ) -> Explanation:
        view: InvocationView | None = None
        for each in self.work:
            assert each.event is not None
            view = evolve_view(view, each.event, each.seq)
        assert view is not None
        work = work_of(view, self.work)
        story = Story(job=(TENANT, self.job))
        until = work.began_at or view.finished_at
        waits = Waits(story, (TENANT, self.job), work.queued_at, until)
        for each in self.records:
            waits.fold(each)
        seen = Seen(at(seconds), queue, heard)
        return explain_invocation(story, work, seen, waits.all(seen.now))

    def why_job(
        self,
        seconds: float,
        queue: Queue | None = None,
        heard: Mapping[str, Heard] | None = None,
    ) -> Explanation:
        story = self._story(Story(job=(TENANT, self.job)))
        return explain_job(story, (TENANT, self.job), Seen(at(seconds), queue, heard))

    def why_worker(
        self, worker: str, seconds: float, heard: Mapping[str, Heard] | None = None
    ) -> Explanation:
        story = self._story(Story(worker=worker))
        return explain_worker(story, worker, Seen(at(seconds), heard=heard))

    def _story(self, story: Story) -> Story:
        for each in self.records:
            story.fold(each)
        return story


def record(stream: str, seq: int, seconds: float, event: Event) -> Record:
    """An event as the log holds it, on the subject of whoever may say it."""
    subject = "" if stream == "INVOCATIONS" else subject_of(stream, event)
    return Record(stream, seq, subject, at(seconds), encode(event), event)


def beats(worker: str, seconds: float, **running: int) -> dict[str, Heard]:
    """The last heartbeat of a worker: busy slots by job, of one each; -1: it has none."""
    jobs = [
        JobLoad(
            job=job, tenant=TENANT, replicas_ready=int(n >= 0), slots=int(n >= 0),
            running=max(n, 0), finished=0, busy_s=0,
        )
        for job, n in running.items()
    ]  # fmt: skip
    data = {"worker": worker, "session": "s1", "jobs": jobs}
    return {worker: Heard(at(seconds), WorkerHeartbeat(**given.envelope(seconds), data=data))}


def queue(unfinished: int = 1, **more: Any) -> Queue:
    """A queue that follows the log and holds the invocation first."""
    known = {"position": 99, "holds": True, "consumer": True, "running": 0, "handed_out": False}
    return Queue(unfinished, **{**known, **more})
