"""Reading streams: ordered, from any position, once or for ever, over broker restarts.

A short-lived pull consumer, asked with raw requests for many messages at a time, delivers as fast
as nats-py can receive. Its position is ours, not the broker's: after a gap, a restart or silence
the consumer is made anew right behind the last message seen, so nothing is skipped or doubled.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from nats.aio.msg import Msg

from jetfleet import access
from jetfleet.connection import ApiError, Connection, Subscription
from jetfleet.errors import BrokerUnavailable
from jetfleet.events import AnyEvent, InvalidEvent, decode
from jetfleet.streams import SECOND

logger = logging.getLogger("jetfleet.log")

Start = int | datetime | Literal["all", "new"]
REQUEST = 4_000  # messages asked for at a time (nats.conf allows 10,000); topped up at half
HELD = 4 * REQUEST  # messages that may wait for a slow reader; more are not asked for
MAX_YIELD = 4_000
EXPIRES_S = 30
HEARTBEAT_S = 2
SILENCE_S = 3 * HEARTBEAT_S  # longer: the request died with the server
RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a stream as it lies there."""

    seq: int
    subject: str
    body: bytes
    headers: dict[str, str] | None
    timestamp_ns: int

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.timestamp_ns / 1e9, UTC)


@dataclass(frozen=True, slots=True)
class Record:
    """A message read as an event; ``event`` is None, and ``error`` says why, when it is not one."""

    stream: str
    seq: int
    subject: str
    time: datetime
    body: bytes
    event: AnyEvent | None
    error: str = ""


def record(stream: str, message: Message) -> Record:
    """Decode a message defensively."""
    event, error = None, ""
    try:
        event = decode(message.body)
    except InvalidEvent as invalid:
        error = str(invalid)
    return Record(stream, message.seq, message.subject, message.time, message.body, event, error)


@dataclass(slots=True)
class LogReader:
    """One pass over a stream; iterate ``batches()``.

    Args:
        subjects: filter; empty: everything.
        start: a sequence, a time, "all", or "new".
        follow: go on with what is appended; otherwise end at what was there when reading began.
    """

    connection: Connection
    stream: str
    subjects: Sequence[str] = ()
    start: Start = "all"
    follow: bool = False
    caught_up: asyncio.Event = field(default_factory=asyncio.Event)
    _next: int | None = None  # stream sequence after the last one seen
    _arrived: list[Message] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _subscription: Subscription | None = None
    _consumer: str = ""
    _expected: int = 1  # consumer sequence of the next message
    _wanted: int = 0  # messages asked for and not yet delivered
    _pending: int = 0  # messages behind the last one seen
    _broken: bool = True
    _heard: float = 0.0

    async def batches(self) -> AsyncGenerator[list[Message], None]:
        """Messages in order, as many at a time as have arrived (at most ``MAX_YIELD``)."""
        self.connection.on_reconnect.append(self._on_reconnect)
        try:
            while True:
                if self._broken:
                    await self._open()
                if self._arrived:
                    batch = self._arrived[:MAX_YIELD]
                    del self._arrived[:MAX_YIELD]
                    yield batch
                    if not self._arrived:
                        self._top_up()
                elif self._pending == 0 and not self.caught_up.is_set():
                    self.caught_up.set()
                elif self._pending == 0 and not self.follow:
                    return
                else:
                    await self._wait()
        finally:
            self.connection.on_reconnect.remove(self._on_reconnect)
            await self._close()

    async def _on_reconnect(self) -> None:
        self._broken = True
        self._wake.set()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._wake.clear()
        if self._arrived or self._broken:
            return
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._wake.wait()
        except TimeoutError:
            if loop.time() - self._heard > SILENCE_S:
                self._broken = True  # no message and no heartbeat: ask anew

    async def _open(self) -> None:
        """Make the consumer right behind what was seen, waiting for the broker where needed."""
        while True:
            await self._close()
            try:
                await self._create()
            except (ApiError, BrokerUnavailable) as error:
                logger.info("cannot read %s yet: %s", self.stream, error)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _create(self) -> None:
        name = f"r{secrets.token_hex(8)}"
        inbox = f"{access.inbox(self.connection.user)}.{name}"
        self._subscription = await self.connection.subscribe(inbox, self._on_message)
        config: dict[str, Any] = {
            "name": name,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "max_waiting": 16,
            "inactive_threshold": 60 * SECOND,
            **self._position(),
        }
        verb = f"CONSUMER.CREATE.{self.stream}.{name}"
        if len(self.subjects) == 1:
            config["filter_subject"] = self.subjects[0]
            verb += f".{self.subjects[0]}"
        elif self.subjects:
            config["filter_subjects"] = list(self.subjects)
        answer = await self.connection.api(
            verb, {"stream_name": self.stream, "config": config, "action": "create"}
        )
        self._consumer, self._expected, self._wanted = name, 1, 0
        self._pending = answer["num_pending"]
        if self._next is None:
            self._next = answer["delivered"]["stream_seq"] + 1
        self._broken = False
        self._top_up()

    def _position(self) -> dict[str, Any]:
        if self._next is not None:
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, self._next)}
        if isinstance(self.start, datetime):
            return {
                "deliver_policy": "by_start_time",
                "opt_start_time": self.start.astimezone(UTC).isoformat(),
            }
        if isinstance(self.start, int):
            return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, self.start)}
        return {"deliver_policy": self.start}

    def _top_up(self) -> None:
        if self._broken or self._wanted > REQUEST // 2 or len(self._arrived) > HELD:
            return
        batch = REQUEST - self._wanted
        self._wanted += batch
        self._heard = asyncio.get_running_loop().time()
        body = {
            "batch": batch,
            "expires": EXPIRES_S * SECOND,
            "idle_heartbeat": HEARTBEAT_S * SECOND,
        }
        assert self._subscription is not None
        try:
            self.connection.send(
                f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self._consumer}",
                json.dumps(body).encode(),
                self._subscription.subject,
            )
        except BrokerUnavailable:
            self._broken = True

    def _on_message(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        if not message.reply:
            self._on_status(message)
            return
        if f".{self._consumer}." not in message.reply:
            return  # a late message of a consumer given up
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<ns>.<pending>
        *_, stream_seq, consumer_seq, nanoseconds, pending = message.reply.rsplit(".", 4)
        if int(consumer_seq) != self._expected:
            self._broken = True  # a gap: messages were lost on the way
        if self._broken:
            self._wake.set()
            return
        self._expected += 1
        self._wanted -= 1
        self._pending = int(pending)
        self._next = int(stream_seq) + 1
        self._arrived.append(
            Message(
                int(stream_seq), message.subject, message.data, message.headers, int(nanoseconds)
            )
        )
        self._top_up()
        self._wake.set()

    def _on_status(self, message: Msg) -> None:
        status = (message.headers or {}).get("Status", "")
        if status == "100":
            return  # heartbeat
        if status in ("404", "408"):  # the request ended: nothing there, or its time is over
            self._wanted = 0
            self._top_up()
        elif status:  # 409 consumer deleted, 503 no responders
            self._broken = True
        self._wake.set()

    async def _close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        await subscription.stop()
        if self._consumer and self.connection.connected:
            try:
                await self.connection.publish(
                    f"$JS.API.CONSUMER.DELETE.{self.stream}.{self._consumer}", b""
                )
            except BrokerUnavailable:
                logger.debug("consumer %s is left to end by itself", self._consumer)
        self._consumer = ""


async def read_records(reader: LogReader) -> AsyncIterator[Record]:
    """The messages of a reader as events, one by one."""
    async for batch in reader.batches():
        for message in batch:
            yield record(reader.stream, message)
