"""The process runtime: a replica is a child process in a process group of its own.

Isolation is that of processes: own memory, own crash. It is no wall against a hostile model.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jetfleet_agent.runtimes import CHANNEL_ENV, Launch, Place, StartFailed
from jetfleet_agent.runtimes.guard import Guard
from jetfleet_agent.runtimes.tail import Tail

log = logging.getLogger("jetfleet.agent.process")

PR_SET_PDEATHSIG = 1
OUTPUT_WAIT_S = 1.0  # for the rest of the output of a process that ended
KILL_WAIT_S = 30.0  # longest a killed process may take to go (stuck in a driver, for instance)
OOM_SCORE = b"500"  # the kernel, short of memory, takes a model before the agent

_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: not between fork and exec


@functools.cache
def process_runtime() -> ProcessRuntime:
    """The runtime of this agent."""
    return ProcessRuntime()


class ProcessRuntime:
    """Starts processes. Start them from the main thread: the kernel ends them with the thread."""

    def __init__(self) -> None:
        self._guard = Guard()

    async def start(self, launch: Launch, place: Place | None = None) -> ProcessInstance:
        """Raises StartFailed when the program or its directory is missing or not executable."""
        if place is not None:
            launch = launch._replace(env={**_visible_gpus(place), **launch.env})
        if launch.directory is not None and not launch.directory.is_dir():
            raise StartFailed(f"cannot run the model: there is no directory {launch.directory}")
        ours, theirs = socket.socketpair() if launch.channel else (None, None)
        try:
            process = _spawn(launch, theirs)
        except (OSError, subprocess.SubprocessError) as error:
            if ours is not None:
                ours.close()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise StartFailed(f"cannot run {launch.argv[0]}: {reason}") from error
        finally:
            if theirs is not None:
                theirs.close()
        instance = ProcessInstance(process, ours, self._guard)
        try:
            await asyncio.shield(instance.connecting)
        except BaseException:  # cancelled, most likely: nobody will know of this process
            instance.kill()
            raise
        return instance

    async def adopt(self, launch: Launch, place: Place) -> None:
        """Nothing: processes end with the agent that started them."""

    def close(self) -> None:
        """Kill what still runs. The runtime of an agent lives as long as the agent."""
        self._guard.close()


class ProcessInstance(asyncio.Protocol):
    """One process and its group. Its output is read at all times, and mostly forgotten."""

    host: str = "127.0.0.1"
    socket_factory: Callable[[Any], socket.socket] | None = None
    image: str = ""
    network: str = ""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: socket.socket | None, guard: Guard
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._guard = guard
        self.output = Tail()
        self._output_ended = asyncio.Event()
        self._reading: asyncio.BaseTransport | None = None
        self._stopping = False
        self._killed = False
        self._ending: asyncio.Task[None] | None = None
        self.connecting = self._loop.create_task(
            self._loop.connect_read_pipe(lambda: self, process.stdout)
        )
        self.channel = channel
        self.pid: int | None = process.pid
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()  # all of the group
        guard.watch(process.pid)
        # Readable once the process has ended: works on every loop, without signals or threads.
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._process_exited)

    def tail(self) -> tuple[str, ...]:
        """The last lines of stdout and stderr, oldest first."""
        return self.output.lines()

    def reconsider(self) -> bool:
        """False: processes are started in one way only."""
        return False

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to the group, SIGKILL after ``grace_s``; returns when all of it is gone.

        Cancelled meanwhile, it kills at once.
        """
        self._stopping = True
        try:
            self._signal(signal.SIGTERM)
            async with asyncio.timeout(grace_s):
                await asyncio.shield(self.gone)
        except TimeoutError:
            log.info("process %s did not end within %g s; killing it", self.pid, grace_s)
        finally:
            self._signal(signal.SIGKILL)
        await asyncio.shield(self.gone)

    def kill(self) -> None:
        """SIGKILL to the group, now."""
        self._signal(signal.SIGKILL)

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._reading = transport

    def data_received(self, data: bytes) -> None:
        self.output.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._output_ended.set()

    def _process_exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ending = self._loop.create_task(self._end(self._process.wait()))

    # --

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group, as long as there is one."""
        if self.gone.done():
            return
        self._killed = self._killed or number == signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _end(self, status: int) -> None:
        group = self._process.pid
        if not self._stopping:
            self._signal(signal.SIGKILL)  # what it started is of no use without it
        with contextlib.suppress(TimeoutError):  # a process that left the group may hold the pipe
            async with asyncio.timeout(OUTPUT_WAIT_S):
                await self._output_ended.wait()
        if not self.exited.done():
            self.exited.set_result(status)
        await self._group_gone(group)
        self._guard.forget(group)
        if self._reading is not None:
            self._reading.close()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self.gone.set_result(None)

    async def _group_gone(self, group: int) -> None:
        """The kernel tells nobody when a group is empty, so look, ever more seldom."""
        pause, waited, since_kill = 0.002, 0.0, 0.0
        while _group_exists(group):
            if waited > 0.05 and not _group_lives(group):
                return  # zombies that their parent, not us, has to collect
            if since_kill > KILL_WAIT_S:
                log.error("process group %d cannot be killed; it is left behind", group)
                return
            await asyncio.sleep(pause)
            waited += pause
            since_kill += pause if self._killed else 0.0
            pause = min(pause * 2, 0.05)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _group_lives(group: int) -> bool:
    """Whether any member of the group is more than a zombie."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue  # ended between listing and reading
        if int(after_name[2]) == group and after_name[0] not in (b"Z", b"X"):
            return True
    return False


def _spawn(launch: Launch, channel: socket.socket | None) -> subprocess.Popen[bytes]:
    """A process in a session of its own, with nothing of ours open but its end of the channel.

    Not through the loop: uvloop's processes inherit files, and a failed start leaks two.
    """
    env = _environment(launch)
    files: tuple[int, ...] = ()
    if channel is not None:
        files = (channel.fileno(),)
        env[CHANNEL_ENV] = str(channel.fileno())
    return subprocess.Popen(
        launch.argv,
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        cwd=launch.directory,
        start_new_session=True,
        pass_fds=files,
        preexec_fn=_preparation(),  # noqa: PLW1509 - it only makes system calls, no locks
    )


def _visible_gpus(place: Place) -> dict[str, str]:
    """CUDA shows a model the GPUs that it was given; none to one that asked for none.

    GPUs without a UUID are named by NVML's index, which is the order on the bus.
    """
    if not place.gpus and place.model.resources.gpu_memory_mib:
        return {}  # assigned by a policy that named none
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(place.gpus)}


def _environment(launch: Launch) -> dict[str, str]:
    """The agent's environment without jetfleet's own settings (they locate credentials).

    Programs installed beside the agent's Python are found by name.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("JETFLEET_")}
    beside = str(Path(sys.executable).parent)
    env["PATH"] = f"{beside}{os.pathsep}{env.get('PATH', os.defpath)}"
    env["PYTHONUNBUFFERED"] = "1"  # the last words of a process that crashes are the best ones
    return env | launch.env


def _preparation() -> Callable[[], None]:
    """What the child does between fork and exec; as little as can be."""
    parent = os.getpid()

    def prepare() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the agent died before the line above
            os._exit(127)
        # A segfault with gigabytes of weights must not spend minutes writing them to disk.
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))
        with contextlib.suppress(OSError):  # not permitted in some containers; a preference only
            score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
            os.write(score, OOM_SCORE)
            os.close(score)

    return prepare
