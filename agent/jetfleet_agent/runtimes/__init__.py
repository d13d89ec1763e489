"""What a replica runs in, behind one protocol: child processes, or containers.

Kept light, because the host process of a function imports nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import signal
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from jetfleet.specs import ModelSpec, RuntimeName
    from jetfleet_agent.runtimes.tail import Tail


class Launch(NamedTuple):
    """How to start one instance; a plain value, so that starting can be tried again.

    ``env`` is laid over what the runtime gives every model. ``directory`` None: the agent's own.
    With ``channel`` the runtime makes a connected pair of stream sockets: ``Instance.channel`` is
    the agent's end, and the number of the model's end is in its environment as ``CHANNEL_ENV``.
    ``port`` is where a server was told to listen (on loopback, or in its container). For a
    container ``argv`` replaces the image's own command, unless it is empty, and ``entrypoint`` its
    entry point; the channel is a connection to ``port`` that begins with ``env["JETFLEET_TOKEN"]``.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    directory: Path | None = None
    channel: bool = False
    port: int | None = None
    entrypoint: tuple[str, ...] = ()


class Place(NamedTuple):
    """Whose instance it is, and where it runs.

    ``owner`` is the label by which this agent finds its containers again. ``gpus``: UUIDs of the
    GPUs it may use. ``report`` is told, in a few words, what a long start does just now ("pulling,
    40 of 120 MiB").
    """

    replica: str
    tenant: str
    job: str
    owner: str
    model: ModelSpec
    gpus: tuple[str, ...]
    report: Callable[[str], None]


CHANNEL_ENV = "JETFLEET_CHANNEL"
OUT_OF_MEMORY = 1137  # in place of the exit status of a container that used more than it may


class StartFailed(Exception):
    """A model could not be started or made ready. ``reason`` is one sentence for people."""

    def __init__(self, reason: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.log_tail = log_tail


class Instance(Protocol):
    """One started process or container."""

    pid: int | None
    host: str
    """Where a server in it is reached, with ``Launch.port``."""
    socket_factory: Callable[[Any], socket.socket] | None
    """Makes the sockets to reach it (aiohttp's ``socket_factory``); None: ordinary ones."""
    image: str
    """Id of the image that runs; empty for a process."""
    network: str
    """What it can reach and how it is called, in words; empty for a process."""
    exited: asyncio.Future[int]
    """Exit status (negative: the signal that ended it). Set once, when its output was read.

    Several parties wait for it: through ``asyncio.shield`` or ``asyncio.wait``, because a
    cancelled ``await`` of a future cancels the future itself."""
    channel: socket.socket | None
    """The agent's end of the channel that the launch asked for; the contract takes it over."""
    output: Tail
    """Its output (stdout and stderr)."""

    def tail(self) -> tuple[str, ...]:
        """The last lines of its output (stdout and stderr), oldest first; bounded."""

    def reconsider(self) -> bool:
        """It could not be made ready: whether the next start will be done in another way."""

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to its process group, SIGKILL after ``grace_s``; returns when all are gone."""


class Runtime(Protocol):
    """Starts instances."""

    async def start(self, launch: Launch, place: Place) -> Instance:
        """Raises StartFailed when there is nothing to speak of (no such program, no image, ...)."""

    async def adopt(self, launch: Launch, place: Place) -> Instance | None:
        """What an earlier agent started for this replica, if it runs on; made to be spoken to."""


def owner_of(worker: str, home: Path) -> str:
    """The label by which an agent knows its containers: its name, and where its files are."""
    return f"{worker}.{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:12]}"


def describe_exit(status: int) -> str:
    """An exit status in words: ``exited with status 3``, ``was killed by SIGSEGV``."""
    if status == OUT_OF_MEMORY:
        return "was killed: it used more memory than its model's resources.memory_mib"
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def runtime_of(name: RuntimeName) -> Runtime:
    """The runtime of this name; one per agent."""
    if name == "process":
        from jetfleet_agent.runtimes.process import process_runtime

        return process_runtime()
    from jetfleet_agent.runtimes.docker import docker_runtime

    return docker_runtime()
