"""The process that serves a function: ``python -P -m jetfleet_agent.contracts.function_host``.

Arguments: FILE.py FUNCTION CONCURRENCY MAX_OUTPUT_BYTES. The channel to the agent is the socket
whose number is in ``JETFLEET_CHANNEL``, or in a container the connection that comes to the port
``JETFLEET_PORT`` and begins with ``JETFLEET_TOKEN``. stdout and stderr stay the model's own.
Standard library only, so that it starts in some 40 ms and disturbs no model's dependencies.

- A plain function or generator with concurrency 1 runs in the main thread.
- With more, in as many threads.
- An ``async`` function or generator runs in an event loop (``host_loop``).

The process ends when the agent closes the channel, or dies. In a container it waits for the next
connection instead: the agent may have been restarted.
"""

from __future__ import annotations

import faulthandler
import hmac
import importlib.util
import json
import os
import queue
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, cast

from jetfleet_agent.contracts import host_calls
from jetfleet_agent.contracts.wire import (
    CALL_STREAM,
    CANCEL,
    CHUNK,
    FAILED,
    HEADER,
    READY,
    Frame,
    FrameReader,
)

READ_BYTES = 64 * 1024
JOIN_BYTES = 16 * 1024  # up to this size header and payload are sent as one
TOKEN_WAIT_S = 5.0  # for whoever connects to say the token

Function = Callable[[Any], Any]


