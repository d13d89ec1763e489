"""nats-py with two shortcuts, for the path of an invocation.

Profiled with 1 KiB round trips, nats-py spends a third of a message on handing it from the reader
to a subscription's queue to a task, and of a publish on waking its flusher. ``FastNats`` calls
synchronous callbacks straight from the reader and writes straight to the socket; everything else
(connecting, reconnecting, pings, requests, async callbacks, WebSockets) is nats-py's own. The few
internals it leans on are named in ``_INTERNALS``; when a future nats-py lacks one, the shortcuts
are off and only speed is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

logger = logging.getLogger("jetfleet.fastlane")
Take = Callable[[Msg], None]
_INTERNALS = (
    "_process_msg", "_flush_pending", "_send_command", "_parse_header_lines", "_remove_sub",
)  # fmt: skip
AVAILABLE = all(hasattr(Nats, name) for name in _INTERNALS)
WRITE_BUFFER = 1024 * 1024  # bytes; beyond it the flusher waits for the socket, and so do we
_PLAIN = b"NATS/1.0\r\n"  # a status would stand in this line
_END = b"\r\n\r\n"


class FastNats(Nats):  # type: ignore[misc]  # nats-py is untyped here
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[int, Take] = {}
        self._scheduled = False  # a write at the end of this turn of the loop
        self._pending: list[bytes] = []

    # -- receiving

    async def subscribe_direct(self, subject: str, take: Take) -> Subscription:
        """Call ``take``, which must not block or raise, from the reader itself, in order."""

        async def slowly(message: Msg) -> None:
            take(message)

        # The entry is there before the broker can answer: the reader runs only when we wait.
        if AVAILABLE:
            self._direct[self._sid + 1] = take
        return await self.subscribe(subject, cb=slowly)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        take = self._direct.get(sid)
        if take is None or sid not in self._subs:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        take(
            Msg(
                _client=self,
                subject=subject.decode(),
                reply=reply.decode(),
                data=data,
                headers=await self._headers(headers) if headers else None,
                _sid=sid,
            )
        )

    async def _headers(self, block: bytes) -> dict[str, str] | None:
        """The usual block, no status and plain names, without the general parser (10x slower)."""
        if block.startswith(_PLAIN):
            lines = block[len(_PLAIN) : -len(_END)].decode("utf-8", "replace").split("\r\n")
            return {name: value.strip() for name, _, value in (x.partition(":") for x in lines)}
        parsed: dict[str, str] | None = await self._process_headers(block)
        return parsed

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._direct.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    # -- sending

    async def publish_trusted(
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
        if len(body) > self._max_payload:
            raise nats.errors.MaxPayloadError
        if not self.is_connected and len(body) + self._pending_data_size > self._max_pending_size:
            raise nats.errors.OutboundBufferLimitError
        if header:
            line = f"HPUB {subject} {reply} {len(header)} {len(header) + len(body)}\r\n"
        else:
            line = f"PUB {subject} {reply} {len(body)}\r\n"
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(body)
        await self._send_command(b"".join((line.encode(), header, body, b"\r\n")))
        await self._flush_pending()

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        """Write at the end of this turn of the loop, all at once, instead of waking the flusher."""
        transport = self._transport
        if (
            AVAILABLE
            and not force_flush
            and self.is_connected
            and type(transport) is TcpTransport
            and transport._io_writer.transport.get_write_buffer_size() < WRITE_BUFFER
        ):
            if not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._write_out)
            return None
        return await super()._flush_pending(force_flush)

    def _write_out(self) -> None:
        self._scheduled = False
        if self._pending and self.is_connected and self._transport is not None:
            pending = self._pending
            self._pending, self._pending_data_size = [], 0
            self._transport.writelines(pending)
