"""What the contracts over HTTP share: starting a server, waiting for it, calling it, giving up."""

from __future__ import annotations

import asyncio
import json
import socket
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import aiohttp

from jetfleet.specs import ModelSpec, RuntimeName
from jetfleet_agent.contracts import (
    MAX_OUTPUT_BYTES,
    Call,
    CallCancelled,
    InvalidOutput,
    ModelError,
    ModelExited,
)
from jetfleet_agent.runtimes import Instance, Launch, StartFailed, describe_exit

LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 2.0  # below the 5 s after which common servers close an idle connection
RETRY_WAIT_S = 0.1  # longest pause before the second try
EXIT_WAIT_S = 1.0  # between a connection that broke and the end of its process
TOLD_WAIT_S = 30.0  # until an engine that is being restarted tells of that end
ERROR_BYTES = 64 * 1024
DOCUMENT_BYTES = 1024**2  # of a page about the server, longest
JSON_TYPE = {"Content-Type": "application/json"}
# How a server is asked beside its calls. A redirect could lead out of its container.
PROBE: dict[str, Any] = {
    "timeout": aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S), "allow_redirects": False,
}  # fmt: skip

# A port is chosen long before the server binds it, so none is given to two servers.
_recent_ports: deque[int] = deque(maxlen=1000)


def free_port() -> int:
    """A port of loopback that nobody listens on, and that was not given out lately."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if port not in _recent_ports:
            _recent_ports.append(port)
            return port


def launch_server(
    model: ModelSpec, usual_port: int, usual_arguments: tuple[str, ...] = ()
) -> Launch:
    """How to start a server process or container.

    ``{port}`` in an argument, and ``PORT``, say where to listen: on a free port of loopback, or in
    a container on ``container.port`` or the contract's usual one. A container without a command
    gets the contract's usual arguments; without those, the image's own command runs.
    """
    if model.runtime is RuntimeName.DOCKER:
        port = model.container.port or usual_port
        command = model.command or usual_arguments
    else:
        port, command = free_port(), model.command or ()
    argv = tuple(part.replace("{port}", str(port)) for part in command)
    return Launch(argv, env={**model.env, "PORT": str(port)}, port=port)


class HttpSession(ABC):
    """One pool of connections to one server; a contract says how to probe and how to call it.

    Closing a connection is how a call is given up; whether that stops the server's work is for the
    contract to know (``cancel``).
    """

    def __init__(
        self, model: ModelSpec, instance: Instance, launch: Launch, max_output_bytes: int
    ) -> None:
        if launch.port is None:
            raise ValueError("this launch was not made by a contract over HTTP: it has no port")
        self._model = model
        self._instance = instance
        self._port = launch.port
        self._limit = max_output_bytes
        self._calls: dict[str, asyncio.Task[bytes]] = {}
        self._closed = False
        self._why_ended: ModelExited | None = None  # when we ended it ourselves
        self._http = aiohttp.ClientSession(
            f"http://{instance.host}:{self._port}",
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=KEEP_ALIVE_S, socket_factory=instance.socket_factory
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        )

    # -- for a contract to define

    @abstractmethod
    async def _probe(self) -> str | None:
        """None when the server serves; else what it was asked and what it said.

        Connections that fail are no news. Raises StartFailed when it will never serve.
        """

    @abstractmethod
    async def _request(self, call: Call) -> bytes:
        """The JSON text of the output; ``aiohttp.ClientError`` when the connection broke."""

    # -- Session

    async def ready(self) -> None:
        """See ``Session``; the time is bounded by the model's ``startup_timeout_s``."""
        said: str | None = "it was not asked"
        pause = 0.02
        try:
            async with asyncio.timeout(self._model.startup_timeout_s):
                while (said := await self._probed()) is not None:
                    await self._pause_unless_exited(pause)
                    pause = min(pause * 1.5, 0.25)
                await self._pause_unless_exited(0)
        except TimeoutError:
            raise StartFailed(
                f"the server was not ready within {self._model.startup_timeout_s:g} s"
                f" ({said or 'nothing'}); does it listen on {self._where()}?",
                self._instance.tail(),
            ) from None

    async def invoke(self, call: Call) -> bytes:
        """See ``Session``."""
        self._raise_if_closed()
        task = asyncio.create_task(self._connected(call))
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

    async def _probed(self) -> str | None:
        try:
            return await self._probe()
        except (aiohttp.ClientError, TimeoutError) as error:
            return str(error) or type(error).__name__

    async def _get(self, path: str) -> int:
        """The status of a page."""
        async with self._http.get(path, **PROBE) as response:
            return response.status

    async def _get_json(self, path: str) -> Any:
        """A page's document; None when it has none, or cannot be had."""
        try:
            async with self._http.get(path, **PROBE) as response:
                text = await beginning(response, DOCUMENT_BYTES)
                return json.loads(text) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError):
            return None

    async def _pause_unless_exited(self, seconds: float) -> None:
        await asyncio.wait((self._instance.exited,), timeout=seconds)
        if self._instance.exited.done():
            status = describe_exit(self._instance.exited.result())
            raise StartFailed(f"the server {status} before it was ready", self._instance.tail())

    def _where(self) -> str:
        if self._model.runtime is RuntimeName.DOCKER:
            return f"port {self._port} of its container (container.port says another)"
        return "the port in {port} or PORT"

    # -- one call

    async def _connected(self, call: Call) -> bytes:
        try:
            return await self._request(call)
        except aiohttp.ClientError as error:
            await self._raise_if_exited(EXIT_WAIT_S)
            if await self._is_gone():
                await self._raise_if_exited(TOLD_WAIT_S)
            raise ModelError(
                f"the connection to the model's server broke: {error or type(error).__name__}",
                "\n".join(self._instance.tail()),
            ) from error

    async def _answer(self, path: str, body: bytes, accept: str = "*/*") -> aiohttp.ClientResponse:
        """The response, up to its headers."""
        try:
            return await self._send("POST", path, body, accept)
        except aiohttp.ClientConnectionError:
            # Nothing was answered. A server that lives closed an idle connection just as we used
            # it: a new connection is worth one more try.
            await self._raise_if_exited(RETRY_WAIT_S)
        return await self._send("POST", path, body, accept)

    async def _send(
        self, method: str, path: str, body: bytes, accept: str
    ) -> aiohttp.ClientResponse:
        """The response, up to its headers, tried once. Raises aiohttp.ClientConnectionError."""
        return await self._http.request(
            method,
            path,
            data=body,
            headers={**JSON_TYPE, "Accept": accept},
            allow_redirects=False,
            middlewares=(_told_of_breaks,),
        )

    async def _read(self, response: aiohttp.ClientResponse, limit: int | None = None) -> bytes:
        """The whole body. Raises InvalidOutput when it is over the limit on outputs, or this."""
        pieces, size = [], 0
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size > (self._limit if limit is None else limit):
                raise self._too_large()
        return b"".join(pieces)

    def _dumped(self, output: Any) -> bytes:
        """An output put together here, as JSON text. Raises InvalidOutput when it is too large."""
        text = dump(output)
        if len(text) > self._limit:
            raise self._too_large()
        return text

    def _too_large(self) -> InvalidOutput:
        return InvalidOutput(f"the output is over {self._limit} bytes of JSON, which is the most")

    async def _raise_if_exited(self, within_s: float) -> None:
        await asyncio.wait((self._instance.exited,), timeout=within_s)
        if self._instance.exited.done():
            raise self._exited()

    async def _is_gone(self) -> bool:
        """Whether nobody listens there any more."""
        try:
            await self._probe()
        except aiohttp.ClientConnectorError:
            return True
        except (aiohttp.ClientError, TimeoutError, StartFailed):
            return False  # somebody is there, in whatever state
        return False

    def _exited(self) -> ModelExited:
        if self._why_ended is not None:
            return self._why_ended
        status = describe_exit(self._instance.exited.result())
        return ModelExited(f"the server {status}", "\n".join(self._instance.tail()))

    def _raise_if_closed(self) -> None:
        if self._closed:
            if self._instance.exited.done():  # that is why it was closed
                raise self._exited()
            raise ModelExited("the session was closed")


