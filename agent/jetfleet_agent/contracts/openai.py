"""The openai contract: a server process that speaks the OpenAI HTTP API, streaming by SSE."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from pathlib import Path
from typing import Any, NoReturn

import aiohttp

from jetfleet.specs import ModelSpec
from jetfleet_agent.contracts import (
    MAX_OUTPUT_BYTES,
    Call,
    CallCancelled,
    InvalidOutput,
    ModelError,
    ModelExited,
)
from jetfleet_agent.contracts.assembly import Assembly
from jetfleet_agent.contracts.sse import EventReader, EventTooLarge
from jetfleet_agent.runtimes import Instance, Launch, StartFailed, describe_exit

HOST = "127.0.0.1"
CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 2.0  # below the 5 s after which common servers close an idle connection
RETRY_WAIT_S = 0.1  # longest pause before the second try
EXIT_WAIT_S = 1.0  # between a connection that broke and the end of its process
ERROR_BYTES = 64 * 1024
JSON_TYPE = {"Content-Type": "application/json"}

# A port is chosen long before the server binds it, so none is given to two servers.
_recent_ports: deque[int] = deque(maxlen=1000)


def free_port() -> int:
    """A port of loopback that nobody listens on, and that was not given out lately."""
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in _recent_ports:
            _recent_ports.append(port)
            return port


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


class OpenAIContract:
    """Starts the model's command; ``{port}`` in an argument, and ``PORT``, say where to listen."""

    def __init__(self, max_output_bytes: int = MAX_OUTPUT_BYTES) -> None:
        self._max_output_bytes = max_output_bytes

    def launch(self, model: ModelSpec, concurrency: int, workdir: Path) -> Launch:
        """The server's command line; it runs in the agent's own directory."""
        port = free_port()
        argv = tuple(part.replace("{port}", str(port)) for part in model.command or ())
        return Launch(argv, env={**model.env, "PORT": str(port)}, port=port)

    def session(
        self, model: ModelSpec, instance: Instance, launch: Launch, concurrency: int
    ) -> OpenAISession:
        """The session of a server that was told ``launch.port``."""
        if launch.port is None:
            raise ValueError("this launch was not made by the openai contract: it has no port")
        return OpenAISession(model, instance, launch.port, self._max_output_bytes)


