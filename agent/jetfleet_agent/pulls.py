"""Pulling from a durable consumer: raw requests for as many messages as are wanted now.

One inbox, requests outstanding for exactly the free slots, a callback per message. nats-py's own
pull knows neither priority groups nor topping up (facts: 1.6k/s in a ``fetch(1)`` loop, 10k/s so).
Requests die with the server: they are made again after a reconnect, a refusal, or silence.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

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
    _outstanding: int = 0
    _subscription: Subscription | None = None
    _subject: str = ""
    _tail: str = field(init=False)
    _heard: float = 0.0
    _watch: asyncio.Task[None] | None = None
    _scheduled: bool = False
    _retry: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        group = f',"group":"{PRIORITY_GROUP}"' if self.grouped else ""
        times = f'"expires":{EXPIRES_S * SECOND},"idle_heartbeat":{HEARTBEAT_S * SECOND}'
        self._tail = f",{times}{group}}}"
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.consumer}"

    async def open(self) -> None:
        inbox = f"{access.inbox(self.connection.user)}.p{secrets.token_hex(8)}"
        self._subscription = await self.connection.subscribe(inbox, self._on_message)
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
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.stop()

    async def withdraw(self) -> None:
        """Take back what was asked for; what comes until the broker knows is still taken."""
        if self.again in self.connection.on_reconnect:
            self.connection.on_reconnect.remove(self.again)
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.drain()

    async def again(self) -> None:
        """Forget what was asked for and ask anew."""
        self._outstanding = 0
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
        self._scheduled = True
        loop = asyncio.get_running_loop()
        if missing * COMPANY >= self.slots():
            loop.call_soon(self._ask)
        else:
            loop.call_later(COMPANY_S, self._ask)

    def _ask(self) -> None:
        self._scheduled = False
        missing = self.wanted() - self._outstanding
        if missing <= 0 or self._subscription is None:
            return
        self._outstanding += missing
        self._heard = asyncio.get_running_loop().time()
        try:
            self.connection.send(
                self._subject,
                b'{"batch":%d%s' % (missing, self._tail.encode()),
                self._subscription.subject,
            )
        except BrokerUnavailable:
            self._outstanding = 0  # the reconnect asks again

    def _on_message(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        if message.reply:
            self._outstanding -= 1
            self.take(message)
            if self._outstanding == 0:  # what was set aside took no slot, so none becomes free
                self.top_up()
            return
        headers = message.headers or {}
        status = headers.get("Status", "")
        if status == "100":
            return
        if status == "408":  # its time is over: nothing came
            self._outstanding -= int(headers.get("Nats-Pending-Messages", self._outstanding))
            self.top_up()
        else:  # 503 no such consumer yet, 409 deleted or server shutting down, 404
            self._outstanding = 0
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
            if self._outstanding > 0 and loop.time() - self._heard > SILENCE_S:
                logger.info("no sign of life from %s; asking again", self.consumer)
                await self.again()
