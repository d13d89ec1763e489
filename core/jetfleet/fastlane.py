"""nats-py with shortcuts, for the path of an invocation.

Profiled with 1 KiB round trips, nats-py spends most of a message on taking it apart and handing it
from the reader to a subscription's queue to a task, and most of a publish on checks and on waking
its flusher. ``FastNats`` calls synchronous callbacks straight from the reader and writes straight
to the socket; everything else (connecting, reconnecting, pings, requests, async callbacks,
WebSockets) is nats-py's own. The internals it leans on are named in ``_INTERNALS``; when a future
nats-py lacks one, the shortcuts are off and only speed is lost (docs/decisions/0004).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser

Take = Callable[[Msg], None]
_INTERNALS = ("_process_msg", "_flush_pending", "_send_command", "_process_headers", "_remove_sub")
AVAILABLE = all(hasattr(Nats, name) for name in _INTERNALS)
WRITE_BUFFER = 1024 * 1024  # bytes; beyond it the flusher waits for the socket
END_S = 2.0  # a peer is waited for at most so long
IDLE_S = 0.0003  # without a write for so long: nothing to wait for
_PLAIN = b"NATS/1.0\r\n"  # a status would stand in this line
_LINE = b"\r\n"
_MSG_ID = b"\r\nNats-Msg-Id:"


class FastMsg(Msg):  # type: ignore[misc]  # nats-py is untyped here
    """A message whose headers are read when somebody asks for them."""

    def __init__(
        self, client: Nats, subject: str, reply: str, data: bytes, header: bytes | None
    ) -> None:
        self._client = client
        self.subject = subject
        self.reply = reply
        self.data = data
        self._header = header
        self._ackd = False

    @property
    def headers(self) -> dict[str, str] | None:
        """By name; of several of one name the last."""
        if not self._header:
            return None
        lines = self._header[len(_PLAIN) : -4].decode("utf-8", "replace").split("\r\n")
        return {name: text.strip() for name, _, text in (x.partition(":") for x in lines)}


def msg_id_of(message: Msg) -> str:
    """The message id that its publisher gave it, or nothing; the other headers are not read."""
    header = message._header if isinstance(message, FastMsg) else None
    if not header:
        return str((message.headers or {}).get("Nats-Msg-Id", ""))
    at = header.find(_MSG_ID)
    if at < 0:
        return ""
    at += len(_MSG_ID)
    return header[at : header.index(_LINE, at)].decode("utf-8", "replace").strip()


class FastParser(Parser):  # type: ignore[misc]  # nats-py is untyped here
    """Messages without regular expressions; every other line goes to nats-py's parser."""

    def reset(self) -> None:
        super().reset()
        self._rest = b""

    async def parse(self, data: bytes = b"") -> None:
        buffer = self._rest + data if self._rest else bytes(data)
        at = 0
        while (end := buffer.find(_LINE, at)) >= 0:
            if not buffer.startswith((b"MSG ", b"HMSG "), at):
                await super().parse(buffer[at : end + 2])
                at = end + 2
                continue
            # MSG <subject> <sid> [reply] <size>, HMSG <subject> <sid> [reply] <header> <size>
            words = buffer[at:end].split()
            size, with_header = int(words[-1]), len(words[0]) == 4
            begin = end + 2
            if len(buffer) < begin + size + 2:
                break
            body = begin + (int(words[-2]) if with_header else 0)
            reply = words[3] if len(words) == 5 + with_header else b""
            header = buffer[begin:body] if with_header else None
            data = buffer[body : begin + size]
            if not self.nc.take_direct(int(words[2]), words[1], reply, data, header):
                await self.nc._process_msg(int(words[2]), words[1], reply, data, header)
            at = begin + size + 2
        self._rest = buffer[at:]


