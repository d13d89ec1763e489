"""Serving an ``async`` function or generator, in the host process. Imported only when needed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Any, NoReturn, cast

from jetfleet_agent.contracts import host_calls
from jetfleet_agent.contracts.host_calls import Reply
from jetfleet_agent.contracts.wire import CALL_STREAM, CANCEL, CHUNK, HEADER, RESULT, FrameReader


def serve_in_loop(
    connection: socket.socket,
    function: Callable[[Any], Any],
    output: host_calls.Output,
    again: Callable[[], socket.socket] | None,
) -> NoReturn:
    """Answer calls, each a task, until the agent closes the channel.

    ``again`` waits for its next connection and greets it; None: there will be none.
    """
    from jetfleet_agent.contracts.function_host import leave

    async def serve() -> None:
        current, loop = connection, asyncio.get_running_loop()
        while True:
            host = LoopHost(function, output)
            await loop.connect_accepted_socket(lambda host=host: host, current)  # type: ignore[misc]
            await host.closed
            if again is None:
                leave()
            host.abandon()
            current = await loop.run_in_executor(None, again)

    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(serve())
        leave()


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed (a third off each call); models see an ordinary loop."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class LoopHost(asyncio.Protocol):
    """Calls in, replies out. All that is sent in one turn of the loop goes out in one write."""

    _transport: asyncio.Transport  # from connection_made on

    def __init__(self, function: Callable[[Any], Any], output: host_calls.Output) -> None:
        self._loop = asyncio.get_running_loop()
        self._function = function
        self._output = output
        self._reader = FrameReader()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._cancelling: set[int] = set()
        self._unsent: list[bytes] = []
        self._writable: asyncio.Future[None] | None = None  # set while the agent reads too slowly
        self.closed: asyncio.Future[None] = self._loop.create_future()

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        for kind, call, payload in self._reader.feed(data):
            if kind == CANCEL:
                self._cancel(call)
            else:
                self._tasks[call] = self._loop.create_task(self._run(kind, call, payload))

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    # --

    def abandon(self) -> None:
        """The agent that asked is gone; the next one asks anew."""
        for task in self._tasks.values():
            task.cancel()

    def _cancel(self, call: int) -> None:
        task = self._tasks.get(call)
        if task is not None and call not in self._cancelling:
            self._cancelling.add(call)
            task.add_done_callback(lambda _: self._answer(call, host_calls.cancelled_reply()))
            task.cancel()

    async def _run(self, kind: int, call: int, payload: bytes) -> None:
        try:
            argument = host_calls.decode_input(payload)
            value = self._function(argument)
            if hasattr(value, "__anext__"):
                reply = await self._drain(value, call if kind == CALL_STREAM else None)
            else:
                if hasattr(value, "__await__"):
                    value = await value
                reply = RESULT, self._output.encode(value)
        except asyncio.CancelledError as error:
            if call in self._cancelling:
                return  # answered when this task is done; also if it never got to run
            reply = host_calls.failure(error)
        except BaseException as error:  # SystemExit and KeyboardInterrupt are the model's too
            reply = host_calls.failure(error)
        self._answer(call, reply)

    async def _drain(self, generator: AsyncGenerator[Any, None], call: int | None) -> Reply:
        values = self._output.collect()
        try:
            async for value in generator:
                piece = values.add(value)
                if call is not None:
                    self._send(CHUNK, call, piece)
                # Let the chunk out and a cancel in, even if the generator never waits.
                await (self._writable or asyncio.sleep(0))
        finally:
            await generator.aclose()
        return RESULT, values.whole()

    def _answer(self, call: int, reply: Reply) -> None:
        if self._tasks.pop(call, None) is not None:
            self._cancelling.discard(call)
            self._send(reply[0], call, reply[1])

    def _send(self, kind: int, call: int, payload: bytes) -> None:
        if self._transport.is_closing():
            return  # the agent that asked is gone
        header = HEADER.pack(len(payload), kind, call)
        if not self._tasks and not self._unsent:  # nobody to share a write with
            self._transport.write(b"".join((header, payload)))
            return
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(header)
        self._unsent.append(payload)

    def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
