"""Publishes that wait for the broker's word, many at a time, over reconnects.

One inbox and one timer serve them all. What has a message id is sent again after a reconnect, and
the broker drops what it already has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import nats.errors
from nats.aio.msg import Msg
from pydantic_core import from_json

from jetfleet.errors import ApiError, BrokerUnavailable, JetfleetError, LogFull, WrongSequence
from jetfleet.fastlane import FastNats

STORE_TIMEOUT_S = 5.0
RESEND_WAIT_S = 0.05  # after a restart, until JetStream is up; or until a full buffer is sent
SWEEP_S = 0.25
# Error codes of the JetStream API (nats-server, errors.json).
WRONG_LAST_SEQUENCE = 10071
FULL = {10023, 10047, 10077, 10122}  # insufficient resources, storage or limits exceeded
_PASSING = (nats.errors.ConnectionClosedError, nats.errors.OutboundBufferLimitError)


@dataclass(frozen=True, slots=True)
class Stored:
    """The broker's word that an event is in the log."""

    stream: str
    seq: int
    duplicate: bool = False


class Answer(Protocol):
    """Who hears what became of a publish; a future is one."""

    def done(self) -> bool: ...

    def set_result(self, stored: Stored, /) -> None: ...

    def set_exception(self, error: JetfleetError, /) -> None: ...


@dataclass(slots=True)
class _Pending:
    """A stored publish that has no answer yet."""

    answer: Answer
    subject: str
    body: bytes
    header: bytes
    deadline: float
    repeatable: bool

    def fail(self, error: JetfleetError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(slots=True, eq=False)
class Stores:
    """The stored publishes of one connection.

    Args:
        client: the connection's present client; it changes when the connection is dialled anew.
        prefix: inbox subject up to the number of a publish.
    """

    client: Callable[[], FastNats]
    prefix: str
    closed: bool = False
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _pending: dict[int, _Pending] = field(default_factory=dict)
    _counter: int = 0
    _sweeper: asyncio.TimerHandle | None = None

    async def store(
        self, subject: str, body: bytes, header: bytes, timeout_s: float | None, *, again: bool
    ) -> Stored:
        """See ``Connection.store``; ``again``: it may be sent again."""
        future: asyncio.Future[Stored] = self._loop.create_future()
        number = self.begin(subject, body, header, timeout_s, future, again=again)
        try:
            return await future
        finally:
            self.end(number)

    def begin(
        self,
        subject: str,
        body: bytes,
        header: bytes,
        timeout_s: float | None,
        answer: Answer,
        *,
        again: bool,
    ) -> int:
        """Send it; ``answer`` hears what becomes of it, until ``end`` of this number."""
        if self.closed:
            raise BrokerUnavailable(f"cannot publish to {subject}: the connection is closed")
        self._counter = number = self._counter + 1
        deadline = float("inf") if timeout_s is None else self._loop.time() + timeout_s
        self._pending[number] = entry = _Pending(answer, subject, body, header, deadline, again)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        try:
            self._send(number, entry)
        except BaseException:
            self.end(number)
            raise
        return number

    def end(self, number: int) -> None:
        """Nobody waits for it any more."""
        del self._pending[number]

    def _send(self, number: int, entry: _Pending) -> None:
        try:
            self.client().publish_trusted(
                entry.subject, entry.body, f"{self.prefix}{number}", entry.header
            )
        except nats.errors.Error as error:
            if not (entry.repeatable and isinstance(error, _PASSING)):
                entry.fail(BrokerUnavailable(f"cannot publish to {entry.subject}: {error}"))
            elif self.client().is_connected:  # too much at once; else it is sent on reconnecting
                self._loop.call_later(RESEND_WAIT_S, self._resend, number)

    def on_ack(self, message: Msg) -> None:
        """The broker's answer to one of them."""
        number = int(message.subject[len(self.prefix) :])
        entry = self._pending.get(number)
        if entry is None or entry.answer.done():
            return
        if not message.data:  # 503: JetStream is not (yet) there
            if entry.repeatable:
                self._loop.call_later(RESEND_WAIT_S, self._resend, number)
            else:
                entry.fail(BrokerUnavailable(f"no stream takes {entry.subject}"))
            return
        answer = from_json(message.data)
        if "error" in answer:
            entry.fail(api_error(answer["error"]))
        else:
            entry.answer.set_result(
                Stored(answer["stream"], answer["seq"], answer.get("duplicate", False))
            )

    def _resend(self, number: int) -> None:
        entry = self._pending.get(number)
        if entry is not None and not self.closed:
            self._send(number, entry)

    def send_again(self) -> None:
        """After a reconnect: what was under way may be lost."""
        for number, entry in list(self._pending.items()):
            if entry.repeatable and not entry.answer.done():
                self._send(number, entry)

    def _sweep(self) -> None:
        """End what waited too long; one timer for all instead of one each."""
        now = self._loop.time()
        for entry in self._pending.values():
            if entry.deadline <= now:
                entry.fail(
                    BrokerUnavailable(
                        f"the broker did not answer for {entry.subject} in time; "
                        "it may have been stored: repeat it with the same key"
                    )
                )
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if self._pending else None

    def close(self) -> None:
        """End those that wait."""
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for entry in self._pending.values():
            entry.fail(BrokerUnavailable("the connection was closed before the broker answered"))


def header_block(
    msg_id: str | None, trace: str | None = None, expect: tuple[int, str] | None = None
) -> bytes:
    """The headers of a stored publish, as they go over the wire; see ``Connection.store``."""
    header = ""
    if msg_id is not None:
        header = f"Nats-Msg-Id: {msg_id}\r\n"
    if trace is not None:
        header += f"traceparent: {trace}\r\n"
    if expect is not None:
        header += f"Nats-Expected-Last-Subject-Sequence: {expect[0]}\r\n"
        header += f"Nats-Expected-Last-Subject-Sequence-Subject: {expect[1]}\r\n"
    return f"NATS/1.0\r\n{header}\r\n".encode() if header else b""


def api_error(error: Mapping[str, Any]) -> JetfleetError:
    """The error that an ``error`` object of the JetStream API stands for."""
    status, code = error.get("code", 0), error.get("err_code", 0)
    text = error.get("description", "")
    if code == WRONG_LAST_SEQUENCE:
        return WrongSequence(status, code, text)
    if code in FULL:
        return LogFull(f"the log refuses new events: {text}; free space or raise its limits")
    return ApiError(status, code, text)
