"""The owner of the process that runs SQL of users: copies for it to read, deadlines, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from jetfleet.processes import launched
from jetfleet_projections.pages import failure
from jetfleet_projections.sandbox import HEADER

logger = logging.getLogger("jetfleet.projections.sql")

DEADLINE_S = 10.0  # for one query, from the moment it runs
MOST_ROWS = 10_000
MOST_WAITING = 16  # queries run one after the other; more than these are turned away


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of the warehouse, as of these positions. ``commits``: of the warehouse then."""

    path: Path
    commits: int
    position: dict[str, int]


@dataclass(slots=True, eq=False)
class Sandbox:
    """One process at a time, and one query in it.

    Args:
        folder: where copies lie.
        commits: of the warehouse now.
        copy: makes a copy at a path and says as of when.
    """

    folder: Path
    commits: Callable[[], int]
    copy: Callable[[Path], Awaitable[Copy]]
    deadline_s: float = DEADLINE_S
    most_rows: int = MOST_ROWS
    _process: asyncio.subprocess.Process | None = None
    _current: Copy | None = None
    _made: int = 0
    _waiting: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self) -> None:
        """Remove what an earlier run left, and have a process ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("copy-*"):
            left.unlink()
        await self._spawn()

    async def stop(self) -> None:
        await self._kill()
        if self._current is not None:
            self._current.path.unlink(missing_ok=True)

    async def run(self, sql: str) -> list[bytes]:
        """The pages that answer a query; the last may be a failure."""
        if self._waiting >= MOST_WAITING:
            return [failure("unavailable", "too many SQL queries wait already; try again later")]
        self._waiting += 1
        try:
            async with self._turn:
                return await self._run(sql, await self._fresh_copy())
        finally:
            self._waiting -= 1

    async def _run(self, sql: str, copy: Copy) -> list[bytes]:
        process = self._process
        if process is None or process.returncode is not None:
            process = await self._spawn()
        finished = False
        try:
            async with asyncio.timeout(self.deadline_s):
                answer = await self._ask(process, sql, copy)
            finished = True
        except TimeoutError:
            answer = [
                failure(
                    "query_failed", f"stopped after {self.deadline_s:g} s; ask for less at once"
                )
            ]
        except (asyncio.IncompleteReadError, ConnectionError):
            answer = [failure("query_failed", "the query ended its process: too much memory?")]
        finally:
            if not finished:  # also when nobody waits for the answer any more
                await self._kill()
                await self._spawn()
        return answer

    async def _ask(self, process: asyncio.subprocess.Process, sql: str, copy: Copy) -> list[bytes]:
        request = {
            "sql": sql,
            "copy": str(copy.path),
            "position": copy.position,
            "most": self.most_rows,
        }
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        await process.stdin.drain()
        answer, more = [], True
        while more:
            more, length = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
            answer.append(await process.stdout.readexactly(length))
        return answer

    async def _fresh_copy(self) -> Copy:
        """A copy that has everything committed by now; the last one while nothing was."""
        before = self._current
        if before is not None and before.commits == self.commits():
            return before
        self._made += 1
        path = self.folder / f"copy-{self._made}.duckdb"
        try:
            self._current = await self.copy(path)
        except BaseException:
            path.unlink(missing_ok=True)  # half a copy, where the disk is full
            raise
        if before is not None:
            before.path.unlink(missing_ok=True)  # the process may have it open; it will let go
        return self._current

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            *launched([sys.executable, "-m", "jetfleet_projections.sandbox"]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for its owner
        )
        return self._process

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
