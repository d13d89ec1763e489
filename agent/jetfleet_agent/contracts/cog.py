"""The cog contract: a server made by Replicate's Cog, streaming by SSE where its model streams.

Checked against Cog 0.23.1; the traps are in docs/contracts.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import aiohttp

from jetfleet.specs import ModelSpec
from jetfleet_agent.contracts import (
    Call,
    CallCancelled,
    InvalidOutput,
    ModelError,
    ModelExited,
)
from jetfleet_agent.contracts.http import (
    PROBE,
    RETRY_WAIT_S,
    HttpContract,
    HttpSession,
    beginning,
    dump,
    parse,
    refusal,
    words,
)
from jetfleet_agent.contracts.sse import EventReader, EventTooLarge
from jetfleet_agent.runtimes import Instance, Launch, StartFailed

USUAL_PORT = 5000
SERVING = ("READY", "BUSY")
ENDED = ("SETUP_FAILED", "DEFUNCT", "UNHEALTHY")
ENVELOPE_BYTES = 1024**2  # an answer holds logs beside the output, and may repeat the input
BUSY_WAIT_S, BUSY_WAIT_MAX_S = 0.001, 0.05  # a slot becomes free up to 7 ms after its reply
BUSY_LOOK_S = 0.25  # after so long without a free slot, see whether the model still lives
CANCEL_TRIES, CANCEL_WAIT_S = 50, 0.02  # a cancellation may overtake its call
EVENTS, JSON = "text/event-stream", "application/json"


class CogSession(HttpSession):
    """A call is a prediction with the call's id. Closing a connection does not stop it."""

    def __init__(
        self, model: ModelSpec, instance: Instance, launch: Launch, max_output_bytes: int
    ) -> None:
        super().__init__(model, instance, launch, max_output_bytes)
        self._has_put = True  # old servers know only POST /predictions
        self._streams = True  # until it says otherwise
        self._unwanted: set[str] = set()  # calls that cancel was called for
        self._telling: set[asyncio.Task[None]] = set()

    # -- readiness

    async def _probe(self) -> str | None:
        status, document = await self._health()
        if status in SERVING:
            return None
        if status in ENDED:
            logs = _setup_logs(document)
            said = logs[-1] if logs else words(document.get("user_healthcheck_error") or "no logs")
            raise StartFailed(
                f"the model's setup failed ({status}): {said}", (*self._instance.tail(), *logs)
            )
        return f"GET /health-check: {status}"

    async def _health(self) -> tuple[str, dict[str, Any]]:
        """What the server says of its model, and the page it says it on; it is always 200."""
        async with self._http.get("/health-check", **PROBE) as response:
            text = await beginning(response, ENVELOPE_BYTES)
            try:
                document = json.loads(text)
                return str(document["status"]), document
            except (ValueError, LookupError, TypeError, RecursionError):
                return f"{response.status}, and no status", {}

    async def _raise_if_ended(self) -> None:
        """A server outlives its model, and then answers 409 for ever: end it, to be restarted."""
        try:
            status, _ = await self._health()
        except (aiohttp.ClientError, TimeoutError):
            return  # then the call itself tells what is the matter
        if status not in ENDED:
            return
        tail = "\n".join(self._instance.tail())
        # Stopping it closes this session, and this very call with it: say why beforehand.
        self._why_ended = ModelExited(f"the model in the server ended ({status})", tail)
        await asyncio.shield(self._instance.stop(0))
        raise self._why_ended

    # -- one call

    async def _request(self, call: Call) -> bytes:
        body = json.loads(call.input)
        if not isinstance(body, dict):
            raise ModelError("the input of a model with the cog contract is an object: its inputs")
        try:
            async with await self._accepted(call, body) as response:
                if not 200 <= response.status < 300:
                    if response.status >= 500:
                        await self._raise_if_ended()
                    raise await refusal(response)
                if response.content_type == EVENTS:
                    document = await self._streamed(response, call)
                else:
                    document = parse(await self._read(response, self._most(call)))
        except asyncio.CancelledError:
            if not self._closed:
                self._spawn_cancel(call.id)
            raise
        finally:
            self._unwanted.discard(call.id)
        return await self._output(document)

    async def _accepted(self, call: Call, body: dict[str, Any]) -> aiohttp.ClientResponse:
        """The response, up to its headers, once there was a slot for the call."""
        loop = asyncio.get_running_loop()
        text = dump({"id": call.id, "input": body})
        wait_s, look_at, broke = BUSY_WAIT_S, loop.time() + BUSY_LOOK_S, False
        while True:
            try:
                response = await self._asked(call, text)
            except aiohttp.ClientConnectionError:  # one more try in all, however often it is busy
                if broke:
                    raise
                broke = True
                await self._raise_if_exited(RETRY_WAIT_S)
                continue
            # 202: this prediction runs already, asked for by an agent before this one.
            if response.status not in (202, 409):
                return response
            response.release()
            if loop.time() > look_at:
                await self._raise_if_ended()
                look_at = loop.time() + 4 * BUSY_LOOK_S
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 1.5, BUSY_WAIT_MAX_S)
            if call.id in self._unwanted:
                raise CallCancelled("the call was cancelled before the server had a slot for it")

    async def _asked(self, call: Call, text: bytes) -> aiohttp.ClientResponse:
        """The first answer, asked in the way that this server understands."""
        while True:
            accept = EVENTS if call.stream and self._streams else JSON
            method, path = "POST", "/predictions"
            if self._has_put:
                method, path = "PUT", f"/predictions/{call.id}"
            response = await self._send(method, path, text, accept)
            if response.status in (404, 405) and self._has_put:
                self._has_put = False
            elif response.status == 406 and accept == EVENTS:
                self._streams = False
            else:
                return response
            response.release()

    def _most(self, call: Call) -> int:
        return self._limit + ENVELOPE_BYTES + len(call.input)

    async def _streamed(self, response: aiohttp.ClientResponse, call: Call) -> Any:
        """The prediction as it ended; its pieces of output were handed on."""
        most = self._most(call)
        reader, size = EventReader(most), 0
        try:
            async for data in response.content.iter_any():
                for name, text in reader.feed(data):
                    if name == "completed":
                        return parse(text)
                    if name == "output":
                        size += len(text)
                        if size > most:
                            raise self._too_large()
                        _hand_on(text, call)
        except EventTooLarge:
            raise self._too_large() from None
        raise aiohttp.ClientPayloadError("the stream ended before its last event")

    async def _output(self, document: Any) -> bytes:
        status = document.get("status") if isinstance(document, dict) else None
        if status == "succeeded":
            return self._dumped(document.get("output"))
        if status == "canceled":
            raise CallCancelled("the call was cancelled")
        if status == "failed":
            await self._raise_if_ended()
            said = words(document.get("error") or "the prediction failed, without a word why")
            raise ModelError(said, str(document.get("logs") or ""))
        raise InvalidOutput(f"the server answered no prediction that has ended: status {status!r}")

    # -- cancelling

    async def cancel(self, call_id: str) -> bool:
        """See ``Session``: the model is told. One that computes may hear it only at its end."""
        if call_id in self._calls:
            self._unwanted.add(call_id)
            self._spawn_cancel(call_id)
        return True

    def _spawn_cancel(self, call_id: str) -> None:
        task = asyncio.create_task(self._tell_cancel(call_id))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell_cancel(self, call_id: str) -> None:
        for _ in range(CANCEL_TRIES):
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                path = f"/predictions/{call_id}/cancel"
                async with self._http.post(path, **PROBE) as response:
                    if response.status != 404:
                        return
            await asyncio.sleep(CANCEL_WAIT_S)
            if call_id not in self._calls:
                return

    async def close(self) -> None:
        """See ``Session``."""
        for task in self._telling:
            task.cancel()
        await super().close()


class CogContract(HttpContract):
    """See ``HttpContract``."""

    usual_port = USUAL_PORT
    session_type = CogSession


def _hand_on(text: bytes, call: Call) -> None:
    """``{"chunk": value, "index": n}`` as Cog writes it: the value is what the model gave."""
    event = parse(text)
    if call.on_chunk is not None:
        wrapped = isinstance(event, dict) and "chunk" in event
        call.on_chunk(dump(event["chunk"]) if wrapped else text)


def _setup_logs(document: dict[str, Any]) -> tuple[str, ...]:
    setup = document.get("setup")
    logs = setup.get("logs") if isinstance(setup, dict) else None
    return tuple(str(logs).splitlines()[-50:]) if logs else ()
