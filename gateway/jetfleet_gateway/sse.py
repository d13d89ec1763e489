"""Server-sent events: a response that streams, keeps the connection alive, and notices its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from jetfleet.errors import JetfleetError
from jetfleet_gateway.problems import problem_of
from jetfleet_gateway.refusals import InternalError

logger = logging.getLogger("jetfleet.gateway")

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE_S = 15.0
_COMMENT = b": keep-alive\n\n"
EXAMPLE = 'event: chunk\ndata: "Hel"\n\nevent: outcome\ndata: {"state":"completed", …}\n\n'


def event(name: str, data: Any) -> bytes:
    """One event; its data is one line of JSON."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), to_json(data, inf_nan_mode="null"))


class EventStream(Response):
    """Sends what ``events`` yields as it comes.

    Args:
        events: encoded events (``event``). An error that it raises becomes a last event
            ``problem`` with the problem document as its data.
        limit_s: when ``events`` ends at the latest (None: by itself); then what ``at_limit`` gives
            comes last.
        on_gone: called when the client goes away before the end.
        keep_alive_s: a comment is sent after this much silence.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        headers: Mapping[str, str] | None = None,
        limit_s: float | None = None,
        at_limit: Callable[[], AsyncIterator[bytes]] | None = None,
        on_gone: Callable[[], Awaitable[None]] | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.events = events
        self.limit_s = limit_s
        self.at_limit = at_limit
        self.on_gone = on_gone
        self.keep_alive_s = keep_alive_s
        self._sent_at = 0.0
        # No proxy may hold events back.
        self.init_headers(
            {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pump = asyncio.ensure_future(self._pump(send))
        side = [
            asyncio.ensure_future(self._keep_alive(send)),
            asyncio.ensure_future(until_gone(receive)),
        ]
        try:
            await asyncio.wait({pump, *side}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished = pump.done()
            await cancel_all(pump, *side)
        if finished:
            pump.result()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif self.on_gone is not None:
            await self.on_gone()

    async def _pump(self, send: Send) -> None:
        try:
            async with asyncio.timeout(self.limit_s), contextlib.aclosing(self.events):
                await self._send_all(send, self.events)
        except TimeoutError:
            if self.at_limit is not None:
                await self._send_all(send, self.at_limit())

    async def _send_all(self, send: Send, events: AsyncIterator[bytes]) -> None:
        async for each in _told(events):
            await self._send(send, each)

    async def _send(self, send: Send, data: bytes) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        while True:
            await asyncio.sleep(self._sent_at + self.keep_alive_s - loop.time())
            if loop.time() - self._sent_at >= self.keep_alive_s:
                await self._send(send, _COMMENT)


async def _told(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """``events``, with their error, if any, as the last one."""
    try:
        async for each in events:
            yield each
    except JetfleetError as error:
        yield _problem(error)
    except Exception as error:
        logger.exception("an event stream broke")
        yield _problem(InternalError(str(error)))


def _problem(error: JetfleetError) -> bytes:
    return event("problem", problem_of(error).model_dump(exclude_none=True))


async def until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel_all(*tasks: asyncio.Future[Any]) -> None:
    """Cancel and wait; results and errors stay with the tasks."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
