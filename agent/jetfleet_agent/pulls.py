"""Pulling from a durable consumer: raw requests for as many messages as are wanted now.

One inbox, requests outstanding for exactly the free slots, a callback per message. nats-py's own
pull knows neither priority groups nor topping up (facts: 1.6k/s in a ``fetch(1)`` loop, 10k/s so).
Requests die with the server: they are made again after a reconnect, a refusal, or silence.

A slower worker leaves work to faster ones: its requests name the backlog from which on they are
served (``only_from``). Now and then it asks for one message without, whatever the backlog: the
broker has no failover of its own, and a speed that is never measured again is never corrected.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from nats.aio.msg import Msg

from jetfleet import access
from jetfleet.connection import Connection, Subscription
from jetfleet.errors import BrokerUnavailable
from jetfleet.streams import PRIORITY_GROUP, SECOND

logger = logging.getLogger("jetfleet.pulls")
EXPIRES_S = 30
HEARTBEAT_S = 5
SILENCE_S = 3 * HEARTBEAT_S
RETRY_S = 0.1
COMPANY = 8  # an eighth of the slots is worth a request at once
COMPANY_S = 0.001
BACKLOG_EXPIRES_S = 5  # a request that waits for a backlog is not one for what there is then
BACKLOG_HEARTBEAT_S = 2  # the broker wants two of them in a request's life
PROBE_S = 30.0  # without a message, one is asked for from no backlog at all
PROBE_EXPIRES_S = 1
CALM_S = 0.05  # a message every so often: the queue is busy, and answers what is outstanding
PATIENCE_S = 1.0


@dataclass(slots=True, eq=False)
class Pull:
    """A standing pull.

    Args:
        stream, consumer: what is pulled from; the consumer may come into being later.
        wanted: how many messages may arrive now, those asked for included.
        slots: how many may be at work at once, the busy ones included.
        take: called for every message, in order.
        grouped: the consumer has our priority group.
    """

    connection: Connection
    stream: str
    consumer: str
    wanted: Callable[[], int]
    slots: Callable[[], int]
    take: Callable[[Msg], None]
    grouped: bool = True
    min_pending: int | None = None  # change it by ``only_from``
    _outstanding: int = 0
    _waiting: int = 0  # of these at most so many for a backlog
    _subscription: Subscription | None = None
    _former: dict[Subscription, asyncio.TimerHandle] = field(default_factory=dict)  # their ends
    _subject: str = ""
    _tail: bytes = field(init=False)
    _heard: float = 0.0
    _watch: asyncio.Task[None] | None = None
    _scheduled: bool = False
    _retry: asyncio.TimerHandle | None = None
    _took: float = 0.0  # when the last message came, or we began to wait for a backlog

    def __post_init__(self) -> None:
        self._tail = self._what(EXPIRES_S, HEARTBEAT_S, self.min_pending)
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.consumer}"

    def _what(self, expires_s: int, heartbeat_s: int, min_pending: int | None) -> bytes:
        """The end of a request, behind its number."""
        said = f',"expires":{expires_s * SECOND}'
        if heartbeat_s:
            said += f',"idle_heartbeat":{heartbeat_s * SECOND}'
        if self.grouped:
            said += f',"group":"{PRIORITY_GROUP}"'
        if min_pending is not None:
            said += f',"min_pending":{min_pending}'
        return f"{said}}}".encode()

    async def open(self) -> None:
        self._subscription = await self._subscribe()
        self.connection.on_reconnect.append(self.again)
        self._watch = asyncio.create_task(self._watch_silence())
        self._ask()

    async def close(self) -> None:
        """Ask for nothing more; what still arrives is not taken and will be delivered elsewhere."""
        if self.again in self.connection.on_reconnect:
            self.connection.on_reconnect.remove(self.again)
        if self._watch is not None:
            self._watch.cancel()
        if self._retry is not None:
            self._retry.cancel()
        for each in self._all_subscriptions():
            await each.stop()

    async def withdraw(self, *, patient: bool = False) -> None:
        """Take back what was asked for; what comes until the broker knows is still taken.

        The broker has no word for that: it drops what is on its way to an inbox that is gone, until
        ``ack_wait``, and from a busy queue all that was asked for may be. ``patient``: so while
        answers come, wait for the rest of them, for a second at most.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while patient and self._outstanding:
            left_s = min(self._took + CALM_S, until) - loop.time()
            if left_s <= 0:
                break
            await asyncio.sleep(min(left_s, CALM_S / 5))
        if self.again in self.connection.on_reconnect:
            self.connection.on_reconnect.remove(self.again)
        for each in self._all_subscriptions():
            await each.drain()

    def _all_subscriptions(self) -> list[Subscription]:
        """They are not ours any more."""
        present, self._subscription = self._subscription, None
        former, self._former = self._former, {}
        for ending in former.values():
            ending.cancel()
        return [*former, *([present] if present is not None else [])]

    async def only_from(self, min_pending: int | None) -> None:
        """Take messages only while so many wait (None: whenever there are any).

        A higher threshold holds for requests from now on; those outstanding are answered or expire.
        A lower one holds at once: what was asked for with the higher is not counted any more, and
        whatever still comes for it is taken. It cannot be taken back: a message that is on its way
        to an inbox that is gone would be lost until ``ack_wait``.
        """
        before, self.min_pending = self.min_pending, min_pending
        if before == min_pending:
            return
        if min_pending is None:
            self._tail = self._what(EXPIRES_S, HEARTBEAT_S, None)
        else:
            self._tail = self._what(BACKLOG_EXPIRES_S, BACKLOG_HEARTBEAT_S, min_pending)
        self._took = asyncio.get_running_loop().time()
        lower = before is not None and (min_pending is None or min_pending < before)
        if lower and self._waiting and self._subscription is not None:
            await self._ask_beside(self._subscription)

    async def _ask_beside(self, old: Subscription) -> None:
        """Ask on a new inbox; the old one ends when nothing can be outstanding there."""
        try:
            new = await self._subscribe()
        except BrokerUnavailable:
            return  # the reconnect asks again, as is said now
        if self._subscription is not old:  # closed meanwhile, or changed again
            await new.stop()
            return
        self._subscription, self._outstanding, self._waiting = new, 0, 0
        loop = asyncio.get_running_loop()
        self._former[old] = loop.call_later(EXPIRES_S + 1, self._retire, old)
        self.top_up()

    def _retire(self, former: Subscription) -> None:
        del self._former[former]
        self.connection.spawn(former.stop())

    async def _subscribe(self) -> Subscription:
        inbox = f"{access.inbox(self.connection.user)}.p{secrets.token_hex(8)}"
        return await self.connection.subscribe(inbox, partial(self._on_message, inbox))

    async def again(self) -> None:
        """Forget what was asked for and ask anew."""
        self._outstanding = self._waiting = 0
        self._ask()

    def top_up(self) -> None:
        """Ask for what is wanted and not yet asked for; once per turn of the loop.

        A request costs the broker as much as a message. So while enough is on its way, or most
        slots are at work, a freed slot waits a moment for company.
        """
        if self._scheduled:
            return
        missing = self.wanted() - self._outstanding
        if missing <= 0 or missing < self._outstanding:
            return
        if self.slots() == 1:  # no other can become free, and this one stands idle meanwhile
            self.connection.nats.together()  # with the outcome that freed it
            self._ask()
            return
        self._scheduled = True
        loop = asyncio.get_running_loop()
        if missing * COMPANY >= self.slots():
            loop.call_soon(self._ask)
        else:
            loop.call_later(COMPANY_S, self._ask)

    def _ask(self) -> None:
        self._scheduled = False
        missing = self.wanted() - self._outstanding
        if missing > 0:
            self._request(missing, self._tail)

    def _request(self, count: int, tail: bytes) -> None:
        if self._subscription is None:
            return
        self._outstanding += count
        if self.min_pending is not None:
            self._waiting += count
        self._heard = asyncio.get_running_loop().time()
        try:
            self.connection.send(
                self._subject, b'{"batch":%d%s' % (count, tail), self._subscription.subject
            )
        except BrokerUnavailable:
            self._outstanding = self._waiting = 0  # the reconnect asks again

    def _answered(self, count: int) -> None:
        """So many fewer are outstanding; never below none, as what was given up may be answered."""
        self._outstanding = max(0, self._outstanding - count)
        self._waiting = min(self._waiting, self._outstanding)

    def _on_message(self, inbox: str, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        former = self._subscription is not None and self._subscription.subject != inbox
        if message.reply:
            self._took = self._heard
            if not former:
                self._answered(1)
            self.take(message)
            if self._outstanding == 0:  # what was set aside took no slot, so none becomes free
                self.top_up()
            return
        headers = message.headers or {}
        status = headers.get("Status", "")
        if status == "100" or former:
            return
        if status == "408":  # its time is over: nothing came
            self._answered(int(headers.get("Nats-Pending-Messages", self._outstanding)))
            self.top_up()
        else:  # 503 no such consumer yet, 409 deleted or server shutting down, 404
            self._outstanding = self._waiting = 0
            if self._retry is None:
                loop = asyncio.get_running_loop()
                self._retry = loop.call_later(RETRY_S, self._ask_later)

    def _ask_later(self) -> None:
        self._retry = None
        self._ask()

    async def _watch_silence(self) -> None:
        """Broker heartbeats come with every outstanding request; without them it is dead."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._probe(loop.time())
            if self._outstanding > 0 and loop.time() - self._heard > SILENCE_S:
                logger.info("no sign of life from %s; asking again", self.consumer)
                await self.again()

    def _probe(self, now: float) -> None:
        """Of one that waits for a backlog, and waited long: a single request that does not."""
        if self.min_pending is not None and now - self._took >= PROBE_S and self.wanted() > 0:
            self._took = now
            self._request(1, self._what(PROBE_EXPIRES_S, 0, None))
