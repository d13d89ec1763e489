"""The openai contract: a server that speaks the OpenAI HTTP API, streaming by SSE."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from jetfleet_agent.contracts import Call, InvalidOutput, ModelError
from jetfleet_agent.contracts.assembly import Assembly, Misfit
from jetfleet_agent.contracts.http import (
    HttpContract,
    HttpSession,
    dump,
    parse,
    refusal,
    reported,
)
from jetfleet_agent.contracts.sse import EventReader, EventTooLarge

USUAL_PORT = 8000


def path_of(body: Any) -> str:
    """The endpoint that an input is for. Raises ModelError when it is for none."""
    if isinstance(body, dict):
        if "messages" in body:
            return "/v1/chat/completions"
        if "prompt" in body:
            return "/v1/completions"
        if "input" in body:
            return "/v1/embeddings"
    raise ModelError(
        "the input of a model with the openai contract is an object with 'messages' (chat),"
        " 'prompt' (completion) or 'input' (embeddings)"
    )


class OpenAISession(HttpSession):
    """Closing a connection cancels its call."""

    _served_model: str | None = None

    async def _probe(self) -> str | None:
        status = await self._get("/health")
        if status == 404:  # a server without this page is ready when it lists its models
            status = await self._get("/v1/models")
        if status != 200:
            return f"GET /health: {status}"
        self._served_model = self._model.served_name or await self._first_model()
        return None

    async def _first_model(self) -> str | None:
        """The name that this server wants in requests, if it lists one."""
        try:
            return str((await self._get_json("/v1/models"))["data"][0]["id"])
        except (LookupError, TypeError):
            return None  # then requests go without a name, unless the caller gives one

    # -- one call

    async def _request(self, call: Call) -> bytes:
        path, body = self._prepare(call)
        async with await self._answer(path, body) as response:
            if not 200 <= response.status < 300:
                raise await refusal(response)
            if response.content_type == "text/event-stream":
                chat = path == "/v1/chat/completions"
                return await self._streamed(response, call, Assembly(chat))
            return await self._whole(response)

    def _prepare(self, call: Call) -> tuple[str, bytes]:
        """The path and body of the request; the input as it came, where nothing was missing."""
        body = json.loads(call.input)
        path = path_of(body)
        added: dict[str, Any] = {}
        if "model" not in body and self._served_model is not None:
            added["model"] = self._served_model
        if call.stream and path != "/v1/embeddings":
            added["stream"] = True
        if not added:
            return path, call.input
        return path, dump({**body, **added})

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        output = await self._read(response)
        document = parse(output)
        if isinstance(document, dict) and document.get("error"):
            raise reported(document["error"])
        return output

    async def _streamed(
        self, response: aiohttp.ClientResponse, call: Call, assembly: Assembly
    ) -> bytes:
        reader = EventReader(self._limit)
        done, unmeasured = False, 0
        try:
            async for data in response.content.iter_any():
                done = self._take(reader.feed(data), call, assembly)
                if done:
                    break
                unmeasured += len(data)
                if unmeasured > self._limit:  # a chunk is longer than what it adds
                    self._dumped(assembly.so_far())
                    unmeasured = 0
        except EventTooLarge:
            raise self._too_large() from None
        if not done:
            done = self._take(reader.close(), call, assembly) or assembly.finished
        if not done:
            raise aiohttp.ClientPayloadError("the stream ended before its last chunk")
        return self._dumped(assembly.whole())

    def _take(self, events: list[tuple[str, bytes]], call: Call, assembly: Assembly) -> bool:
        """Hands on chunks; True when the server said that it was the last."""
        for name, data in events:
            if data == b"[DONE]":
                return True
            chunk = parse(data)
            error = chunk.get("error") if isinstance(chunk, dict) else None
            if error or name == "error":
                raise reported(error or chunk)
            if not isinstance(chunk, dict):
                raise InvalidOutput(f"a chunk of the stream is no JSON object: {data[:200]!r}")
            try:
                assembly.add(chunk)
            except Misfit as error:
                raise InvalidOutput(
                    f"a chunk of the stream does not fit those before it ({error}): {data[:200]!r}"
                ) from error
            if call.on_chunk is not None:
                call.on_chunk(data)
        return False


class OpenAIContract(HttpContract):
    """See ``HttpContract``."""

    usual_port = USUAL_PORT
    session_type = OpenAISession
