"""Hearing outcomes: a plain subscription for what we wait for, the log for what we missed.

The publish that stores an outcome also reaches plain subscribers of its subject. So one
subscription per client, on its own origin token, hears every outcome the moment it is published;
after a reconnect the log is read for those that came meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from nats.aio.msg import Msg

from jetfleet import subjects
from jetfleet.connection import Connection, Subscription
from jetfleet.errors import OutcomePending
from jetfleet.events import OUTCOMES, InvalidEvent, OutcomeEvent, decode
from jetfleet.fastlane import msg_id_of
from jetfleet.log import LogReader, Message
from jetfleet.streams import INVOCATIONS

logger = logging.getLogger("jetfleet.outcomes")
GAP = b""  # in place of a chunk that was not sent
# The outcome says how many chunks came before it; they are waited for this long.
LATE_CHUNK_S = 2.0
GATHER_S = 0.02  # one look into the log serves all who ask for it within this time


@dataclass(frozen=True, slots=True)
class Gap:
    """A chunk that was too large to be sent while streaming; the outcome has the whole output."""

    number: int

    def __str__(self) -> str:
        return f"chunk {self.number} was too large to be sent; the outcome has the whole output"


@dataclass(slots=True, eq=False, weakref_slot=True)
class Waiter:
    """One invocation whose outcome somebody may want; dropping it stops the waiting."""

    invocation: str
    tenant: str
    job: str
    seq: int = 0
    futures: list[asyncio.Future[OutcomeEvent]] = field(default_factory=list)
    event: OutcomeEvent | None = None
    chunks: asyncio.Queue[tuple[int, Any] | None] | None = None
    subscription: Subscription | None = None

    def resolve(self, body: bytes) -> None:
        """Take the outcome; the first one counts, and one that is not about us does not."""
        if self.event is not None:
            return
        try:
            event = decode(body)
        except InvalidEvent as error:
            logger.warning("an outcome of %s is set aside: %s", self.invocation, error)
            return
        if not isinstance(event, OUTCOMES) or event.data.invocation != self.invocation:
            logger.warning("an outcome of %s is set aside: not about it", self.invocation)
            return
        self.event = event
        for future in self.futures:
            if not future.done():
                future.set_result(event)
        if self.chunks is not None:
            self.chunks.put_nowait(None)

    async def outcome(self, wait_s: float | None) -> OutcomeEvent:
        """Raises OutcomePending after ``wait_s`` seconds (None: never)."""
        if self.event is not None:
            return self.event
        loop = asyncio.get_running_loop()
        future: asyncio.Future[OutcomeEvent] = loop.create_future()
        self.futures.append(future)
        timer = None if wait_s is None else loop.call_later(wait_s, self.give_up, future, wait_s)
        try:
            return await future
        finally:
            self.futures.remove(future)
            if timer is not None:
                timer.cancel()

    def give_up(self, future: asyncio.Future[OutcomeEvent], wait_s: float) -> None:
        """End one wait with OutcomePending."""
        if not future.done():
            future.set_exception(
                OutcomePending(
                    f"invocation {self.invocation} has no outcome after {wait_s:g} s; it goes on",
                    invocation=self.invocation,
                )
            )

    async def listen(self, connection: Connection) -> None:
        """Begin to collect output chunks; call it before the invocation is published."""
        queue: asyncio.Queue[tuple[int, Any] | None] = asyncio.Queue()
        self.chunks = queue

        def take(message: Msg) -> None:
            number, _, text = message.data.partition(b" ")
            try:
                item = int(number), Gap(int(number)) if text == GAP else json.loads(text)
            except (ValueError, RecursionError) as error:
                logger.warning("a chunk of %s is set aside: %s", self.invocation, error)
            else:
                queue.put_nowait(item)

        self.subscription = await connection.subscribe(
            subjects.output(self.invocation, subjects.ANY), take
        )
        if self.event is not None:
            queue.put_nowait(None)

    async def stream(self, *, late_join: bool = False, gaps: bool = False) -> AsyncIterator[Any]:
        """Chunks as they come; ends with the outcome. A retried attempt begins again.

        Args:
            late_join: some may have gone by before we listened; none is waited for at the end.
            gaps: give a ``Gap`` in place of a chunk that was not sent; otherwise it is logged.
        """
        assert self.chunks is not None
        seen, total = 0, None
        try:
            while total is None or seen < total:
                try:
                    async with asyncio.timeout(None if total is None else LATE_CHUNK_S):
                        item = await self.chunks.get()
                except TimeoutError:
                    logger.warning("invocation %s: %s chunks lost", self.invocation, total)
                    return
                if item is None:
                    assert self.event is not None  # it is what put the None there
                    total = seen if late_join and not seen else self.event.data.chunks
                else:
                    seen = item[0] + 1
                    if gaps or not isinstance(item[1], Gap):
                        yield item[1]
                    else:
                        logger.warning("invocation %s: %s", self.invocation, item[1])
        finally:
            await self.stop()

    async def stop(self) -> None:
        if self.subscription is not None:
            await self.subscription.stop()
            self.subscription = None


@dataclass(slots=True, eq=False)
class Outcomes:
    """All waiters of one client."""

    connection: Connection
    tenant: str
    origin: str
    waiting: weakref.WeakValueDictionary[str, Waiter] = field(
        default_factory=weakref.WeakValueDictionary
    )
    _recovering: bool = False

    async def start(self) -> None:
        subject = subjects.done(subjects.ANY, self.tenant, subjects.ANY, self.origin, subjects.ANY)
        await self.connection.subscribe(subject, self._on_done)
        self.connection.on_reconnect.append(self.recover)

    def expect(self, invocation: str, job: str) -> Waiter:
        """Register interest; call it before publishing, so that nothing is missed."""
        waiter = Waiter(invocation, self.tenant, job)
        self.waiting[invocation] = waiter
        return waiter

    def _on_done(self, message: Msg) -> None:
        waiter = self.waiting.get(subjects.outcome_of(msg_id_of(message)))
        # The broker vouches for the job token of the subject, not for what the body says.
        if waiter is not None and message.subject.split(".")[4] == waiter.job:
            waiter.resolve(message.data)

    def recover_soon(self) -> None:
        """The same as ``recover``, in the background, once for many who ask together."""
        if not self._recovering:
            self._recovering = True
            self.connection.spawn(self._gather())

    async def _gather(self) -> None:
        await asyncio.sleep(GATHER_S)
        self._recovering = False
        await self.recover()

    async def recover(self) -> None:
        """Ask the log for outcomes that came while we were cut off."""
        open_ = [w for w in list(self.waiting.values()) if w.event is None and w.seq]
        if not open_:
            return
        subject = subjects.done(subjects.ANY, self.tenant, subjects.ANY, self.origin, subjects.ANY)
        start = min(w.seq for w in open_)
        reader = LogReader(self.connection, INVOCATIONS, (subject,), start=start)
        async for batch in reader.batches():
            for message in batch:
                invocation = subjects.outcome_of((message.headers or {}).get("Nats-Msg-Id", ""))
                waiter = self.waiting.get(invocation)
                if waiter is not None and message.subject.split(".")[4] == waiter.job:
                    waiter.resolve(message.body)

    async def watch(self, waiter: Waiter, origin: str, queued_seq: int) -> None:
        """Hear of an invocation that was submitted with another origin token."""
        if origin == self.origin:
            await self.recover()
            return
        subscription = await watch(self.connection, waiter, origin, queued_seq)
        weakref.finalize(waiter, _stop_soon, self.connection, subscription)


async def watch(
    connection: Connection, waiter: Waiter, origin: str, queued_seq: int
) -> Subscription:
    """Resolve ``waiter`` from the log or from now on; stop the subscription when done with it."""
    subject = subjects.done(subjects.ANY, waiter.tenant, waiter.job, origin, subjects.ANY)
    invocation, reference = waiter.invocation, weakref.ref(waiter)

    def take(message: Msg | Message) -> None:
        body = message.data if isinstance(message, Msg) else message.body
        target, msg_id = reference(), (message.headers or {}).get("Nats-Msg-Id", "")
        if target is not None and subjects.outcome_of(msg_id) == invocation:
            target.resolve(body)

    subscription = await connection.subscribe(subject, take)
    reader = LogReader(connection, INVOCATIONS, (subject,), start=queued_seq)
    try:
        async for batch in reader.batches():
            for message in batch:
                take(message)
    except BaseException:
        _stop_soon(connection, subscription)
        raise
    return subscription


def _stop_soon(connection: Connection, subscription: Subscription) -> None:
    connection.spawn(subscription.stop())
