"""Keeps the processes of one machine alive, from an ordered start to an ordered stop.

It knows nothing of what it runs; ``commands/up.py`` says that. Every program is a child in a
session of its own, its output merged into one journal. A program that ends before it was asked to
is started again, and says so. Stopping goes backwards through the list, each program bounded by its
grace and then killed, and nothing that a program left behind survives it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TextIO

import anyio
from anyio.abc import ByteReceiveStream, Process, TaskGroup

from jetfleet import processes
from jetfleet.commands.output import printable
from jetfleet.errors import StartupError

FIRST_WAIT_S = 0.2  # before the first restart; doubled each time
LONGEST_WAIT_S = 10.0
SETTLED_S = 1.0  # a program that nobody can ask is ready when it lived this long
STEADY_S = 10.0  # a program that lived this long starts again at FIRST_WAIT_S
ATTEMPTS = 3  # a program that ends this often before it was ever ready stops everything
READY_WITHIN_S = 60.0
PROBE_EVERY_S = 0.05
DRAIN_OUTPUT_S = 0.5  # for the last lines of a program that ended
LONGEST_LINE = 8192

_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95)

Probe = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Program:
    """One child.

    Args:
        argv: the command line, an absolute path first.
        ready: asked again and again after each start until True; None: ready when it lives on.
        gate: later programs are started only when this one is ready.
        grace_s: seconds between SIGTERM and SIGKILL.
        line: rewrites a line of its output, or hides it (None).
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Probe | None = None
    gate: bool = False
    grace_s: float = 10.0
    line: Callable[[str], str | None] = lambda line: line


@dataclass(slots=True)
class Journal:
    """The merged log: time, name, line. Colour only where people look."""

    out: TextIO = field(default_factory=lambda: sys.stderr)
    names: Sequence[str] = ()
    now: Callable[[], datetime] = datetime.now
    broken: bool = False

    def write(self, name: str, text: str) -> None:
        """One line. Control characters are left out: a model must not steer the terminal."""
        if self.broken:
            return
        stamp = self.now().strftime("%H:%M:%S.%f")[:-3]
        width = max((len(each) for each in self.names), default=0)
        column = f"{name:<{width}}"
        if self._coloured() and name in self.names:
            colour = _COLOURS[list(self.names).index(name) % len(_COLOURS)]
            stamp, column = f"\x1b[2m{stamp}\x1b[0m", f"\x1b[{colour}m{column}\x1b[0m"
        try:
            self.out.write(f"{stamp} {column} │ {printable(text)}\n")
            self.out.flush()
        except BrokenPipeError:
            self.broken = True  # nobody reads any more; the programs go on

    def _coloured(self) -> bool:
        return self.out.isatty() and "NO_COLOR" not in os.environ