class ConnectionBroke(aiohttp.ClientConnectionError):
    """The connection ended before an answer."""


async def _told_of_breaks(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Breaks under a type that aiohttp does not know: it sends a PUT again without a word."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise ConnectionBroke(str(error) or type(error).__name__) from error


class HttpContract:
    """Starts the image's own server, or the model's command; ``PORT`` says where to listen."""

    usual_port: ClassVar[int]
    usual_arguments: ClassVar[tuple[str, ...]] = ()  # of a container without a command
    session_type: ClassVar[type[HttpSession]]

    def __init__(self, max_output_bytes: int = MAX_OUTPUT_BYTES) -> None:
        self._max_output_bytes = max_output_bytes

    def launch(self, model: ModelSpec, concurrency: int, workdir: Path) -> Launch:
        """The server's command line; a process runs in the agent's own directory."""
        return launch_server(model, self.usual_port, self.usual_arguments)

    def session(
        self, model: ModelSpec, instance: Instance, launch: Launch, concurrency: int
    ) -> HttpSession:
        """The session of a server that was told ``launch.port``."""
        return self.session_type(model, instance, launch, self._max_output_bytes)


async def beginning(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The first ``limit`` bytes of the body, or all of it."""
    pieces, missing = [], limit
    while missing and (piece := await response.content.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _cancelling() -> bool:
    """Whether it is the awaiting task itself that is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


# -- JSON


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def parse(text: bytes) -> Any:
    """The value of a JSON text. Raises InvalidOutput when it is none."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        shown = text[:200].decode("utf-8", "replace")
        raise InvalidOutput(f"the server answered what is not JSON ({error}): {shown}") from None


def dump(value: Any) -> bytes:
    """A value as JSON text in UTF-8.

    Halves of a surrogate pair, which a server may have sent in two chunks, are joined; a half that
    stays alone becomes U+FFFD.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


# -- errors in the words of the server


async def refusal(response: aiohttp.ClientResponse) -> ModelError:
    """What an answer that is not 2xx says."""
    text = (await beginning(response, ERROR_BYTES)).decode("utf-8", "replace")
    try:
        message = words(json.loads(text))
    except (ValueError, RecursionError):
        message = text[:500] or response.reason or "no explanation"
    return ModelError(f"the model's server answered {response.status}: {message}", text)


def reported(error: Any) -> ModelError:
    """An error that came in an answer that was 2xx."""
    return ModelError(f"the model's server reports: {words(error)}", json.dumps(error))


def words(error: Any) -> str:
    """The words in an error object, wherever this server puts them.

    A list of refused fields, as FastAPI and Cog write it, becomes ``input.text: Field required``.
    """
    for key in ("error", "message", "detail"):
        if isinstance(error, dict) and error.get(key):
            return words(error[key])
    if isinstance(error, list) and error and all(map(_is_refused_field, error)):
        return "; ".join(f"{_field(each['loc'])}: {each['msg']}" for each in error)
    return error if isinstance(error, str) else json.dumps(error)


def _is_refused_field(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("loc"), list) and "msg" in entry


def _field(location: list[Any]) -> str:
    return ".".join(str(part) for part in location if part != "body") or "the body"
