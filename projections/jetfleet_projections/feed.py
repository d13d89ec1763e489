"""Reading a stream fast, in order and without end, from a position that the reader keeps.

A short-lived pull consumer is asked with raw requests, a few at a time, while there is room; its
messages come through ``tap``. After a gap, a reconnect or silence the consumer is made
anew behind the last message that was taken over, so that nothing is skipped or doubled. Each time,
the message at the position is looked at: where it is not the one that was read, the log is another
one (made anew, or set back after a power failure), and going on would mix two histories.
"""

from __future__ import annotations

import asyncio
import calendar
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nats.aio.msg import Msg

from jetfleet import access
from jetfleet.connection import NOT_FOUND, ApiError, Connection, NoResponders
from jetfleet.errors import BrokerUnavailable
from jetfleet.streams import SECOND
from jetfleet_projections.batches import Batch
from jetfleet_projections.tap import tap

logger = logging.getLogger("jetfleet.projections.feed")

REQUEST = 1_000  # messages asked for at a time: the most that nats.conf allows
REQUESTS = 4  # at once
REQUEST_BYTES = 8 * 1024**2  # of one request
LIVE = 5_000  # messages that are worth a batch at once
NAMES = 50_000  # subjects remembered
ROOM = 60_000  # messages waiting here
ROOM_BYTES = 64 * 1024**2  # and bytes; the requests that are out may come on top
EXPIRES_S = 30
HEARTBEAT_S = 2
SILENCE_S = 3 * HEARTBEAT_S  # longer: the request died with the server
RETRY_S = 0.1
_NEXT = json.dumps(
    {
        "batch": REQUEST,
        "max_bytes": REQUEST_BYTES,
        "expires": EXPIRES_S * SECOND,
        "idle_heartbeat": HEARTBEAT_S * SECOND,
    }
).encode()
_UNSERVED = re.compile(rb"Nats-Pending-Messages: (\d+)")


class LogChanged(Exception):
    """The log holds another message at the position than the one that was read."""