class FastNats(Nats):  # type: ignore[misc]  # nats-py is untyped here
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[int, Take] = {}
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._scheduled = False  # a write at the end of this turn of the loop
        self._written = 0.0  # when one was last made
        self._alone = True  # that one carried a single message
        self._pending: list[bytes] = []
        if AVAILABLE:
            self._ps: Parser = FastParser(self)

    async def abandon(self, connecting: asyncio.Future[None]) -> None:
        """Take back a connect, and close what it has opened: nats-py leaves that open."""
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        self._closed_cb = self._disconnected_cb = None  # nobody had it: its end is no news
        await self.end()

    async def end(self) -> None:
        """Close for good; returns when nothing is open any more, whatever it was in the middle of.

        nats-py's own ``close`` returns at once while another task of its is at it, and that task
        may be cancelled; a WebSocket's HTTP session then stays open. What it raises when it writes
        to what the server has closed (with uvloop a RuntimeError) says nothing new.
        """
        await asyncio.gather(self.close(), return_exceptions=True)
        for subscription in self._subs.values():
            if subscription._wait_for_msgs_task is not None:
                subscription._wait_for_msgs_task.cancel()
        transport = self._transport
        if transport is None:
            return
        session = getattr(transport, "_client", None)
        transport.close()
        closing = asyncio.ensure_future(transport.wait_closed())
        await asyncio.wait({closing}, timeout=END_S)
        closing.cancel()
        # A connect that was cancelled may have waited for the same, and cancelled that.
        await asyncio.gather(closing, return_exceptions=True)
        if session is not None:
            await session.close()

    async def _connect_to_server(self, s: Any) -> None:
        """Connect anew: nats-py leaves open what it gave up, as a broker that said nothing."""
        if isinstance(self._transport, TcpTransport):
            self._transport.close()
        await super()._connect_to_server(s)

    # -- receiving

    async def subscribe_direct(self, subject: str, take: Take) -> Subscription:
        """Call ``take``, which must not block or raise, from the reader itself, in order."""

        async def slowly(message: Msg) -> None:
            take(message)

        # The entry is there before the broker can answer: the reader runs only when we wait.
        if AVAILABLE:
            self._direct[self._sid + 1] = take
        return await self.subscribe(subject, cb=slowly)

    def take_direct(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, header: bytes | None
    ) -> bool:
        """Hand a plain message to its subscription's ``take``; False: it has none, or a status."""
        take = self._direct.get(sid)
        if take is None or (header and not header.startswith(_PLAIN)):
            return False
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        take(FastMsg(self, subject.decode(), reply.decode(), data, header))
        return True

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        take = self._direct.get(sid)
        if take is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        parsed = await self._process_headers(headers) if headers else None
        take(Msg(self, subject.decode(), reply.decode(), data, parsed))

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._direct.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    # -- sending

    def publish_trusted(
        self, subject: str, body: bytes, reply: str = "", header: bytes = b""
    ) -> None:
        """Publish with subject and header made by us of validated parts: nothing is checked again.

        Args:
            header: a whole header block (``NATS/1.0`` to the empty line), or nothing.

        Raises:
            nats.errors.Error: closed, the payload is too large, or the buffer is full.
        """
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        size = len(body) + len(header)
        if size > self._max_payload:
            raise nats.errors.MaxPayloadError
        if size + self._pending_data_size > self._max_pending_size:
            raise nats.errors.OutboundBufferLimitError
        if header:
            line = f"HPUB {subject} {reply} {len(header)} {size}\r\n"
        else:
            line = f"PUB {subject} {reply} {size}\r\n"
        command = b"".join((line.encode(), header, body, _LINE))
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += size
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._flush_fast():
            _keep(self._loop.create_task(super()._flush_pending()))

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        """Write at once, or when busy at the end of this turn of the loop, without the flusher."""
        if not force_flush and self._flush_fast():
            return None
        return await super()._flush_pending(force_flush)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """A ping behind what was sent before: nats-py's overtakes what its flusher still holds."""
        self._write_out()
        await super()._send_ping(future)

    def together(self) -> None:
        """What is sent in this turn of the loop leaves in one write at its end."""
        if not self._scheduled and self._writable():
            self._scheduled = True
            self._loop.call_soon(self._write_out)

    def _writable(self) -> bool:
        """Whether we may write to the socket ourselves."""
        transport = self._transport
        return (
            AVAILABLE
            and self.is_connected
            and type(transport) is TcpTransport
            and transport._io_writer.transport.get_write_buffer_size() <= WRITE_BUFFER
        )

    def _flush_fast(self) -> bool:
        """Whether what is pending is written, or will be in this turn of the loop."""
        if self._scheduled:
            return True
        if not self._writable():
            return False
        if self._alone and self._now() - self._written > IDLE_S:
            self._write_out()
        else:  # busy: let others of this turn come along
            self._scheduled = True
            self._loop.call_soon(self._write_out)
        return True

    def _write_out(self) -> None:
        self._scheduled = False
        if self._pending and self.is_connected and self._transport is not None:
            pending = self._pending
            self._pending, self._pending_data_size = [], 0
            self._alone, self._written = len(pending) == 1, self._now()
            self._transport.writelines(pending)


_FLUSHES: set[asyncio.Task[Any]] = set()


def _keep(task: asyncio.Task[Any]) -> None:
    """A task that nobody refers to may be collected before it ran."""
    _FLUSHES.add(task)
    task.add_done_callback(_FLUSHES.discard)
