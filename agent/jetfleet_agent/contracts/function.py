"""The function contract, the agent's side: ``file.py:function`` in a host process of our own.

Raw JSON text goes through: the agent neither decodes an input nor encodes an output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from jetfleet.specs import ModelSpec, RuntimeName
from jetfleet_agent.contracts import (
    MAX_OUTPUT_BYTES,
    Call,
    CallCancelled,
    CallFailed,
    InvalidOutput,
    ModelError,
    ModelExited,
)
from jetfleet_agent.contracts.packed_host import DEFAULT_PORT, packed_host
from jetfleet_agent.contracts.wire import (
    CALL,
    CALL_STREAM,
    CANCEL,
    CANCELLED,
    CHUNK,
    ERROR,
    FAILED,
    HEADER,
    INVALID_OUTPUT,
    READY,
    RESULT,
    FrameReader,
    WireError,
)
from jetfleet_agent.runtimes import Instance, Launch, StartFailed, describe_exit

FRAME_SLACK = 256 * 1024  # an error with its traceback may be longer than a small output limit
END_WAIT_S = 2.0  # between the end of the process and the end of the channel, either first


class FunctionContract:
    """Starts the host process; relative files are found from the agent's own directory."""

    def __init__(self, max_output_bytes: int = MAX_OUTPUT_BYTES) -> None:
        self._max_output_bytes = max_output_bytes

    def launch(self, model: ModelSpec, concurrency: int, workdir: Path) -> Launch:
        """The host's command line; it runs in the directory of the file."""
        file, _, name = (model.function or "").rpartition(":")  # ModelSpec: never None here
        if model.runtime is RuntimeName.DOCKER:
            arguments = (file, name, str(concurrency), str(self._max_output_bytes))
            return packed_host(arguments, dict(model.env), model.container.port or DEFAULT_PORT)
        path = Path(file).absolute()
        host = "jetfleet_agent.contracts.function_host"
        # -P: a file of the model named like a standard module must not break the host.
        argv = (sys.executable, "-P", "-m", host, str(path), name)
        limits = (str(concurrency), str(self._max_output_bytes))
        return Launch(argv + limits, env=dict(model.env), directory=path.parent, channel=True)

    def session(
        self, model: ModelSpec, instance: Instance, launch: Launch, concurrency: int
    ) -> FunctionSession:
        """The session of a host process."""
        return FunctionSession(model, instance, self._max_output_bytes)


