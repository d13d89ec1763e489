"""One container of ours: watched until it ends, stopped when told, then nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import docker

from jetfleet_agent.runtimes import OUT_OF_MEMORY, StartFailed
from jetfleet_agent.runtimes.engine import (
    APIError,
    DockerException,
    Engine,
    EngineAway,
    NotFound,
    connect,
    explain,
)
from jetfleet_agent.runtimes.hardening import clear
from jetfleet_agent.runtimes.tail import MAX_LINES, Tail

logger = logging.getLogger("jetfleet.container")
OUTPUT_BYTES_PER_S = 1024**2  # more is read later, or lost with the engine's rotation
LOOK_AGAIN_S = 0.25
REMOVE_WAIT_S = 60.0  # for an engine that is being restarted
VANISHED = 255  # exit status of a container that was removed by somebody else
CONNECT_RETRY_S = 0.01


@dataclass(slots=True, eq=False)
class Container:
    """See the module; it is an ``Instance``.

    Args:
        id: the engine's. host, socket_factory, image, network: see ``Instance``.
        on_guess_failed: called when ``reconsider`` is; None: nothing was guessed.
    """

    engine: Engine
    id: str
    replica: str
    host: str
    socket_factory: Callable[[Any], socket.socket] | None
    image: str
    network: str
    on_guess_failed: Callable[[], None] | None = None
    pid: int | None = None
    channel: socket.socket | None = None
    exited: asyncio.Future[int] = field(init=False)
    output: Tail = field(default_factory=Tail)
    _loop: asyncio.AbstractEventLoop = field(init=False)
    _removing: asyncio.Future[None] | None = None
    _over: threading.Event = field(default_factory=threading.Event)  # nobody needs its output

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.exited = self._loop.create_future()

    def watch(self) -> None:
        """Follow its output and its end, on a thread of its own; call it once."""
        threading.Thread(target=self._watch, name=f"watch-{self.id[:12]}", daemon=True).start()

    def tail(self) -> tuple[str, ...]:
        """The last lines of stdout and stderr, oldest first."""
        return self.output.lines()

    def reconsider(self) -> bool:
        """See ``Instance``."""
        if self.on_guess_failed is None:
            return False
        self.on_guess_failed()
        return True

    async def connect_channel(self, port: int, token: str, within_s: float) -> None:
        """Connect to the host process of a function. Raises StartFailed when it does not listen."""
        said = "nothing was tried"
        try:
            async with asyncio.timeout(within_s):
                while self.channel is None:
                    try:
                        self.channel = await self._connect(port, token)
                    except OSError as error:
                        said = str(error)
                        await self._pause_unless_exited(CONNECT_RETRY_S)
        except TimeoutError:
            raise StartFailed(
                f"its host process did not listen within {within_s:g} s ({said}); the image needs"
                " Python 3.11 or newer as python3",
                self.tail(),
            ) from None

    async def _pause_unless_exited(self, seconds: float) -> None:
        await asyncio.wait((self.exited,), timeout=seconds)
        if self.exited.done():
            raise StartFailed("its container ended before it was spoken to", self.tail())

    async def _connect(self, port: int, token: str) -> socket.socket:
        address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", (self.host, port))
        made = self.socket_factory(address) if self.socket_factory else socket.socket()
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(made, (self.host, port))
            await self._loop.sock_sendall(made, token.encode())
        except BaseException:
            made.close()
            raise
        return made

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, SIGKILL after ``grace_s``, and remove it; returns when all of it is gone.

        An engine that is away is waited for; a container that cannot be removed is left to the next
        sweep, and said so.
        """
        if self._removing is None:
            self._removing = asyncio.ensure_future(self._remove(grace_s))
        await asyncio.shield(self._removing)

    async def _remove(self, grace_s: float) -> None:
        try:
            if grace_s > 0 and not self.exited.done():
                await self._try(lambda api: api.stop(self.id, timeout=max(1, round(grace_s))))
            await self._try(lambda api: clear(api, self.replica))
        finally:
            self._over.set()
            self._on_exit(-signal.SIGKILL)

    async def _try(self, step: Callable[[docker.APIClient], Any]) -> None:
        try:
            with contextlib.suppress(NotFound):
                await self.engine.call(step, wait_s=REMOVE_WAIT_S)
        except (APIError, EngineAway) as error:
            if "already in progress" not in str(error):
                logger.warning("! container %s is left behind for now: %s", self.id[:12],
                               explain(error))  # fmt: skip

    # -- on its thread

    def _watch(self) -> None:
        """Read its output until it ends; an engine that is restarted is waited for."""
        tail = MAX_LINES
        while not (self._loop.is_closed() or self.exited.done()):
            try:
                with contextlib.closing(connect(None)) as api:
                    self._read(api, tail)
                    state = api.inspect_container(self.id)["State"]
            except NotFound:
                self._tell(VANISHED)
                return
            except (DockerException, EngineAway, OSError):  # requests' errors are OSErrors
                state = {"Running": True}  # as far as anybody knows
            if not state["Running"]:
                self._tell(status_of(state))
                return
            tail = 0
            self._over.wait(LOOK_AGAIN_S)  # the engine may be back then; we are not on the loop

    def _read(self, api: docker.APIClient, tail: int) -> None:
        read, since = 0, time.monotonic()
        for piece in api.logs(self.id, stream=True, follow=True, tail=tail):
            try:
                self._loop.call_soon_threadsafe(self.output.feed, piece)
            except RuntimeError:
                return  # the loop is closed
            read += len(piece)
            if read > OUTPUT_BYTES_PER_S:
                # Read no faster than allowed; what is not read stays with the engine.
                if self._over.wait(max(0.0, 1.0 - (time.monotonic() - since))):
                    return
                read, since = 0, time.monotonic()

    def _tell(self, status: int) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._on_exit, status)

    def _on_exit(self, status: int) -> None:
        if not self.exited.done():
            self.exited.set_result(status)
        if self.channel is not None:
            self.channel.close()
            self.channel = None


def status_of(state: dict[str, Any]) -> int:
    """An exit status as ``Instance.exited`` gives it, from the engine's ``State``."""
    if state.get("OOMKilled"):
        return OUT_OF_MEMORY
    code = int(state.get("ExitCode", VANISHED))
    return 128 - code if 128 < code < 128 + 65 else code  # the kernel has 64 signals