class OpenAISession:
    """One pool of connections to one server. Closing a connection cancels its call."""

    def __init__(
        self, model: ModelSpec, instance: Instance, port: int, max_output_bytes: int
    ) -> None:
        self._model = model
        self._instance = instance
        self._limit = max_output_bytes
        self._served_model: str | None = None
        self._calls: dict[str, asyncio.Task[bytes]] = {}
        self._closed = False
        self._http = aiohttp.ClientSession(
            f"http://{HOST}:{port}",
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        )

    # -- Session

    async def ready(self) -> None:
        """See ``Session``; the time is bounded by the model's ``startup_timeout_s``."""
        said = "nothing"
        pause = 0.02
        try:
            async with asyncio.timeout(self._model.startup_timeout_s):
                while (said := await self._health()) != "200":
                    await self._pause_unless_exited(pause)
                    pause = min(pause * 1.5, 0.25)
                self._served_model = await self._first_model()
                await self._pause_unless_exited(0)
        except TimeoutError:
            raise StartFailed(
                f"the server was not ready within {self._model.startup_timeout_s:g} s"
                f" (GET /health: {said}); does it listen on the port in {{port}} or PORT?",
                self._instance.tail(),
            ) from None

    async def invoke(self, call: Call) -> bytes:
        """See ``Session``."""
        self._raise_if_closed()
        task = asyncio.create_task(self._request(call))
        self._calls[call.id] = task
        try:
            return await task
        except asyncio.CancelledError:
            if not _cancelling():  # it was not our caller who gave up
                self._raise_if_closed()
                raise CallCancelled("the call was cancelled") from None
            raise
        finally:
            if self._calls.get(call.id) is task:
                del self._calls[call.id]

    async def cancel(self, call_id: str) -> bool:
        """See ``Session``: the connection is closed, which servers take as a cancellation."""
        task = self._calls.get(call_id)
        if task is not None:
            task.cancel()
        return True

    async def close(self) -> None:
        """See ``Session``."""
        self._closed = True
        for task in self._calls.values():
            task.cancel()
        await self._http.close()

    # -- readiness

    async def _health(self) -> str:
        """What the server says of itself: a status, or why there is none."""
        try:
            status = await self._get("/health")
            if status == 404:  # a server without this page is ready when it lists its models
                status = await self._get("/v1/models")
        except (aiohttp.ClientError, TimeoutError) as error:
            return str(error) or type(error).__name__
        return str(status)

    async def _get(self, path: str) -> int:
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        async with self._http.get(path, timeout=timeout) as response:
            return response.status

    async def _pause_unless_exited(self, seconds: float) -> None:
        await asyncio.wait((self._instance.exited,), timeout=seconds)
        if self._instance.exited.done():
            status = describe_exit(self._instance.exited.result())
            raise StartFailed(f"the server {status} before it was ready", self._instance.tail())

    async def _first_model(self) -> str | None:
        """The name that this server wants in requests, if it lists one."""
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        try:
            async with self._http.get("/v1/models", timeout=timeout) as response:
                return str((await response.json(content_type=None))["data"][0]["id"])
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
            return None  # then requests go without a name, unless the caller gives one

    # -- one call

    async def _request(self, call: Call) -> bytes:
        path, body = self._prepare(call)
        try:
            async with await self._answer(path, body) as response:
                if not 200 <= response.status < 300:
                    raise await _refusal(response)
                if response.content_type == "text/event-stream":
                    chat = path == "/v1/chat/completions"
                    return await self._streamed(response, call, Assembly(chat))
                return await self._whole(response)
        except aiohttp.ClientError as error:
            await self._raise_if_exited(EXIT_WAIT_S)
            raise ModelError(
                f"the connection to the model's server broke: {error or type(error).__name__}",
                "\n".join(self._instance.tail()),
            ) from error

    async def _answer(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        """The response, up to its headers."""
        try:
            return await self._post(path, body)
        except aiohttp.ClientConnectionError:
            # Nothing was answered. A server that lives closed an idle connection just as we used
            # it: a new connection is worth one more try.
            await self._raise_if_exited(RETRY_WAIT_S)
        return await self._post(path, body)

    async def _post(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        return await self._http.post(path, data=body, headers=JSON_TYPE, allow_redirects=False)

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
        return path, json.dumps({**body, **added}, ensure_ascii=False).encode()

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > self._limit:
                raise self._too_large()
        output = b"".join(pieces)
        document = _parse(output)
        if isinstance(document, dict) and document.get("error"):
            raise _reported(document["error"])
        return output

    async def _streamed(
        self, response: aiohttp.ClientResponse, call: Call, assembly: Assembly
    ) -> bytes:
        reader = EventReader(self._limit)
        done = False
        try:
            async for data in response.content.iter_any():
                done = self._take(reader.feed(data), call, assembly)
                if done:
                    break
        except EventTooLarge:
            raise self._too_large() from None
        if not done:
            done = self._take(reader.close(), call, assembly) or assembly.finished
        if not done:
            raise aiohttp.ClientPayloadError("the stream ended before its last chunk")
        output = json.dumps(assembly.whole(), ensure_ascii=False, separators=(",", ":")).encode()
        if len(output) > self._limit:
            raise self._too_large()
        return output

    def _take(self, events: list[tuple[str, bytes]], call: Call, assembly: Assembly) -> bool:
        """Hands on chunks; True when the server said that it was the last."""
        for name, data in events:
            if data == b"[DONE]":
                return True
            chunk = _parse(data)
            error = chunk.get("error") if isinstance(chunk, dict) else None
            if error or name == "error":
                raise _reported(error or chunk)
            if not isinstance(chunk, dict):
                raise InvalidOutput(f"a chunk of the stream is no JSON object: {data[:200]!r}")
            assembly.add(chunk)
            if assembly.text_size > self._limit:
                raise self._too_large()
            if call.on_chunk is not None:
                call.on_chunk(data)
        return False

    def _too_large(self) -> InvalidOutput:
        return InvalidOutput(f"the output is over {self._limit} bytes of JSON, which is the most")

    async def _raise_if_exited(self, within_s: float) -> None:
        exited = self._instance.exited
        await asyncio.wait((exited,), timeout=within_s)
        if exited.done():
            raise ModelExited(
                f"the server {describe_exit(exited.result())}", "\n".join(self._instance.tail())
            )

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise ModelExited("the session was closed")


def _cancelling() -> bool:
    """Whether it is the awaiting task itself that is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        shown = text[:200].decode("utf-8", "replace")
        raise InvalidOutput(f"the server answered what is not JSON ({error}): {shown}") from None


async def _refusal(response: aiohttp.ClientResponse) -> ModelError:
    text = (await response.content.read(ERROR_BYTES)).decode("utf-8", "replace")
    try:
        message = _message(json.loads(text))
    except ValueError:
        message = text[:500] or response.reason or "no explanation"
    return ModelError(f"the model's server answered {response.status}: {message}", text)


def _reported(error: Any) -> ModelError:
    return ModelError(f"the model's server reports: {_message(error)}", json.dumps(error))


def _message(error: Any) -> str:
    """The words in an error object, wherever this server puts them."""
    for key in ("error", "message", "detail"):
        if isinstance(error, dict) and error.get(key):
            return _message(error[key])
    return error if isinstance(error, str) else json.dumps(error)