class FunctionSession(asyncio.Protocol):
    """The agent's end of the channel: calls out, a future per call, resolved as replies come."""

    def __init__(self, model: ModelSpec, instance: Instance, max_output_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._model = model
        self._instance = instance
        self._reader = FrameReader(max_output_bytes + FRAME_SLACK)
        self._transport: asyncio.Transport | None = None
        self._serving: asyncio.Future[None] = self._loop.create_future()
        self._disconnected: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()  # done once it has ended
        self._watching: asyncio.Task[None] | None = None
        self._cancellable = False
        self._ended: str | None = None  # why no call can be made any more
        # A host in a container may still be at work for an earlier session, whose replies must not
        # be taken for ours.
        self._number = secrets.randbits(48)
        self._unsent: list[bytes] = []
        self._pending: dict[int, tuple[asyncio.Future[bytes], Call]] = {}
        self._numbers: dict[str, int] = {}  # of the calls in progress, by their id

    # -- Session

    async def ready(self) -> None:
        """See ``Session``; the time is bounded by the model's ``startup_timeout_s``."""
        channel, self._instance.channel = self._instance.channel, None
        if channel is None:
            raise StartFailed("the process ended before it was spoken to", self._instance.tail())
        if channel.family == socket.AF_UNIX:
            await self._loop.create_unix_connection(lambda: self, sock=channel)
        else:
            await self._loop.create_connection(lambda: self, sock=channel)
        self._watching = self._loop.create_task(self._watch())
        try:
            async with asyncio.timeout(self._model.startup_timeout_s):
                await self._serving
        except TimeoutError:
            raise StartFailed(
                f"{self._model.function} was not loaded within"
                f" {self._model.startup_timeout_s:g} s; raise startup_timeout_s or load less",
                self._instance.tail(),
            ) from None

    async def invoke(self, call: Call) -> bytes:
        """See ``Session``."""
        if self._ended is not None or self._transport is None:
            # While it is being ended nothing can be run: failed at once, a call would be made here
            # again and again, and be out of attempts before there is a model.
            await asyncio.shield(self._over)
            raise self._exited()
        self._number = number = self._number + 1
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._pending[number] = (future, call)
        self._numbers[call.id] = number
        self._send(CALL_STREAM if call.stream else CALL, number, call.input)
        try:
            return await future
        except asyncio.CancelledError:
            self._send(CANCEL, number)
            raise
        finally:
            self._pending.pop(number, None)
            if self._numbers.get(call.id) == number:
                del self._numbers[call.id]

    async def cancel(self, call_id: str) -> bool:
        """See ``Session``: generators stop at their next yield, coroutines where they wait."""
        number = self._numbers.get(call_id)
        if number is not None and self._cancellable:
            self._send(CANCEL, number)
        return self._cancellable or number is None

    async def close(self) -> None:
        """See ``Session``. The host process ends itself then."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        if self._transport is not None:
            self._transport.close()
        exited = self._instance.exited
        if exited.done():  # whoever closes us may have seen it before `_watch` did
            self._end(f"the process {describe_exit(exited.result())}")
        else:
            self._end("the session was closed")

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._disconnected.done():
            self._disconnected.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._reader.feed(data)
        except WireError:
            self._abort()  # `_watch` then ends the process
            return
        for kind, number, payload in frames:
            entry = self._pending.get(number)
            if entry is None:  # abandoned meanwhile, or about the process as a whole
                self._control(kind, payload)
                continue
            future, call = entry
            if future.done():
                continue  # cancelled in this very turn of the loop
            if kind == RESULT:
                future.set_result(payload)
            elif kind == CHUNK:
                _hand_on(payload, call, future)
            elif kind == ERROR:
                future.set_exception(_error(payload))

    # --

    def _send(self, kind: int, number: int, payload: bytes = b"") -> None:
        transport = self._transport
        if transport is None or self._ended is not None:
            return
        header = HEADER.pack(len(payload), kind, number)
        if len(self._pending) <= 1 and not self._unsent:  # nobody to share a write with
            transport.write(b"".join((header, payload)))
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(header)
        self._unsent.append(payload)

    def _flush(self) -> None:
        """All that was sent in one turn of the loop goes out in one write."""
        unsent, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.writelines(unsent)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _control(self, kind: int, payload: bytes) -> None:
        if self._serving.done():
            return
        if kind == READY:
            self._cancellable = json.loads(payload)["cancellable"]
            self._serving.set_result(None)
        elif kind == FAILED:
            said = json.loads(payload)
            self._serving.set_exception(
                StartFailed(
                    f"cannot load {self._model.function}: {said['message']}",
                    (*self._instance.tail(), *said["traceback"].splitlines()[-50:]),
                )
            )

    async def _watch(self) -> None:
        """Ends all calls when the process ends; a process without its channel is ended."""
        exited, gone = self._instance.exited, self._disconnected
        await asyncio.wait((exited, gone), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((exited, gone), timeout=END_WAIT_S)
        if exited.done():
            self._end(f"the process {describe_exit(exited.result())}")
        else:
            self._ended = "the process closed its channel to the agent and was ended"
            await self._instance.stop(0)
            self._end(self._ended)

    def _end(self, why: str) -> None:
        self._ended = self._ended or why
        if not self._over.done():
            self._over.set_result(None)
        if not self._serving.done():
            self._serving.set_exception(
                StartFailed(f"{self._ended} before it was ready", self._instance.tail())
            )
            self._serving.exception()  # `ready` may not be waiting any more
        for future, _ in self._pending.values():
            if not future.done():
                future.set_exception(self._exited())

    def _exited(self) -> ModelExited:
        why = self._ended or "the session is not open"
        return ModelExited(why, "\n".join(self._instance.tail()))


def _hand_on(chunk: bytes, call: Call, future: asyncio.Future[bytes]) -> None:
    """An error of the caller's own ``on_chunk`` ends that call, not the connection of all."""
    if call.on_chunk is None:
        return
    try:
        call.on_chunk(chunk)
    except Exception as error:
        future.set_exception(error)


def _error(payload: bytes) -> CallFailed:
    said = json.loads(payload)
    kinds: dict[str, Callable[[str, str], CallFailed]] = {
        INVALID_OUTPUT: InvalidOutput,
        CANCELLED: CallCancelled,
    }
    return kinds.get(said["type"], ModelError)(said["message"], said["traceback"])