@dataclass(slots=True, eq=False)
class Child:
    """A program and its life: started, watched, started again."""

    program: Program
    journal: Journal
    spawning: anyio.Lock
    process: Process | None = None
    starts: int = 0
    ready: anyio.Event = field(default_factory=anyio.Event)
    stopping: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    refusal: StartupError | None = None  # its probe found that starting again cannot help
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    def say(self, text: str) -> None:
        self.journal.write(self.program.name, text)

    async def keep(self, clear_orphans: Callable[[], Awaitable[None]]) -> None:
        """Run until asked to stop.

        Raises:
            StartupError: it ended ``ATTEMPTS`` times without ever having been ready, or its probe
                says that starting again cannot help.
        """
        failures = 0
        while not self.stopping.is_set():
            began = time.monotonic()
            status = await self._live()
            await clear_orphans()
            if self.stopping.is_set():
                break
            if self.refusal is not None:
                raise self.refusal
            lived = time.monotonic() - began
            failures = 1 if lived >= STEADY_S else failures + 1
            if failures >= ATTEMPTS and not self.ready.is_set():
                raise StartupError(self._gave_up(failures, status))
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (failures - 1))
            self.say(f"! {_ending(status)} after {lived:.1f} s; starting again in {wait:.1f} s")
            with anyio.move_on_after(wait):
                await self.stopping.wait()
        self.ended.set()

    async def _live(self) -> int:
        """One process from start to end; returns its exit status."""
        async with self.spawning:
            self.process = process = await anyio.open_process(
                processes.launched(self.program.argv),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.program.env},
                start_new_session=True,
            )
        self.starts += 1
        if self.stopping.is_set():  # asked while it was being started
            process.kill()
        try:
            async with anyio.create_task_group() as tasks:
                copied = anyio.Event()
                tasks.start_soon(self._copy_output, process.stdout, copied)
                tasks.start_soon(self._probe, process)
                status = await process.wait()
                with anyio.move_on_after(DRAIN_OUTPUT_S):
                    await copied.wait()  # a child of its own may hold the pipe open
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                await process.aclose()
        return status

    async def _probe(self, process: Process) -> None:
        try:
            ask = self.program.ready
            if ask is None:
                await anyio.sleep(SETTLED_S)
            while ask is not None and not await ask():  # noqa: ASYNC110 - another process is asked
                await anyio.sleep(PROBE_EVERY_S)
        except StartupError as error:
            self.refusal = error
            process.terminate()
        else:
            self.ready.set()

    async def _copy_output(self, stream: ByteReceiveStream | None, copied: anyio.Event) -> None:
        if stream is None:
            return
        kept = b""
        async for data in stream:
            *lines, kept = (kept + data).split(b"\n")
            if len(kept) > LONGEST_LINE:
                lines, kept = [*lines, kept], b""
            for line in lines:
                self._log(line)
        if kept:
            self._log(kept)
        copied.set()

    def _log(self, line: bytes) -> None:
        text = line[:LONGEST_LINE].decode(errors="replace").rstrip()
        self.tail.append(text)
        shown = self.program.line(text)
        if shown is not None:
            self.say(shown)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL when its grace is over; returns when it is gone."""
        self.stopping.set()
        process = self.process
        if process is not None and process.returncode is None:
            process.terminate()
            with anyio.move_on_after(self.program.grace_s) as patience:
                await process.wait()
            if patience.cancelled_caught:
                self.say(f"! did not stop within {self.program.grace_s:.0f} s: killed")
                process.kill()
        await self.ended.wait()

    def _gave_up(self, failures: int, status: int) -> str:
        last = next((line for line in reversed(self.tail) if line.strip()), "it said nothing")
        return (
            f"{self.program.name} cannot start ({failures} times: {_ending(status)}); "
            f"its last line: {last}"
        )


def _ending(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"


@dataclass(slots=True, eq=False)
class Supervisor:
    """Runs programs until told to stop; ``run`` returns when none is left."""

    programs: Sequence[Program]
    journal: Journal
    children: list[Child] = field(init=False)
    _stop: anyio.Event = field(default_factory=anyio.Event)
    _hurry: anyio.Event = field(default_factory=anyio.Event)
    _spawning: anyio.Lock = field(default_factory=anyio.Lock)

    def __post_init__(self) -> None:
        self.journal.names = ["up", *(program.name for program in self.programs)]
        self.children = [Child(each, self.journal, self._spawning) for each in self.programs]

    def stop(self) -> None:
        """Begin to stop; called once more: kill what is left."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self, on_ready: Callable[[], Awaitable[None]]) -> None:
        """Start, call ``on_ready`` when all are ready, keep alive; stop when asked or signalled.

        Raises:
            StartupError: a program cannot start; all others are stopped then, too.
        """
        processes.adopt_orphans()
        failure: list[StartupError] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen)
            tasks.start_soon(self._start, tasks, on_ready, failure)
            await self._stop.wait()
            tasks.start_soon(self._kill_when_hurried)
            for child in reversed(self.children):
                if child.starts or child.process is not None:
                    await child.stop()
            tasks.cancel_scope.cancel()
        await self._clear_orphans()
        if failure:
            raise failure[0]

    async def _start(
        self,
        tasks: TaskGroup,
        on_ready: Callable[[], Awaitable[None]],
        failure: list[StartupError],
    ) -> None:
        try:
            with anyio.fail_after(READY_WITHIN_S):
                for child in self.children:
                    if self._stop.is_set():
                        return
                    tasks.start_soon(self._keep, child, failure)
                    if child.program.gate:
                        await child.ready.wait()
                for child in self.children:
                    await child.ready.wait()
        except TimeoutError:
            late = ", ".join(c.program.name for c in self.children if not c.ready.is_set())
            failure.append(StartupError(f"not ready within {READY_WITHIN_S:.0f} s: {late}"))
            self.stop()
        else:
            await on_ready()

    async def _keep(self, child: Child, failure: list[StartupError]) -> None:
        try:
            await child.keep(self._clear_orphans)
        except StartupError as error:
            failure.append(error)
            child.ended.set()
            self._stop.set()

    async def _listen(self) -> None:
        with anyio.open_signal_receiver(*processes.stop_signals()) as signals:
            async for received in signals:
                if self._stop.is_set():
                    self.journal.write("up", "killing what is left")
                else:
                    self.journal.write("up", f"{received.name}: stopping; once more to kill")
                self.stop()

    async def _kill_when_hurried(self) -> None:
        await self._hurry.wait()
        for child in self.children:
            child.stopping.set()
            if child.process is not None and child.process.returncode is None:
                child.process.kill()

    async def _clear_orphans(self) -> None:
        """End what a dead program left behind (say, the models of an agent that was killed).

        Orphans become our children (``adopt_orphans``), so whatever we did not start is one.
        """
        async with self._spawning:
            known = {child.pid for child in self.children}
            orphans = processes.children(os.getpid()) - known
            processes.end(orphans, signal.SIGKILL)
            processes.reap(orphans)