def leave() -> NoReturn:
    """The agent is gone or done with us: end at once, whatever the function is doing."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more, or the model closed it
            continue
    os._exit(0)


class Door:
    """Where the agent of a container knocks."""

    def __init__(self, port: int, token: str) -> None:
        self._listener = socket.create_server(("", port))
        self._token = token.encode()

    def admit(self) -> socket.socket:
        """Wait for a connection that begins with the token."""
        while True:
            connection, _ = self._listener.accept()
            connection.settimeout(TOKEN_WAIT_S)
            try:
                said = connection.recv(len(self._token), socket.MSG_WAITALL)
            except OSError:
                said = b""
            if hmac.compare_digest(said, self._token):
                connection.settimeout(None)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection
            connection.close()


class Channel:
    """The blocking side of the socket. One thread receives; ``send`` may be called by any.

    With a ``door``, a lost connection is waited for anew, and ``greeting`` sent again; replies to
    calls of the lost one are dropped, and the agent does not know their numbers any more.
    """

    def __init__(self, connection: socket.socket, door: Door | None = None) -> None:
        self._socket = connection
        self._door = door
        self._reader = FrameReader()
        self._sending = threading.Lock()
        self.greeting = b""
        self.lost = False

    def receive(self) -> list[Frame]:
        """Waits for data; the frames that it completed, perhaps none."""
        if self.lost:
            self.reconnect()
        return self._take(0)

    def reconnect(self) -> socket.socket:
        """Wait for the agent's next connection and greet it."""
        assert self._door is not None  # without a door, losing the connection is the end
        connection = self._door.admit()
        with self._sending:
            self._socket, self._reader, self.lost = connection, FrameReader(), False
        self.send(READY, 0, self.greeting)
        return connection

    def poll(self) -> list[Frame]:
        """The frames that are there; does not wait."""
        try:
            return self._take(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []

    def _take(self, flags: int) -> list[Frame]:
        try:
            data = self._socket.recv(READ_BYTES, flags)
        except ConnectionError:
            data = b""
        if not data:
            self._lose()
        return self._reader.feed(data)

    def _lose(self) -> None:
        if self._door is None:
            leave()
        self.lost = True

    def send(self, kind: int, call: int, payload: bytes) -> None:
        """One frame, whole."""
        header = HEADER.pack(len(payload), kind, call)
        with self._sending:
            try:
                if len(payload) <= JOIN_BYTES:
                    self._socket.sendall(header + payload)
                else:
                    self._socket.sendall(header)
                    self._socket.sendall(payload)
            except ConnectionError:
                self._lose()  # still under the lock: never about a connection that came meanwhile


def load(path: Path, name: str) -> Function:
    """Import the file as a module of its own name; its folder is the first place for imports."""
    sys.argv = [str(path)]
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # never in place of a module that is in use
    spec.loader.exec_module(module)
    functions: dict[str, Function] = {k: v for k, v in vars(module).items() if callable(v)}
    if name not in functions:
        public = [k for k, v in functions.items() if k[0] != "_" and not isinstance(v, type)]
        known = ", ".join(public) or "none"
        raise AttributeError(f"{path.name} has no function {name!r}; it has: {known}")
    return functions[name]


class MainThread:
    """One call at a time, in the main thread: the least delay there is."""

    def __init__(self, channel: Channel, function: Function, output: host_calls.Output) -> None:
        self._channel = channel
        self._function = function
        self._output = output
        self._waiting: deque[Frame] = deque()

    def serve(self) -> NoReturn:
        while True:
            while not self._waiting:
                self._waiting.extend(self._channel.receive())
            kind, call, payload = self._waiting.popleft()
            if kind == CANCEL:
                continue  # that call has been answered
            self._channel.send(*self._answer(kind, call, payload))

    def _answer(self, kind: int, call: int, payload: bytes) -> tuple[int, int, bytes]:
        if self._waiting and self._is_cancelled(call):
            reply = host_calls.cancelled_reply()
        else:
            emit = self._emitter(call) if kind == CALL_STREAM else None
            reply = host_calls.run(
                self._function, payload, self._output, emit, lambda: self._poll_cancelled(call)
            )
        return reply[0], call, reply[1]

    def _emitter(self, call: int) -> Callable[[bytes], None]:
        return lambda piece: self._channel.send(CHUNK, call, piece)

    def _poll_cancelled(self, call: int) -> bool:
        self._waiting.extend(self._channel.poll())
        return self._channel.lost or self._is_cancelled(call)

    def _is_cancelled(self, call: int) -> bool:
        return any(kind == CANCEL and number == call for kind, number, _ in self._waiting)


class Threads:
    """Calls in threads, which start when they are needed; the main thread reads the channel."""

    def __init__(
        self, channel: Channel, function: Function, output: host_calls.Output, concurrency: int
    ) -> None:
        self._channel = channel
        self._function = function
        self._output = output
        self._concurrency = concurrency
        self._threads = 0
        self._waiting: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._active: set[int] = set()  # waiting or running
        self._cancelled: set[int] = set()

    def serve(self) -> NoReturn:
        while True:
            for frame in self._channel.receive():
                if frame[0] == CANCEL:
                    self._cancel(frame[1])
                else:
                    self._active.add(frame[1])
                    self._waiting.put(frame)
                    self._grow()

    def _grow(self) -> None:
        if self._threads < min(len(self._active), self._concurrency):
            self._threads += 1
            threading.Thread(target=self._work, name=f"call-{self._threads}", daemon=True).start()

    def _cancel(self, call: int) -> None:
        if call in self._active:
            self._cancelled.add(call)
        if call not in self._active:  # it was answered between the two lines above
            self._cancelled.discard(call)

    def _work(self) -> None:
        while True:
            kind, call, payload = self._waiting.get()
            if call in self._cancelled:
                reply = host_calls.cancelled_reply()
            else:
                emit = self._emitter(call) if kind == CALL_STREAM else None
                reply = host_calls.run(
                    self._function, payload, self._output, emit, self._asker(call)
                )
            self._active.discard(call)
            self._cancelled.discard(call)
            self._channel.send(reply[0], call, reply[1])

    def _emitter(self, call: int) -> Callable[[bytes], None]:
        return lambda piece: self._channel.send(CHUNK, call, piece)

    def _asker(self, call: int) -> Callable[[], bool]:
        return lambda: call in self._cancelled


def serve(
    connection: socket.socket,
    function: Function,
    concurrency: int,
    limit: int,
    door: Door | None = None,
) -> NoReturn:
    """Say that we are ready, then answer calls until the agent is gone."""
    flags = host_calls.flags_of(function)
    asynchronous = bool(flags & (host_calls.COROUTINE | host_calls.ASYNC_GENERATOR))
    cancellable = asynchronous or bool(flags & host_calls.GENERATOR)
    channel = Channel(connection, door)
    output = host_calls.Output(limit)
    channel.greeting = json.dumps({"cancellable": cancellable}).encode()
    channel.send(READY, 0, channel.greeting)
    if asynchronous:
        from jetfleet_agent.contracts.host_loop import serve_in_loop

        serve_in_loop(connection, function, output, channel.reconnect if door else None)
    if concurrency == 1:
        MainThread(channel, function, output).serve()
    Threads(channel, function, output, concurrency).serve()


def main(arguments: Iterable[str]) -> None:
    file, name, concurrency, limit = arguments
    door = None
    if port := os.environ.pop("JETFLEET_PORT", ""):
        door = Door(int(port), os.environ.pop("JETFLEET_TOKEN"))
        connection = door.admit()
    else:
        connection = socket.socket(fileno=int(os.environ.pop("JETFLEET_CHANNEL")))
        connection.set_inheritable(False)  # programs that the model starts shall not hold it open
    faulthandler.enable()  # a crash tells where it was, in the last lines of output
    for stream in (sys.stdout, sys.stderr):  # whole lines at once, and none lost in a crash
        cast(TextIOWrapper, stream).reconfigure(line_buffering=True, write_through=False)
    try:
        function = load(Path(file), name)
    except BaseException as error:  # SystemExit included: an import that exits is a failed import
        said = {"message": host_calls.describe(error), "traceback": host_calls.trace(error)}
        Channel(connection).send(FAILED, 0, json.dumps(said).encode())
        sys.exit(1)
    serve(connection, function, int(concurrency), int(limit), door)


if __name__ == "__main__":
    main(sys.argv[1:])
