"""The Docker SDK, which blocks, behind coroutines: on threads of its own, so that nothing waits for
it but who asked.

Short calls share a limited number of threads. What may take long (pulls, waiting for a container)
runs on a thread each, which ends with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

CALLS_AT_ONCE = 8
CALL_TIMEOUT_S = 60.0
RETRY_S = 0.25
AWAY = (
    requests.exceptions.ConnectionError,
    requests.exceptions.ReadTimeout,
    requests.exceptions.ChunkedEncodingError,  # it ended in the middle of an answer
)

T = TypeVar("T")


class EngineAway(Exception):
    """The Docker engine does not answer: it is not installed, stopped, or being restarted."""


@dataclass(slots=True, eq=False)
class Engine:
    """One Docker engine, found as the ``docker`` command finds it (``DOCKER_HOST``)."""

    timeout_s: float = CALL_TIMEOUT_S
    _api: docker.APIClient | None = None
    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(CALLS_AT_ONCE, "docker")
    )
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def api(self) -> docker.APIClient:
        """The SDK's client; blocks on first use. Raises EngineAway."""
        with self._lock:
            if self._api is None:
                self._api = connect(self.timeout_s)
            return self._api

    async def call(self, function: Callable[[docker.APIClient], T], *, wait_s: float = 0.0) -> T:
        """``function(api)`` on a thread. Cancelled, it returns when that has ended, so that what it
        made can be removed.

        Args:
            wait_s: how long an engine that was here and is away is waited for, seconds.

        Raises:
            EngineAway: it does not answer.
            docker.errors.APIError: it refuses; ``NotFound`` among them.
        """
        loop = asyncio.get_running_loop()
        until = time.monotonic() + (wait_s if self._api is not None else 0.0)
        while True:
            work = loop.run_in_executor(self._threads, self._work, function)
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                with contextlib.suppress(Exception):
                    await work
                raise
            except EngineAway:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(RETRY_S)

    def _work(self, function: Callable[[docker.APIClient], T]) -> T:
        try:
            return function(self.api())
        except AWAY as error:
            raise EngineAway(f"the Docker engine does not answer: {error}") from error


def connect(timeout_s: float | None) -> docker.APIClient:
    """A client for one thread or several. Raises EngineAway."""
    try:
        options = docker.utils.kwargs_from_env()
        return docker.APIClient(**options, version="auto", timeout=timeout_s)
    except (DockerException, *AWAY) as error:
        raise EngineAway(
            f"no Docker engine answers ({error}); install and start one, or set DOCKER_HOST"
        ) from error


def on_thread(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    """Run on a thread that the process does not wait for at its end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # no error: it is what work gave

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:
            return  # the loop is closed: nobody wants to know

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def engine_present() -> bool:
    """Whether there seems to be a Docker engine; asks nobody."""
    return bool(os.environ.get("DOCKER_HOST")) or Path("/var/run/docker.sock").exists()


def explain(error: Exception) -> str:
    """What the engine said, without the SDK's wrapping."""
    if isinstance(error, APIError):
        return str(error.explanation or error).strip()
    return str(error).strip() or type(error).__name__


__all__ = [
    "APIError", "DockerException", "Engine", "EngineAway", "NotFound", "connect", "engine_present",
    "explain", "on_thread",
]  # fmt: skip
