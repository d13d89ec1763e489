"""The reaper: gives an outcome to what nobody will run.

Expired in the queue, cancelled while queued, or queued for a job that was deleted: where no worker
pulls, the conductor takes the item itself, publishes its outcome, and removes it from the queue.
What a worker may be running is the worker's to end. It also puts back into a queue what a crash of
the broker kept out of it (the log has it, the queue's copy was never made).
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from jetfleet import subjects
from jetfleet.agreement import disagreement
from jetfleet.catalog import RegistryState
from jetfleet.connection import NOT_FOUND, ApiError, Connection
from jetfleet.errors import JetfleetError, Unavailable
from jetfleet.events import (
    InvocationCancelled,
    InvocationCancelRequested,
    InvocationExpired,
    OutcomeEvent,
    encode,
)
from jetfleet.fleet import FleetState
from jetfleet.log import LogReader, read_records
from jetfleet.settings import Settings
from jetfleet.stamp import EnvelopeFields, Stamp
from jetfleet.streams import INVOCATIONS
from jetfleet_projections.freshness import Freshness
from jetfleet_projections.queue_rescue import UNSETTLED, rescue
from jetfleet_projections.queue_scan import Queued, QueueScan

logger = logging.getLogger("jetfleet.reaper")
TICK_S = 0.5
RECHECK_S = 1.0
LOOK_S = 0.02  # a pass reads each queue for so long, so that a flood of work is not slowed by it
CANCELS_SINCE = timedelta(hours=24)  # the longest a job may let work wait
RESCUE_SINCE = timedelta(minutes=2)


@dataclass(slots=True, eq=False)
class Reaper:
    """See the module. ``run`` until cancelled; any number may run, the first outcome counts."""

    connection: Connection
    settings: Settings
    stamp: Stamp
    registry: Callable[[], RegistryState]
    fleet: Callable[[], FleetState]
    fresh: Freshness
    scans: list[QueueScan] = field(init=False)
    _due: list[tuple[float, int, int]] = field(default_factory=list)  # (time, shard, queue seq)
    # By invocation: when the broker took the request, and what it says.
    _cancels: dict[str, tuple[datetime, InvocationCancelRequested]] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _known: float | None = None  # when what jobs and replicas there are was last known for sure
    _rescue_at: datetime | None = field(default_factory=lambda: datetime.now(UTC) + UNSETTLED)

    def __post_init__(self) -> None:
        self.scans = [QueueScan(self.connection, shard) for shard in range(self.settings.shards)]

    def broker_restarted(self) -> None:
        """Look for what the restart kept out of the queues, once that is old enough to tell."""
        self._rescue_at = datetime.now(UTC) + UNSETTLED

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_cancels())
            while True:
                try:
                    await self._pass()
                except Unavailable as error:
                    logger.info("cannot look into the queues now: %s", error)
                except JetfleetError:
                    logger.exception("a pass over the queues failed; trying again")
                self._wake.clear()
                try:
                    async with asyncio.timeout(TICK_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def _follow_cancels(self) -> None:
        reader = LogReader(
            self.connection,
            INVOCATIONS,
            (subjects.cancel(subjects.ANY, subjects.ANY, subjects.ANY),),
            start=datetime.now(UTC) - CANCELS_SINCE,
            follow=True,
        )
        async for record in read_records(reader):
            vouched = record.event and not disagreement(INVOCATIONS, record.subject, record.event)
            if vouched and isinstance(record.event, InvocationCancelRequested):
                self._cancels[record.event.data.invocation] = (record.time, record.event)
                self._wake.set()

    async def _pass(self) -> None:
        for scan in self.scans:
            # A cancellation is looked for in all of its queue; expiry may come a little later.
            await scan.refresh(None if self._cancels else LOOK_S)
        due = self._rescue_at
        if due is not None and due <= datetime.now(UTC):
            await rescue(self.connection, self.scans, RESCUE_SINCE, datetime.now(UTC))
            if self._rescue_at == due:  # no other restart meanwhile
                self._rescue_at = None
        for scan in self.scans:
            for item in scan.take_new():
                heapq.heappush(self._due, (item.expires_at.timestamp(), scan.shard, item.seq))
        self._known = None  # what was scanned now may be of a job that was made just before
        await self._cancel_queued()
        await self._expire()
        await self._sweep_deleted()

    # -- cancelling

    async def _cancel_queued(self) -> None:
        for invocation, (asked_at, request) in list(self._cancels.items()):
            item = self._find(invocation)
            if item is not None and (item.tenant, item.job) != (request.tenant, request.data.job):
                del self._cancels[invocation]  # whoever asks has no say in that job
            elif item is None:
                # Done already, or not in its queue yet: give the queue a moment to follow the log.
                if datetime.now(UTC) - asked_at > timedelta(seconds=2 * RECHECK_S):
                    del self._cancels[invocation]
            elif await self._nobody_has(item):
                await self._end(item, self._cancelled(item, request.data.reason))
                del self._cancels[invocation]
            else:
                await self._nudge(item, request.data.reason)

    def _find(self, invocation: str) -> Queued | None:
        for scan in self.scans:
            if item := scan.by_invocation.get(invocation):
                return item
        return None

    async def _nudge(self, item: Queued, reason: str) -> None:
        """A worker has it: tell the job's workers again, in case the event passed them by."""
        workers = {
            r.worker for r in self.fleet().replicas.values() if r.key == (item.tenant, item.job)
        }
        body = json.dumps({"cancel": item.invocation, "reason": reason}).encode()
        for worker in workers:
            await self.connection.publish(subjects.command(worker), body)

    # -- expiring

    async def _expire(self) -> None:
        now = datetime.now(UTC).timestamp()
        while self._due and self._due[0][0] <= now:
            _, shard, seq = self._due[0]
            item = self.scans[shard].items.get(seq)
            if item is None:
                heapq.heappop(self._due)
                continue
            # Looked at again until it is gone: a worker may have it, or this look may fail.
            heapq.heapreplace(self._due, (now + RECHECK_S, shard, seq))
            if await self._nobody_has(item):
                data = InvocationExpired.Data(
                    invocation=item.invocation, job=item.job, expires_at=item.expires_at
                )
                await self._end(item, InvocationExpired(**self._envelope(item), data=data))

    async def _sweep_deleted(self) -> None:
        """Only a queue that holds something of a job that is no more is gone through."""
        for scan in self.scans:
            if scan.jobs.keys() <= self.registry().jobs.keys():
                continue
            for item in list(scan.items.values()):
                if self._deleted(item) and await self._nobody_has(item) and self._deleted(item):
                    await self._end(item, self._cancelled(item, "the job was deleted"))

    def _deleted(self, item: Queued) -> bool:
        return item.key not in self.registry().jobs

    async def _nobody_has(self, item: Queued) -> bool:
        """Whether it waits and no worker can be running it: never delivered, or no replica left.

        Raises:
            Unavailable: its job or replicas may not be known to us; we or the broker slept.
        """
        if not self.fresh.holds(self._known):
            self._known = await self.fresh.renew()
            if self._known is None:
                raise Unavailable("what was done meanwhile is not known yet")
        known = self._known
        return await self._unclaimed(item) and self.fresh.holds(known)

    async def _unclaimed(self, item: Queued) -> bool:
        if not await self.scans[item.shard].still_holds(item):
            return False
        if not self._has_replica(item):
            return True
        name = subjects.job_consumer(item.tenant, item.job, item.priority_class)
        try:
            info = await self.connection.api(
                f"CONSUMER.INFO.{subjects.queue_stream(item.shard)}.{name}"
            )
        except ApiError as error:
            if error.status == NOT_FOUND:
                return False  # being made anew after a restart; look again
            raise
        return bool(item.seq > info["delivered"]["stream_seq"])

    def _has_replica(self, item: Queued) -> bool:
        """One that was assigned to a worker as it went is none: nobody will say that it ended."""
        fleet = self.fleet()
        there = {name for name, w in fleet.workers.items() if w.status in ("joined", "draining")}
        return any(r.key == item.key and r.worker in there for r in fleet.replicas.values())

    # -- ending

    def _envelope(self, item: Queued) -> EnvelopeFields:
        return self.stamp(item.tenant, correlation=item.invocation, trace=item.trace)

    def _cancelled(self, item: Queued, reason: str) -> InvocationCancelled:
        data = InvocationCancelled.Data(invocation=item.invocation, job=item.job, reason=reason)
        return InvocationCancelled(**self._envelope(item), data=data)

    async def _end(self, item: Queued, outcome: OutcomeEvent) -> None:
        """Publish the outcome, then take the item out of its queue: nothing is lost."""
        subject = subjects.done(item.shard, item.tenant, item.job, item.origin, subjects.NOBODY)
        msg_id = subjects.outcome_id(item.invocation, item.event)
        await self.connection.store(subject, encode(outcome), msg_id=msg_id)
        try:
            await self.connection.api(
                f"STREAM.MSG.DELETE.{subjects.queue_stream(item.shard)}",
                {"seq": item.seq, "no_erase": True},
            )
        except ApiError as error:
            logger.info("invocation %s left its queue by itself: %s", item.invocation, error)
        self.scans[item.shard].forget(item)
        logger.info("⊘ %s of %s: %s", item.invocation, item.job, outcome.type.rsplit(".", 1)[1])
