"""Any invocation by its id: what the projection knows, then the log behind its position."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from jetfleet import queries, subjects
from jetfleet.agreement import disagreement
from jetfleet.clock import id_time
from jetfleet.connection import Connection
from jetfleet.errors import (
    Conflict,
    EventUnreadable,
    InvocationNotFound,
    OutcomePending,
    QueryUnavailable,
)
from jetfleet.events import OUTCOMES, InvocationCancelRequested, OutcomeEvent, encode
from jetfleet.log import LogReader, Message, Record, Start, record
from jetfleet.outcomes import Waiter, watch
from jetfleet.settings import Settings
from jetfleet.stamp import Stamp
from jetfleet.streams import INVOCATIONS
from jetfleet.views import InvocationView, evolve_view, view_of_row

logger = logging.getLogger("jetfleet.lookup")
CLOCK_SLACK = timedelta(seconds=30)  # an id's time is its maker's clock, the log's is the broker's
CANCEL_WAIT_S = 5.0


@dataclass(slots=True, eq=False)
class Lookup:
    """See the module."""

    connection: Connection
    settings: Settings
    stamp: Stamp

    async def find(self, invocation: str) -> InvocationView:
        """Raises InvocationNotFound, EventUnreadable."""
        try:
            start: Start = id_time(invocation) - CLOCK_SLACK
        except ValueError:
            raise InvocationNotFound(f"{invocation!r} is not an invocation id (a UUID)") from None
        view = None
        try:
            rows = await queries.ask(
                self.connection, {"name": "invocation", "params": {"invocation": invocation}}
            )
        except QueryUnavailable:
            logger.info("no projector answers; reading the log for %s", invocation)
        else:
            view = view_of_row(rows.dicts()[0]) if rows.rows else None
            start = rows.position.get(INVOCATIONS, 0) + 1
        if view is None or not view.ended:
            view = await self._read(view, invocation, start)
        if view is None or view.tenant != self.settings.tenant:
            raise InvocationNotFound(f"there is no invocation {invocation} in the log")
        return view

    async def _read(
        self, view: InvocationView | None, invocation: str, start: Start
    ) -> InvocationView | None:
        """Fold this invocation's events from ``start`` to the end of the log."""
        tenant = self.settings.tenant
        subject = subjects.invocations_of(tenant, view.job if view else subjects.ANY)
        reader = LogReader(self.connection, INVOCATIONS, (subject,), start=start)
        needle = invocation.encode()
        unreadable: dict[tuple[str, ...], str] = {}
        async for batch in reader.batches():
            for message in batch:
                if needle not in message.body:
                    continue  # decoding all of the tail to find one would be slow
                read = record(INVOCATIONS, message)
                if read.event is None:
                    unreadable |= _claimed(message, invocation, read.error)
                elif _is_about(read.event, invocation, message.subject, view):
                    view = evolve_view(view, read.event, message.seq)
        if view is None and (why := unreadable.get((tenant, "queued"))):
            raise EventUnreadable(f"invocation {invocation} cannot be read, nor run: {why}")
        if view is not None and not view.ended:
            view = replace(view, unreadable=unreadable.get((view.tenant, view.job, "done")))
        return view

    async def records(self, view: InvocationView) -> list[Record]:
        """Its events, oldest first, to its outcome; those that the log has still."""
        subject = subjects.invocations_of(view.tenant, view.job)
        reader = LogReader(self.connection, INVOCATIONS, (subject,), start=view.queued_seq)
        needle, found = view.invocation.encode(), list[Record]()
        async with aclosing(reader.batches()) as batches:
            async for batch in batches:
                for message in batch:
                    if needle not in message.body:
                        continue
                    read = record(INVOCATIONS, message)
                    event = read.event
                    if event is None or not _is_about(event, view.invocation, read.subject, view):
                        continue
                    found.append(read)
                    if isinstance(event, OUTCOMES):
                        return found
        return found

    async def outcome(self, invocation: str, wait_s: float | None) -> OutcomeEvent:
        """Raises InvocationNotFound, OutcomePending, EventUnreadable."""
        view = await self.find(invocation)
        _refuse_unreadable(view)
        if view.outcome is not None:
            return view.outcome
        waiter = Waiter(invocation, view.tenant, view.job, view.queued_seq)
        subscription = await watch(self.connection, waiter, view.origin, view.queued_seq)
        try:
            return await waiter.outcome(wait_s)
        finally:
            await subscription.stop()

    async def chunks(self, invocation: str, *, gaps: bool = False) -> AsyncIterator[Any]:
        """Raises InvocationNotFound, EventUnreadable."""
        view = await self.find(invocation)
        _refuse_unreadable(view)
        if view.outcome is not None:
            return
        waiter = Waiter(invocation, view.tenant, view.job, view.queued_seq)
        await waiter.listen(self.connection)
        subscription = await watch(self.connection, waiter, view.origin, view.queued_seq)
        try:
            async for chunk in waiter.stream(late_join=True, gaps=gaps):
                yield chunk
        finally:
            await subscription.stop()

    async def cancel(self, invocation: str, reason: str) -> InvocationView:
        """Raises InvocationNotFound, Conflict, EventUnreadable."""
        view = await self.find(invocation)
        _refuse_unreadable(view)
        if view.ended:
            raise Conflict(f"invocation {invocation} has ended already ({view.state})")
        event = InvocationCancelRequested(
            **self.stamp(view.tenant, correlation=invocation),
            data=InvocationCancelRequested.Data(
                invocation=invocation,
                job=view.job,
                queued_seq=view.queued_seq,
                origin=view.origin,
                reason=reason,
            ),
        )
        shard = subjects.shard_of(view.job, self.settings.shards)
        await self.connection.store(
            subjects.cancel(shard, view.tenant, view.job), encode(event), msg_id=event.id
        )
        try:
            outcome = await self.outcome(invocation, CANCEL_WAIT_S)
        except OutcomePending:
            return view
        return evolve_view(view, outcome, 0) or view


def _refuse_unreadable(view: InvocationView) -> None:
    if view.unreadable is not None:
        raise EventUnreadable(
            f"invocation {view.invocation} has an outcome that cannot be read: {view.unreadable}"
        )


def _claimed(message: Message, invocation: str, error: str) -> dict[tuple[str, ...], str]:
    """Of which tenant, as what, a message that is no event was stored for this invocation; and why
    it cannot be read. The broker vouches for the job of an outcome."""
    _, _, _, tenant, job, verb, *_ = message.subject.split(".")
    why = f"the event at {message.seq} of the log: {error}"
    if verb == "queued" and b'"invocation":"%s"' % invocation.encode() in message.body:
        return {(tenant, "queued"): why}
    msg_id = (message.headers or {}).get("Nats-Msg-Id", "")
    if verb == "done" and subjects.outcome_of(msg_id) == invocation:
        return {(tenant, job, "done"): why}
    return {}


def _is_about(event: Any, invocation: str, subject: str, view: InvocationView | None) -> bool:
    """Whether it speaks of this invocation and its job, on a subject that vouches for it."""
    if getattr(event.data, "invocation", None) != invocation:
        return False
    if disagreement(INVOCATIONS, subject, event):
        return False
    return view is None or (event.tenant, event.data.job) == (view.tenant, view.job)
