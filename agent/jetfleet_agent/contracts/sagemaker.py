"""The sagemaker contract: a container for Amazon SageMaker, or a server like one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from jetfleet.specs import ModelSpec
from jetfleet_agent.contracts import Call, InvalidOutput
from jetfleet_agent.contracts.http import (
    HttpContract,
    HttpSession,
    dump,
    parse,
    refusal,
    reported,
)
from jetfleet_agent.contracts.sse import EventReader, EventTooLarge
from jetfleet_agent.runtimes import Instance, Launch

USUAL_PORT = 8080
USUAL_ARGUMENTS = ("serve",)
EVENTS = "text/event-stream"
LINES = ("application/jsonlines", "application/x-jsonlines", "application/x-ndjson")
JSON = "application/json"


class SageMakerSession(HttpSession):
    """The protocol has no cancellation: a server is interrupted only while it streams."""

    def __init__(
        self, model: ModelSpec, instance: Instance, launch: Launch, max_output_bytes: int
    ) -> None:
        super().__init__(model, instance, launch, max_output_bytes)
        self._streaming: set[str] = set()  # calls whose answer comes in pieces

    async def _probe(self) -> str | None:
        status = await self._get("/ping")
        return None if status == 200 else f"GET /ping: {status}"

    async def cancel(self, call_id: str) -> bool:
        """See ``Session``. False, but for an answer in pieces.

        Its server notices a closed connection with the next piece. Another computes on, unseen, and
        the next call would wait behind it: that is worse than a restart.
        """
        if call_id not in self._streaming:
            return call_id not in self._calls
        return await super().cancel(call_id)

    # -- one call

    async def _request(self, call: Call) -> bytes:
        async with await self._answer("/invocations", call.input, accept=JSON) as response:
            if not 200 <= response.status < 300:
                raise await refusal(response)
            kind = response.content_type
            if kind != EVENTS and kind not in LINES:
                return self._whole(kind, response.charset, await self._read(response))
            self._streaming.add(call.id)
            try:
                pieces = _events if kind == EVENTS else _lines
                return await self._streamed(pieces(response, self._limit), call)
            except EventTooLarge:
                raise self._too_large() from None
            finally:
                self._streaming.discard(call.id)

    def _whole(self, kind: str, charset: str | None, body: bytes) -> bytes:
        if kind == JSON or kind.endswith("+json"):
            parse(body)
            return body
        if kind.startswith("text/"):
            try:
                return self._dumped(body.decode(charset or "utf-8", "replace"))
            except LookupError:
                raise InvalidOutput(
                    f"the server answered text in {charset!r}, which is unknown"
                ) from None
        try:
            parse(body)  # many a server does not say what it sends
        except InvalidOutput:
            raise InvalidOutput(
                f"the server answered {kind}, which is neither JSON nor text"
            ) from None
        return body

    async def _streamed(self, pieces: AsyncIterator[bytes], call: Call) -> bytes:
        """The list of the pieces, each handed on when the caller asked for a stream."""
        texts, size = [], 2
        async for text in pieces:
            size += len(text) + 1
            if size > self._limit:
                raise self._too_large()
            texts.append(text)
            if call.stream and call.on_chunk is not None:
                call.on_chunk(text)
        return b"[" + b",".join(texts) + b"]"


class SageMakerContract(HttpContract):
    """See ``HttpContract``."""

    usual_port = USUAL_PORT
    usual_arguments = USUAL_ARGUMENTS
    session_type = SageMakerSession


async def _events(response: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    """The data of each event as JSON text: as it is, or as a string."""
    reader = EventReader(limit)
    async for data in response.content.iter_any():
        for event in reader.feed(data):
            if (text := _piece(*event)) is not None:
                yield text
    for event in reader.close():
        if (text := _piece(*event)) is not None:
            yield text


def _piece(name: str, data: bytes) -> bytes | None:
    if data == b"[DONE]":  # servers like OpenAI's say so at the end
        return None
    try:
        value: Any = parse(data)
        text = data
    except InvalidOutput:
        value = data.decode("utf-8", "replace")
        text = dump(value)
    if name == "error" or (isinstance(value, dict) and value.keys() == {"error"}):
        raise reported(value)
    return text


async def _lines(response: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    """Each line, which is JSON."""
    begun: list[bytes] = []
    size = 0
    async for data in response.content.iter_any():
        first, *rest = data.split(b"\n")
        begun.append(first)
        size += len(first)
        for piece in rest:
            if line := b"".join(begun).strip():
                parse(line)
                yield line
            begun, size = [piece], len(piece)
        if size > limit:
            raise EventTooLarge
    if line := b"".join(begun).strip():
        parse(line)
        yield line
