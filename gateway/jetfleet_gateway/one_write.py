"""uvicorn's HTTP protocol, writing an answer's head and body at once.

uvicorn writes the head when an application starts its answer and the body when that comes. Each is
a system call here and a wake-up of the reader there, which is much of a short answer's time.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD = b"HTTP/1.1 "
_INTERIM = b"HTTP/1.1 1"  # 100 Continue: the client sends its body only after it


class OneWrite:
    """A transport that holds a head back for the body that follows it in the same turn of the loop.

    Without one (an event stream that has nothing to say yet) the head leaves at the turn's end.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            self._head, data = b"", self._head + data
        elif data.startswith(_HEAD) and not data.startswith(_INTERIM):
            self._head = data
            self._loop.call_soon(self._let_go)
            return
        self._transport.write(data)

    def _let_go(self) -> None:
        if self._head:
            self._head, data = b"", self._head
            self._transport.write(data)

    def close(self) -> None:
        """Close, after what is held back was sent."""
        self._let_go()
        self._transport.close()


class OneWriteProtocol(HttpToolsProtocol):
    """See the module."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(OneWrite(transport))  # type: ignore[arg-type]
