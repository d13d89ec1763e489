"""Pulling from the queues of several priority classes, for free slots only.

What is asked for is bound to us, so a free slot may ask one class alone, and it has to be known
which of them have something. That is what bells are for: a pull request that no message fits in
(``max_bytes: 1``). When one is there, the broker answers that it is too big, and keeps it. Every
class that has nothing, as far as is known, has a bell out; of every other one something waits. So
a free slot asks the class whose turn it is (``jetfleet.policies.turns``), with ``no_wait``: what
another worker took meanwhile costs one answer. docs/decisions/0011 has what else was tried.

A job of one class does without: see ``pulls``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from nats.aio.msg import Msg

from jetfleet import access
from jetfleet.connection import Connection, Subscription
from jetfleet.errors import BrokerUnavailable
from jetfleet.policies import turns
from jetfleet.streams import PRIORITY_GROUP, SECOND
from jetfleet_agent.pulls import (
    CALM_S,
    EXPIRES_S,
    HEARTBEAT_S,
    PATIENCE_S,
    PROBE_S,
    RETRY_S,
    SILENCE_S,
)

logger = logging.getLogger("jetfleet.pulls")
AMONG_S = 0.1  # longest wait for what is there, where others wait for a backlog
LOST_S = 10.0  # an answer that has not come by then will not
BELL = (
    f'{{"batch":1,"max_bytes":1,"expires":{EXPIRES_S * SECOND},'
    f'"idle_heartbeat":{HEARTBEAT_S * SECOND},"group":"{PRIORITY_GROUP}"}}'
).encode()


@dataclass(slots=True, eq=False)
class Queue:
    """One class, and what is known of its queue."""

    consumer: str
    waits: bool = False  # something is there
    bell: bool = False  # it is out
    asked: int = 0  # messages that may still come
    asked_at: float = 0.0
    resting: bool = False  # it is looked at again a little later
    subscriptions: list[Subscription] = field(default_factory=list)  # of bells; of messages


@dataclass(slots=True, eq=False)
class ClassPulls:
    """See the module; what ``Pull`` is for one queue.

    Args:
        consumers: of the classes, highest first; they may come into being later.
        floor: see ``jetfleet.policies.turns``.
        wanted: how many messages may arrive now, those asked for included.
        take: called for every message, in the order of its class.
        shared: called instead of asking, where others have a say; ``fill`` follows.
    """

    connection: Connection
    stream: str
    consumers: Sequence[str]
    floor: float
    wanted: Callable[[], int]
    take: Callable[[Msg], None]
    shared: Callable[[], None] | None = None
    min_pending: int | None = None  # change it by ``only_from``
    queues: list[Queue] = field(init=False)
    _turns: turns.Turns = field(init=False)
    _open: bool = False
    _heard: float = 0.0
    _took: float = 0.0
    _watch: asyncio.Task[None] | None = None
    _scheduled: bool = False
    _retry: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.queues = [Queue(each) for each in self.consumers]
        self._turns = turns.first(len(self.queues), self.floor)

    async def open(self) -> None:
        for queue in self.queues:
            for handle in (self._on_bell, self._on_message):
                inbox = f"{access.inbox(self.connection.user)}.p{secrets.token_hex(8)}"
                heard = await self.connection.subscribe(inbox, partial(handle, queue))
                queue.subscriptions.append(heard)
        self.connection.on_reconnect.append(self.again)
        self._watch = asyncio.create_task(self._watch_silence())
        self._open = True
        self._ring()

    async def close(self) -> None:
        """Ask for nothing more; what still arrives is not taken and will be delivered elsewhere."""
        for each in self._end():
            await each.stop()

    async def withdraw(self, *, patient: bool = False) -> None:
        """Take back what was asked for; what comes until the broker knows is still taken.

        ``patient``: wait for answers that are on their way, for a second at most; see ``Pull``.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while patient and self.asked:
            left_s = until - loop.time()
            if left_s <= 0:
                break
            await asyncio.sleep(min(left_s, CALM_S / 5))
        for each in self._end():
            await each.drain()

    def _end(self) -> list[Subscription]:
        """Our subscriptions, which are not ours any more."""
        self._open = False
        if self.again in self.connection.on_reconnect:
            self.connection.on_reconnect.remove(self.again)
        if self._watch is not None:
            self._watch.cancel()
        if self._retry is not None:
            self._retry.cancel()
        found = [each for queue in self.queues for each in queue.subscriptions]
        for queue in self.queues:
            queue.subscriptions, queue.asked = [], 0
        return found

    async def only_from(self, min_pending: int | None) -> None:
        """Take messages only while so many of a class wait (None: whenever there are any).

        A class with fewer is asked again after ``RETRY_S``: a request that waited would be in the
        way of those of others, which the broker answers with "Requests Pending".
        """
        self.min_pending = min_pending
        self._took = asyncio.get_running_loop().time()
        self.top_up()

    async def again(self) -> None:
        """Forget what was asked for, and what waits; the bells tell."""
        for queue in self.queues:
            queue.waits = queue.bell = queue.resting = False
            queue.asked = 0
        self._ring()

    @property
    def asked(self) -> int:
        """Messages that may still come."""
        return sum(queue.asked for queue in self.queues)

    @property
    def waits(self) -> bool:
        """Whether anything waits in any class, as far as is known."""
        return any(queue.waits for queue in self.queues)

    @property
    def appetite(self) -> int:
        """How many messages it would ask for now."""
        if not self._open:
            return 0
        each = turns.choose(self._turns, [queue.waits for queue in self.queues])
        if each is None or self.queues[each].asked:
            return 0
        return max(0, self.wanted() - self.asked)

    def top_up(self) -> None:
        """Ask for what is wanted and not yet asked for; once per turn of the loop."""
        if self.shared is not None:
            self.shared()
        elif not self._scheduled and self._open:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._fill_all)

    def _fill_all(self) -> None:
        self._scheduled = False
        self.fill(self.wanted())

    def fill(self, most: int) -> None:
        """Ask for so many at most, now."""
        free = min(most, self.wanted() - self.asked)
        if free <= 0 or not self._open:
            return
        now = asyncio.get_running_loop().time()
        # One that waits for a backlog, and waited long, asks once for whatever there is.
        patient = self.min_pending is not None and now - self._took < PROBE_S
        for queue, count in self._choose(free if patient or self.min_pending is None else 1):
            queue.asked, queue.asked_at = count, now
            body = f'{{"batch":{count},"no_wait":true,"group":"{PRIORITY_GROUP}"'
            if patient:
                body += f',"min_pending":{self.min_pending}'
            else:
                self._took = now
            self._send(queue, 1, f"{body}}}".encode())

    def _choose(self, free: int) -> list[tuple[Queue, int]]:
        """How many to ask of which classes. A class is asked again when its answer is there."""
        counts, waiting = [0] * len(self.queues), [queue.waits for queue in self.queues]
        for _ in range(free):
            each = turns.choose(self._turns, waiting)
            if each is None or self.queues[each].asked:
                break  # what it was asked for comes first
            self._turns = turns.started(self._turns, each, waiting)
            counts[each] += 1
        return [(q, count) for q, count in zip(self.queues, counts, strict=True) if count]

    def _ring(self) -> None:
        """Have a bell out wherever nothing waits."""
        for queue in self.queues:
            idle = not (queue.bell or queue.waits or queue.asked or queue.resting)
            if self._open and idle:
                queue.bell = True
                self._send(queue, 0, BELL)

    def _send(self, queue: Queue, inbox: int, body: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{queue.consumer}"
        try:
            self.connection.send(subject, body, queue.subscriptions[inbox].subject)
        except BrokerUnavailable:  # the reconnect asks again
            queue.asked, queue.bell = 0, False

    # -- answers

    def _on_bell(self, queue: Queue, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        headers = message.headers or {}
        status = headers.get("Status", "")
        if status == "100":
            return
        queue.bell = False
        if status == "409" and "MaxBytes" in headers.get("Description", ""):
            queue.waits = True
            self.top_up()
        elif status == "408":  # its time is over: nothing came
            self._ring()
        else:
            self._later(queue)

    def _on_message(self, queue: Queue, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        if message.reply:
            self._took = self._heard
            queue.asked = max(0, queue.asked - 1)
            queue.waits = not message.reply.endswith(".0")  # the last token: how many more
            self.take(message)
        else:
            headers = message.headers or {}
            if headers.get("Description") == "Requests Pending" and self.min_pending is None:
                self._wait_among(queue)
                return
            self._not_served(queue)
            # There is too little, or no such consumer yet: its bell would ring at once, or not.
            if headers.get("Status") not in ("404", "408") or self.min_pending is not None:
                self._later(queue)
        if not queue.asked:
            self._ring()
            self.top_up()

    def _wait_among(self, queue: Queue) -> None:
        """Ask again, as one that waits: with ``no_wait`` the broker leaves what there is to those
        that do, though they are of workers that wait for a backlog."""
        how = f'"expires":{int(AMONG_S * SECOND)},"group":"{PRIORITY_GROUP}"'
        self._send(queue, 1, f'{{"batch":{queue.asked},{how}}}'.encode())

    def _not_served(self, queue: Queue) -> None:
        """There is nothing more."""
        each = self.queues.index(queue)
        self._turns = turns.not_started(self._turns, each, queue.asked)
        queue.asked, queue.waits = 0, False

    def _later(self, queue: Queue) -> None:
        queue.resting = True
        if self._retry is None and self._open:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._ring_later)

    def _ring_later(self) -> None:
        self._retry = None
        for queue in self.queues:
            queue.resting = False
        self._ring()
        self.top_up()

    async def _watch_silence(self) -> None:
        """Broker heartbeats come with every bell; without them it is dead."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            now = loop.time()
            out = any(queue.bell or queue.asked for queue in self.queues)
            lost = any(q.asked and now - q.asked_at > LOST_S for q in self.queues)
            if lost or (out and now - self._heard > SILENCE_S):
                logger.info("no sign of life from %s; asking again", self.consumers[0])
                await self.again()
            self.top_up()