@dataclass(slots=True, eq=False)
class Feed:
    """One stream, followed: ``start``, then ``gather`` and ``take`` in turn.

    Args:
        position: sequence of the last message taken over; reading goes on behind it.
        stored_ns: the broker's time of that message.
    """

    connection: Connection
    stream: str
    position: int = 0
    stored_ns: int = 0
    behind: int = 0  # messages of the stream behind the last one that arrived, as the broker said
    lost: int = 0  # messages that were gone from the stream before they were read
    # What arrived, in columns: a tuple for each message would keep the garbage collector busy.
    _subjects: list[str] = field(default_factory=list)
    _replies: list[bytes] = field(default_factory=list)
    _bodies: list[bytes] = field(default_factory=list)
    _names: dict[bytes, str] = field(default_factory=dict)  # subjects seen, as text
    _bytes: int = 0
    _wanted: int = 0  # messages asked for that have not come
    _next: int = 1  # consumer sequence of the first message that waits
    _enough: int = 1  # messages that wake who waits
    _consumer: str = ""
    _handle: Any = None
    _untap: Callable[[], None] = lambda: None
    _broken: bool = True
    _heard: float = 0.0
    _opened: float = float("-inf")
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        """Begin to follow; ``gather`` then waits for the broker where needed."""
        self.connection.on_reconnect.append(self._on_reconnect)

    async def stop(self) -> None:
        self.connection.on_reconnect.remove(self._on_reconnect)
        await self._close()

    @property
    def waiting(self) -> int:
        """Messages that have arrived and were not taken."""
        return len(self._replies)

    async def gather(self, linger_s: float, hurry: asyncio.Event) -> None:
        """Return when messages wait: ``LIVE`` of them, or fewer for ``linger_s`` seconds.

        ``hurry``: somebody asks for what is there, so do not linger.

        Raises:
            LogChanged: found when the consumer had to be made anew.
        """
        while self._broken or not self._replies:
            if self._broken:  # whatever waits: something may be missing among it
                await self._open()
            else:
                await self._wait(1, HEARTBEAT_S)
        if len(self._replies) < LIVE and not hurry.is_set():
            hurried = asyncio.ensure_future(hurry.wait())
            hurried.add_done_callback(lambda _: self._wake.set())
            try:
                await self._wait(LIVE, linger_s)
            finally:
                hurried.cancel()

    async def take(self, most: int) -> Batch:
        """The messages that wait, at most ``most``; moves the position. Empty: they must be read
        again, because some are missing among them."""
        batch = self._cut(most) if self._replies and not self._broken else Batch(self.stream)
        self._heard = asyncio.get_running_loop().time()
        await self._ask()
        return batch

    def _cut(self, most: int) -> Batch:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<ns>.<pending>
        replies = self._replies[:most]
        first, last = int(replies[0].split(b".")[6]), int(replies[-1].split(b".")[6])
        if first != self._next or last - first + 1 != len(replies):
            logger.warning("%s: messages are missing on the way; reading them again", self.stream)
            self._broken = True
            return Batch(self.stream)
        batch = Batch(self.stream, subjects=self._subjects[:most], bodies=self._bodies[:most])
        for reply in replies:
            words = reply.split(b".")
            batch.seqs.append(int(words[5]))
            batch.times.append(int(words[7]))
        self._note_lost(batch.seqs[0])
        for column in (self._subjects, self._replies, self._bodies):
            del column[:most]
        self._bytes -= sum(map(len, batch.bodies))
        self._next = last + 1
        self.behind = int(replies[-1].split(b".")[8])
        self.position, self.stored_ns = batch.seqs[-1], batch.times[-1]
        return batch

    def _note_lost(self, first: int) -> None:
        if self._next == 1 and first > self.position + 1:
            gone = first - self.position - 1
            self.lost += gone
            logger.warning(
                "%s: %d messages behind %d are gone from the log (aged out or deleted)",
                self.stream, gone, self.position,
            )  # fmt: skip

    async def _wait(self, enough: int, seconds: float) -> None:
        """Until so many messages wait, something is wrong, or the time is over."""
        self._enough = enough
        self._wake.clear()
        if len(self._replies) >= enough or self._broken:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            if asyncio.get_running_loop().time() - self._heard > SILENCE_S and not self._replies:
                self._broken = True

    async def _on_reconnect(self) -> None:
        self._broken = True
        self._wake.set()

    # -- the consumer

    async def _open(self) -> None:
        """Make the consumer behind the position, waiting for the broker where needed."""
        await self._close()
        opened = self._opened
        self._opened = asyncio.get_running_loop().time()
        if self._opened - opened < 1:
            await asyncio.sleep(RETRY_S)  # whatever breaks it at once will need a moment
        waited = 0
        while True:
            try:
                return await self._create()
            except (ApiError, BrokerUnavailable, NoResponders) as error:
                level = logging.INFO if waited == 0 else logging.DEBUG
                logger.log(level, "%s cannot be read yet: %s", self.stream, error)
                waited += 1
                await self._close()
                await asyncio.sleep(RETRY_S)

    async def _create(self) -> None:
        await self._check_log()
        client, name = self.connection.nats, f"p{secrets.token_hex(8)}"
        inbox = f"{access.inbox(self.connection.user)}.{name}"
        self._handle = await client.subscribe(inbox, cb=self._on_untapped)
        self._untap = tap(client, self._handle._id, self._on_message)
        answer = await self.connection.api(
            f"CONSUMER.CREATE.{self.stream}.{name}",
            {
                "stream_name": self.stream,
                "action": "create",
                "config": {
                    "name": name,
                    "deliver_policy": "by_start_sequence",
                    "opt_start_seq": self.position + 1,
                    "ack_policy": "none",
                    "mem_storage": True,
                    "num_replicas": 1,
                    "max_waiting": 16,
                    "inactive_threshold": 60 * SECOND,
                },
            },
        )
        self._consumer, self._next, self.behind = name, 1, answer["num_pending"]
        self._broken = False
        self._heard = asyncio.get_running_loop().time()
        await self._ask()

    async def _check_log(self) -> None:
        """Raises LogChanged."""
        if not self.position:
            return
        try:
            answer = await self.connection.api(
                f"STREAM.MSG.GET.{self.stream}", {"seq": self.position}
            )
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            info = await self.connection.api(f"STREAM.INFO.{self.stream}")
            if info["state"]["last_seq"] < self.position:
                raise LogChanged(f"{self.stream} ends before {self.position}") from None
            return  # aged out; it cannot be compared any more
        if nanoseconds(answer["message"]["time"]) != self.stored_ns:
            raise LogChanged(f"{self.stream} has another message at {self.position}")

    async def _close(self) -> None:
        self._subjects, self._replies, self._bodies = [], [], []
        self._bytes, self._wanted, self._broken = 0, 0, True
        handle, self._handle = self._handle, None
        consumer, self._consumer = self._consumer, ""
        if handle is None:
            return
        self._untap()
        if self.connection.connected:
            try:
                await handle.unsubscribe()
                if consumer:
                    await self.connection.publish(
                        f"$JS.API.CONSUMER.DELETE.{self.stream}.{consumer}", b""
                    )
            except Exception as error:
                logger.debug("%s: consumer %s is left to end: %s", self.stream, consumer, error)

    async def _ask(self) -> None:
        """Ask for more while there is room."""
        while not self._broken and self._room() and self._wanted <= (REQUESTS - 1) * REQUEST:
            self._wanted += REQUEST
            try:
                await self.connection.publish(
                    f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self._consumer}",
                    _NEXT,
                    reply=self._handle.subject,
                )
            except BrokerUnavailable:
                self._broken = True

    def _room(self) -> bool:
        return len(self._replies) < ROOM and self._bytes < ROOM_BYTES

    def _on_message(self, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        if not reply:
            self._on_status(headers)
            return
        name = self._names.get(subject)
        if name is None:
            if len(self._names) > NAMES:
                self._names.clear()
            name = self._names[subject] = str(subject, "utf-8", "replace")
        self._subjects.append(name)
        self._replies.append(reply)
        self._bodies.append(body)
        self._bytes += len(body)
        self._wanted -= 1
        if len(self._replies) == self._enough:
            self._wake.set()
        if not self._wanted % REQUEST:
            self.connection.spawn(self._ask())

    def _on_status(self, headers: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        status = headers[9:12]  # NATS/1.0 <status> <text>
        if status == b"100":
            return  # heartbeat
        unserved = _UNSERVED.search(headers)
        if unserved is not None:  # a request ended: its time or its bytes are over
            self._wanted -= int(unserved[1])
            self.connection.spawn(self._ask())
        else:  # 409 consumer deleted, 503 no responders
            logger.info("%s: reading anew: %s", self.stream, headers[9:].decode().strip())
            self._broken = True
            self._wake.set()

    async def _on_untapped(self, message: Msg) -> None:
        """Messages that came before the tap was on (or through a client that has none)."""
        self._on_message(
            message.subject.encode(), message.reply.encode(), _raw(message), message.data
        )


def nanoseconds(text: str) -> int:
    """An RFC 3339 time in UTC, with up to nine decimals, as nanoseconds since 1970."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
    return seconds * SECOND + int(fraction.ljust(9, "0") or 0)


def _raw(message: Msg) -> bytes:
    headers: dict[str, str] = dict(message.headers or {})
    status, text = headers.pop("Status", ""), headers.pop("Description", "")
    lines = "".join(f"\r\n{name}: {value}" for name, value in headers.items())
    return f"NATS/1.0 {status} {text}{lines}".encode()
