"""Reading request bodies: JSON only, limited while it streams in, compressed or not."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from jetfleet.errors import BeyondLimits, InvalidRequest, PayloadTooLarge
from jetfleet.limits import excess
from jetfleet_gateway.problems import plain
from jetfleet_gateway.refusals import (
    InvalidFields,
    NotJson,
    UnsupportedEncoding,
    UnsupportedMedia,
)

Model = TypeVar("Model", bound=BaseModel)

# What a request may have around its input: the other fields, and white space.
ENVELOPE_BYTES = 64 * 1024
SMALL_BODY_BYTES = 1024 * 1024  # models and jobs: specifications, not data
# After a refusal for size this much more is read and dropped, for this long, so that a client in
# the middle of sending gets to read the answer instead of a reset connection.
DROP_BYTES = 128 * 1024**2
DROP_S = 5.0
_WBITS = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
_UNION_TAG = "<"  # tags of discriminated unions begin with it, and are no part of a field's name


async def read_model(request: Request, model: type[Model], limit: int = SMALL_BODY_BYTES) -> Model:
    """The body as a value of ``model``.

    Raises:
        UnsupportedMedia, UnsupportedEncoding, PayloadTooLarge, NotJson, InvalidFields.
    """
    return parse(model, await read_body(request, limit))


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, decompressed, of at most ``limit`` bytes.

    Raises:
        PayloadTooLarge: as soon as that is known; nothing over the limit is kept in memory.
    """
    encoding, length = _framing(request)
    incoming = _Incoming(request)
    if length > limit:
        await incoming.refuse(limit)
    if encoding is None and length > 0:
        first = await incoming.next()
        if incoming.finished:  # nearly always: it came in one piece
            return first if len(first) <= limit else await incoming.refuse(limit)
        return await _collect(incoming, first, incoming, limit)
    pieces = incoming if encoding is None else _inflate(incoming, encoding, limit)
    return await _collect(incoming, b"", pieces, limit)


async def _collect(
    incoming: _Incoming, first: bytes, pieces: AsyncIterable[bytes], limit: int
) -> bytes:
    parts, size = [first], len(first)
    async for piece in pieces:
        size += len(piece)
        if size > limit:
            parts.clear()
            await incoming.refuse(limit)
        parts.append(piece)
    return b"".join(parts)


def parse(model: type[Model], body: bytes) -> Model:
    """Validate JSON text against a model in one pass.

    Raises:
        NotJson, InvalidFields.
        BeyondLimits: it is JSON that the parser gave up on.
    """
    if b"NaN" in body or b"Infinity" in body:
        _refuse_constants(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            raise _unreadable(found[0]["msg"], body) from None
        raise InvalidFields([(field_name(e["loc"]), plain(e)) for e in found]) from None


def field_name(location: tuple[int | str, ...]) -> str:
    """Where in the body: ``("model", "<spec>", "env", 0)`` is ``model.env.0``."""
    parts = [str(part) for part in location if not str(part).startswith(_UNION_TAG)]
    return ".".join(parts) or "body"


def _unreadable(message: str, body: bytes) -> InvalidRequest:
    """Why the parser refused; it gives up where JSON itself has no limit."""
    gave_up = "recursion limit" in message or "out of range" in message
    if gave_up and (why := excess(body, around=1)):
        return BeyondLimits(f"the body cannot be taken: {why}", field="input")
    return NotJson(message)


def _refuse_constants(body: bytes) -> None:
    """NaN and Infinity are words of JavaScript, not of JSON; pydantic would take them."""
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise _unreadable(str(error), body) from None


def _framing(request: Request) -> tuple[bytes | None, int]:
    """The compression, if any, and the declared length (0 when undeclared) of a JSON body.

    A browser sends other types across sites without asking; so only JSON, and declared as such.
    """
    headers = dict(request.scope["headers"])
    kind = headers.get(b"content-type", b"")
    if kind != b"application/json":
        kind = kind.partition(b";")[0].strip().lower()
        if kind != b"application/json" and not kind.endswith(b"+json"):
            raise UnsupportedMedia
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding == b"identity":
        return None, int(headers.get(b"content-length", 0))
    if encoding not in _WBITS:
        raise UnsupportedEncoding
    return encoding, int(headers.get(b"content-length", 0))


@dataclass(slots=True)
class _Incoming:
    """The body's pieces as they arrive."""

    request: Request
    finished: bool = False

    async def next(self) -> bytes:
        """The next piece; it may be empty."""
        message = await self.request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        self.finished = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while not self.finished:
            yield await self.next()

    async def refuse(self, limit: int) -> NoReturn:
        await self.drop()
        raise PayloadTooLarge(f"the body is larger than the {limit:,} bytes taken here")

    async def drop(self) -> None:
        """Read on without keeping anything, within bounds; see ``DROP_BYTES``."""
        if any(name == b"expect" for name, _ in self.request.scope["headers"]):
            return  # the client waits for our word before it sends the body
        dropped = 0
        try:
            async with asyncio.timeout(DROP_S):
                async for piece in self:
                    dropped += len(piece)
                    if dropped > DROP_BYTES:
                        return
        except TimeoutError:
            return


async def _inflate(
    chunks: AsyncIterable[bytes], encoding: bytes, limit: int
) -> AsyncIterator[bytes]:
    """Decompress piece by piece; a piece never becomes more than one byte over the limit."""
    inflate = zlib.decompressobj(_WBITS[encoding])
    try:
        async for chunk in chunks:
            data = chunk
            while data:
                if inflate.eof:  # gzip files may be put one after the other
                    inflate = zlib.decompressobj(_WBITS[encoding])
                if piece := inflate.decompress(data, limit + 1):
                    yield piece
                data = inflate.unconsumed_tail or inflate.unused_data
    except zlib.error as error:
        name = encoding.decode()
        raise NotJson(f"the body is not {name}, though Content-Encoding says so: {error}") from None
    if not inflate.eof:
        raise NotJson(f"the {encoding.decode()} data of the body ends too early")
