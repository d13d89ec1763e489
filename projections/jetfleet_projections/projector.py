"""The projector: reads REGISTRY, INVOCATIONS and FLEET, and folds them into the warehouse.

It publishes nothing and decides nothing. Kill it at any time: rows and positions are committed
together, so it goes on where it was.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import duckdb

from jetfleet.connection import Connection
from jetfleet.errors import JetfleetError
from jetfleet_projections.feed import LIVE, Feed, LogChanged
from jetfleet_projections.folding import SLOTS, Staged
from jetfleet_projections.sandboxes import Copy
from jetfleet_projections.warehouse import STREAMS, Warehouse

logger = logging.getLogger("jetfleet.projections")

MOST = 40_000  # messages of a batch
# A small batch costs some 20 ms, mostly for planning its SQL. Nobody sees how old the tables are
# before asking, and who asks hurries it; so small batches wait for company, the longer the more
# they cost.
LINGER_S = 0.1
LONGEST_LINGER_S = 0.5
IDLE_SHARE = 9  # times as long as the last batch took: a tenth of a core, until batches are full
RETRY_S = 1.0
NICE = 5  # whoever serves a request goes first
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Projector:
    """Follows the streams from ``start`` to ``stop``."""

    connection: Connection
    warehouse: Warehouse
    feeds: dict[str, Feed] = field(default_factory=dict)
    _stager: ThreadPoolExecutor = field(init=False)
    _writer: ThreadPoolExecutor = field(init=False)
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(len(SLOTS)))
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _hurried: int = 0  # callers of `catch_up` that wait
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self._stager = ThreadPoolExecutor(1, "stager", initializer=_yield_to_others)
        self._writer = ThreadPoolExecutor(1, "writer", initializer=_yield_to_others)

    @property
    def position(self) -> dict[str, int]:
        """The last folded message of each stream."""
        return {stream: at.seq for stream, at in self.warehouse.positions.items()}

    async def run(self) -> None:
        """Follow until cancelled; a batch that is being written by then is written whole.

        Raises:
            duckdb.FatalException: the file cannot be used any more; start anew.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for stream in STREAMS:
                    tasks.create_task(self._follow(stream, tasks))
        finally:
            # The threads may be in the middle of a batch; they are let finish.
            await asyncio.to_thread(self._stager.shutdown)
            await asyncio.to_thread(self._writer.shutdown)

    async def catch_up(self, longest_s: float) -> bool:
        """Fold what every stream has now; False when that took longer than ``longest_s``."""
        self._hurried += 1
        self._hurry.set()
        try:
            async with asyncio.timeout(longest_s):
                ends = await self._ends()
                async with self._moved:
                    await self._moved.wait_for(
                        lambda: all(self.position[stream] >= seq for stream, seq in ends.items())
                    )
        except (TimeoutError, JetfleetError) as error:
            logger.info("not caught up within %s s %s", longest_s, error)
            return False
        finally:
            self._hurried -= 1
            if not self._hurried:
                self._hurry.clear()
        return True

    async def copy(self, path: Path) -> Copy:
        """Copy the file as of now."""
        return await _in(self._writer, lambda: self._copy(path))

    def _copy(self, path: Path) -> Copy:
        self.warehouse.copy_to(path)
        return Copy(path, self.warehouse.commits, self.position)

    async def _ends(self) -> dict[str, int]:
        """The last sequence of each stream, as the broker has it; 0 where all has aged out."""
        answers = await asyncio.gather(
            *(self.connection.api(f"STREAM.INFO.{stream}") for stream in STREAMS)
        )
        return {
            stream: answer["state"]["last_seq"] if answer["state"]["messages"] else 0
            for stream, answer in zip(STREAMS, answers, strict=True)
        }

    async def _follow(self, stream: str, tasks: asyncio.TaskGroup) -> None:
        """Stage batch after batch; each is committed while the next is staged."""
        at = self.warehouse.positions[stream]
        feed = Feed(self.connection, stream, at.seq, at.stored_ns)
        self.feeds[stream] = feed
        committing: asyncio.Task[float] | None = None
        took = 0.0
        feed.start()
        try:
            while True:
                try:
                    linger = min(LONGEST_LINGER_S, max(LINGER_S, IDLE_SHARE * took))
                    await feed.gather(linger, self._hurry)
                except LogChanged as change:
                    logger.warning("%s; what came from it is dropped and read anew", change)
                    if committing is not None:
                        await committing
                    await _in(self._writer, lambda: self.warehouse.forget(stream))
                    feed.position = feed.stored_ns = 0
                    continue
                batch = await feed.take(MOST)
                if not batch.seqs:
                    continue
                await self._slots.acquire()
                began = time.perf_counter()
                staged = await _in(self._stager, functools.partial(self.warehouse.stage, batch))
                staging = time.perf_counter() - began
                if committing is not None:
                    await committing
                committing = tasks.create_task(self._commit(staged))
                if feed.waiting < LIVE:
                    took = staging + await committing
        finally:
            await feed.stop()

    async def _commit(self, staged: Staged) -> float:
        """Returns the seconds it took; tries for ever where the disk is full."""
        batch = staged.batch
        while True:
            began = time.perf_counter()
            try:
                aside = await _in(self._writer, lambda: self.warehouse.commit(staged))
                break
            except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
                logger.error("%s: cannot write, trying again: %s", batch.stream, error)
                await asyncio.sleep(RETRY_S)
        self._slots.release()
        took = time.perf_counter() - began
        if aside:
            logger.warning("%s: %d of %d messages set aside", batch.stream, aside, len(batch))
        logger.debug(
            "%s: %d committed in %.0f ms, at %d",
            batch.stream, len(batch), took * 1000, batch.seqs[-1],
        )  # fmt: skip
        async with self._moved:
            self._moved.notify_all()
        return took


async def _in(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """Run in a thread; not cut short when we are."""
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(thread, work))


def _yield_to_others() -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
