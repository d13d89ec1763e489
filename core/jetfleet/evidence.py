"""Gathering what ``jetfleet.explain`` goes by: the log, queues, heartbeats, the broker's time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from jetfleet import queues
from jetfleet.catalog import JobKey
from jetfleet.causes import Cause, Seen, waits_for
from jetfleet.errors import JobNotFound, WorkerNotFound
from jetfleet.events import InvocationQueued
from jetfleet.explain import Explanation, Waits, explain_invocation, work_of
from jetfleet.explain_fleet import explain_job, explain_worker, further_replica
from jetfleet.story import Story
from jetfleet.streams import FLEET, REGISTRY
from jetfleet.subjects import DEFAULT_CLASS
from jetfleet.telemetry import Heard, last_heartbeats

if TYPE_CHECKING:
    from jetfleet.client import Client
    from jetfleet.log import Record

# What is on its way to another state counts when it is still so after some looks.
PASSING = frozenset({"deciding", "no_conductor", "restarting", "not_in_queue", "taken", "next"})
LOOKS, AGAIN_S = 4, 0.25


@dataclass(slots=True, eq=False)
class Watch:
    """The log followed by looks: ``refresh`` reads what is new since the last."""

    client: Client
    story: Story = field(default_factory=Story)
    fold: Callable[[Record], object] | None = None  # instead of the story's own
    _next: dict[str, int] = field(default_factory=lambda: {REGISTRY: 1, FLEET: 1})

    async def refresh(self) -> datetime:
        """The broker's time, by which everything in the log is folded.

        Raises:
            BrokerUnavailable: no answer in time.
        """
        async for record in self._new():
            (self.fold or self.story.fold)(record)
            self._next[record.stream] = record.seq + 1
        info = await self.client.connection.api(f"STREAM.INFO.{FLEET}")
        return datetime.fromisoformat(info["ts"])

    async def waits_for(self, job: str, since: datetime) -> Cause:
        """What the invocations of a job wait for, as far as the log tells; ``causes.READY``."""
        now = await self.refresh()
        return waits_for(self.story, (self.client.settings.tenant, job), Seen(now), since)

    async def lacks(self, job: str) -> Cause | None:
        """Why a job has fewer replicas than it wants, as far as the log tells; None: it has all."""
        now, key = await self.refresh(), (self.client.settings.tenant, job)
        state = self.story.registry.jobs.get(key)
        return None if state is None else further_replica(self.story, state, Seen(now))

    async def heard(self, workers: Iterable[str]) -> dict[str, Heard]:
        """The last heartbeats of these workers' present sessions."""
        known = self.story.fleet.workers
        sessions = {name: known[name].session for name in workers if name in known}
        return await last_heartbeats(self.client.connection, sessions)

    async def _new(self) -> AsyncIterator[Record]:
        """What is new in both streams, in the order of time."""
        registry = [r async for r in self.client.events(REGISTRY, start=self._next[REGISTRY])]
        registry.reverse()
        async for record in self.client.events(FLEET, start=self._next[FLEET]):
            while registry and registry[-1].time <= record.time:
                yield registry.pop()
            yield record
        while registry:
            yield registry.pop()


async def explain(client: Client, name: str, *, worker: bool = False) -> Explanation:
    """Why an invocation (by id), a job or a worker (by name) is as it is.

    Args:
        worker: the name is a worker's, not a job's.

    Raises:
        InvocationNotFound, JobNotFound, WorkerNotFound: there is none.
        EventUnreadable: the invocation's event cannot be read.
        BrokerUnavailable: no answer in time.
    """
    if _is_id(name):
        return await _settled(lambda: _invocation(client, name))
    if not worker:
        key = (client.settings.tenant, name)
        watch = Watch(client, Story(job=key))
        await watch.refresh()
        if key in watch.story.registry.jobs or key in watch.story.closed:
            return await _settled(lambda: _job(watch, key))
    watch = Watch(client, Story(worker=name))
    await watch.refresh()
    if name in watch.story.workers:
        return await _worker(watch, name)
    if worker:
        raise WorkerNotFound(f"there is no worker {name!r}; `jetfleet worker list` shows all")
    raise JobNotFound(
        f"there is no invocation, job or worker {name!r}; "
        "`jetfleet job list` and `jetfleet worker list` show them"
    )


def _is_id(name: str) -> bool:
    """Whether it looks like an invocation's id (a UUID)."""
    return [len(part) for part in name.split("-")] == [8, 4, 4, 4, 12]


async def _settled(look: Callable[[], Awaitable[Explanation]]) -> Explanation:
    """The first answer that is not of a state in passing, or the last of some."""
    for _ in range(LOOKS - 1):
        found = await look()
        if found.cause.code not in PASSING:
            return found
        await asyncio.sleep(AGAIN_S)
    return await look()


async def _invocation(client: Client, invocation: str) -> Explanation:
    view = await client.find(invocation)
    records = await client.lookup.records(view)
    work = work_of(view, records)
    key = (view.tenant, view.job)
    ended = records[-1].time if view.ended and records else None
    watch = Watch(client, Story(job=key, until=ended))
    until = work.began_at or view.finished_at
    waits = Waits(watch.story, key, work.queued_at, until)
    watch.fold = waits.fold
    now = await watch.refresh()
    if view.ended:
        return explain_invocation(watch.story, work, Seen(now), waits.all(now))
    asked = next((r.event.data for r in records if isinstance(r.event, InvocationQueued)), None)
    queue = await queues.look(
        client.connection, key, shards=client.settings.shards, invocation=invocation,
        priority_class=DEFAULT_CLASS if asked is None else asked.priority_class,
    )  # fmt: skip
    heard = await watch.heard([*_workers(watch.story, key), view.worker or ""])
    return explain_invocation(watch.story, work, Seen(now, queue, heard), waits.all(now))


async def _job(watch: Watch, key: JobKey) -> Explanation:
    now = await watch.refresh()
    client, job = watch.client, watch.story.registry.jobs.get(key)
    queue = await queues.look(
        client.connection, key, shards=client.settings.shards,
        priority_class=DEFAULT_CLASS if job is None else job.spec.priority_class,
    )  # fmt: skip
    heard = await watch.heard(_workers(watch.story, key))
    return explain_job(watch.story, key, Seen(now, queue, heard))


async def _worker(watch: Watch, worker: str) -> Explanation:
    now = await watch.refresh()
    return explain_worker(watch.story, worker, Seen(now, heard=await watch.heard([worker])))


def _workers(story: Story, key: JobKey) -> set[str]:
    """Those with a replica of the job."""
    return {replica.worker for replica in story.fleet.replicas.values() if replica.key == key}
