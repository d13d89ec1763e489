"""What a provider does, whichever its backend: listen, answer, start, stop, and find what is there.

It folds FLEET like everybody, so it knows after any end what it was asked for, what it promised and
what it started. Before anything is started, its name is in the log; what is there and is not in the
log's list is stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from jetfleet import subjects
from jetfleet.agreement import disagreement
from jetfleet.capacity import CapacityState, Provided, evolve_capacity
from jetfleet.connection import Connection
from jetfleet.errors import LogFull, Unavailable
from jetfleet.events import (
    CapacityAccepted,
    CapacityOffered,
    CapacityRefused,
    CapacityStarted,
    CapacityStopped,
    ProviderEvent,
    WorkerShape,
    encode,
)
from jetfleet.fleet import FleetState, evolve_fleet
from jetfleet.log import LogReader, Record, read_records
from jetfleet.settings import Settings
from jetfleet.stamp import Stamp
from jetfleet.streams import FLEET
from jetfleet_agent.providers import Backend, CannotStart, CannotStop, Start

logger = logging.getLogger("jetfleet.provider")
TICK_S = 1.0
LIST_S = 10.0  # how often what is there is asked for, where nothing happens
FOLD_S = 10.0  # longest wait for what is in the log already
RETRY_S = 5.0  # after what could not be stopped
AT_ONCE = 8  # starts and stops
LOST_S = 30.0  # a worker that fell silent may come back for so long


@dataclass(frozen=True, slots=True)
class Terms:
    """What is offered; see ``CapacityOffered``."""

    shape: WorkerShape
    most: int
    boot_s: float
    lease_s: float
    idle_s: float


@dataclass(slots=True, eq=False)
class Provider:
    """See the module. ``run`` until ``stop`` is set.

    Args:
        started_by: what starts a worker of this name on request.
        represented: workers of others that stand for the same machine, and take from ``most``.
        stay: whether its workers stay when it ends.
    """

    name: str
    settings: Settings
    connection: Connection
    backend: Backend
    terms: Terms
    started_by: Callable[[Provided], Start]
    represented: Callable[[FleetState], int] = lambda _: 0
    stay: bool = True
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    state: CapacityState = field(default_factory=CapacityState)
    stamp: Stamp = field(init=False)
    session: str = ""
    _fleet: FleetState = field(default_factory=FleetState)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _work: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # by worker
    _later: dict[str, float] = field(default_factory=dict)  # loop time; by worker
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    _seq: int = 0  # of FLEET, up to where it is folded
    _there: Collection[str] | None = None  # as it was listed; None: not known now
    _listed: float = 0.0
    _offered: int | None = None

    def __post_init__(self) -> None:
        self.stamp = Stamp(f"provider/{self.name}")
        self.session = self.stamp.clock.new_id()

    async def run(self) -> None:
        """Serve until told to stop; then offer nothing more."""
        reader = LogReader(self.connection, FLEET, follow=True)
        following = asyncio.create_task(self._follow(reader))
        stopping = asyncio.create_task(self.stop.wait())
        try:
            await self._either(reader.caught_up.wait(), stopping, following)
            logger.info("provider %s: %d workers from before", self.name, len(self._mine()))
            while not self.stop.is_set():
                self._wake.clear()
                await self._round()
                await self._either(self._woken(), stopping, following)
            await self._end()
        finally:
            for task in (following, stopping, *self._work.values()):
                task.cancel()
            await asyncio.gather(following, stopping, *self._work.values(), return_exceptions=True)

    async def _follow(self, reader: LogReader) -> None:
        async for record in read_records(reader):
            self._fold(record)
            self._wake.set()

    def _fold(self, record: Record) -> None:
        event, self._seq = record.event, record.seq
        if event is None or disagreement(FLEET, record.subject, event):
            return
        self._fleet = evolve_fleet(self._fleet, event, record.seq)
        self.state = evolve_capacity(self.state, event, record.time)

    async def _woken(self) -> None:
        try:
            async with asyncio.timeout(TICK_S):
                await self._wake.wait()
        except TimeoutError:
            pass

    @staticmethod
    async def _either(
        work: Coroutine[Any, Any, Any], stopping: asyncio.Task[bool], following: asyncio.Task[None]
    ) -> None:
        """Until this is done, or until told to stop; raises what ended the following of the log."""
        working = asyncio.ensure_future(work)
        await asyncio.wait({working, stopping, following}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        if following.done():
            following.result()

    # -- a round

    def _mine(self) -> list[Provided]:
        return self.state.of(self.name)

    async def _round(self) -> None:
        try:
            await self._offer(max(0, self.terms.most - self.represented(self._fleet)))
            await self._look()
            await self._answer()
        except (Unavailable, LogFull, TimeoutError) as error:
            logger.info("cannot go on now: %s", error)
            return
        except CannotStop as error:
            logger.warning("! what is there cannot be told: %s", error)
        now, mine, there = self.stamp.clock.now(), self._mine(), self._there
        orphans = sorted(set(there or ()) - {worker.worker for worker in mine})
        for worker in mine:
            if (work := self._due(worker, now, there)) is not None:
                self._begin(worker.worker, work)
        for orphan in orphans:
            self._begin(orphan, lambda name=orphan: self._remove(name))  # type: ignore[misc]

    async def _offer(self, most: int) -> None:
        if most == self._offered:
            return
        terms = self.terms
        data = CapacityOffered.Data(
            provider=self.name,
            session=self.session,
            kind=self.backend.kind,
            shape=terms.shape,
            most=most,
            boot_s=terms.boot_s,
            lease_s=terms.lease_s,
            idle_s=terms.idle_s,
        )
        await self._say(CapacityOffered(**self.stamp(self.settings.tenant), data=data))
        self._offered = most
        logger.info("offered: %d workers of %d MiB", most, terms.shape.memory_mib)

    async def _look(self) -> None:
        """What is there, and then the whole log: a name that is not in it is nobody's.

        Raises:
            CannotStop: the backend cannot tell.
        """
        loop = asyncio.get_running_loop()
        if self._listed and loop.time() - self._listed < LIST_S:
            return
        if self._work:
            return  # what is being started or stopped is there or not: nobody can tell
        there = await self.backend.list()
        info = await self.connection.api(f"STREAM.INFO.{FLEET}")
        async with asyncio.timeout(FOLD_S):
            while self._seq < int(info["state"]["last_seq"]):  # noqa: ASYNC110 - the fold is silent
                await asyncio.sleep(0.01)
        self._there, self._listed = there, loop.time()

    async def _answer(self) -> None:
        """Accept what was asked, or refuse it."""
        now, asked = self.stamp.clock.now(), dict[str, list[Provided]]()
        for worker in self._mine():
            if worker.status == "asked":
                asked.setdefault(worker.request, []).append(worker)
        for request, workers in asked.items():
            names, first = tuple(worker.worker for worker in workers), workers[0]
            if now >= first.expires_at:
                await self._refuse(first, names, "nobody was there in time")
                continue
            data = CapacityAccepted.Data(provider=self.name, request=request, workers=names)
            event = CapacityAccepted(**self.stamp(first.tenant), data=data)
            await self._say(event, f"{request}.accepted")
            logger.info("→ %s", ", ".join(names))

    def _due(
        self, worker: Provided, now: datetime, listed: Collection[str] | None
    ) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """What is to be done about a worker now."""
        there = None if listed is None else worker.worker in listed
        late = worker.coming and now >= worker.expires_at
        match worker.status:
            case "accepted" if not late:
                return lambda: self._start(worker)
            case "accepted" | "started" if late:
                took = (worker.expires_at - worker.asked_at).total_seconds()
                return lambda: self._give_back(worker, f"it did not join within {took:g} s")
            case "left":
                return lambda: self._give_back(worker, "it has left")
            case "lost" if now - worker.changed_at >= timedelta(seconds=LOST_S) or there is False:
                return lambda: self._give_back(worker, "it was lost")
            case "started" if there is False:
                return lambda: self._give_back(worker, "it ended before it joined")
        return None

    def _begin(self, worker: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do it beside, once at a time for a worker, and not at once after it failed."""
        now = asyncio.get_running_loop().time()
        if worker in self._work or now < self._later.get(worker, 0):
            return
        self._there = None
        self._work[worker] = asyncio.create_task(self._do(worker, work))

    async def _do(self, worker: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with self._slots:
                await work()
            self._later.pop(worker, None)
        except (CannotStop, Unavailable, LogFull) as error:
            logger.warning("! %s: %s", worker, error)
            self._later[worker] = loop.time() + RETRY_S
        except Exception:
            logger.exception("! %s", worker)
            self._later[worker] = loop.time() + RETRY_S
        finally:
            del self._work[worker]
            self._listed = 0.0
            self._wake.set()

    # -- what is done about a worker

    async def _start(self, worker: Provided) -> None:
        name = worker.worker
        try:
            handle = await self.backend.start(self.started_by(worker))
        except CannotStart as error:
            logger.warning("! %s cannot be started: %s", name, error)
            await self._refuse(worker, (name,), str(error))
            return
        data = CapacityStarted.Data(
            provider=self.name, request=worker.request, worker=name, handle=handle
        )
        event = CapacityStarted(**self.stamp(worker.tenant), data=data)
        await self._say(event, f"{name}.started")
        await self._until_told(name, lambda now: now is None or now.status != "accepted")

    async def _refuse(self, worker: Provided, names: tuple[str, ...], reason: str) -> None:
        data = CapacityRefused.Data(
            provider=self.name, request=worker.request, workers=names, reason=reason
        )
        await self._say(
            CapacityRefused(**self.stamp(worker.tenant), data=data), f"{names[0]}.refused"
        )
        await self._until_told(names[0], lambda now: now is None)

    async def _give_back(self, worker: Provided, reason: str) -> None:
        name = worker.worker
        await self.backend.stop(name, worker.handle)
        data = CapacityStopped.Data(
            provider=self.name, request=worker.request, worker=name, reason=reason
        )
        await self._say(CapacityStopped(**self.stamp(worker.tenant), data=data), f"{name}.stopped")
        await self._until_told(name, lambda now: now is None)
        logger.info("← %s: %s", name, reason)

    async def _remove(self, name: str) -> None:
        """What is there and should not be."""
        if name not in self.state.workers:
            logger.warning("! %s is there and was given back, or never asked for: stopped", name)
            await self.backend.stop(name, "")

    async def _until_told(self, name: str, true: Callable[[Provided | None], bool]) -> None:
        """Until what was said is folded, so that it is not done again."""
        async with asyncio.timeout(FOLD_S):
            while not true(self.state.workers.get(name)):  # noqa: ASYNC110 - the fold is silent
                await asyncio.sleep(0.01)

    async def _say(self, event: ProviderEvent, msg_id: str | None = None) -> None:
        subject = subjects.provider(self.name, event.type.rpartition(".")[2])
        await self.connection.store(subject, encode(event), msg_id=msg_id or event.id)

    # -- the end

    async def _end(self) -> None:
        """Offer nothing more; what does not stay is stopped."""
        for task in [*self._work.values()]:
            task.cancel()
        await asyncio.gather(*self._work.values(), return_exceptions=True)
        mine = [worker for worker in self._mine() if worker.status != "asked"]
        if self.stay and mine:
            names = ", ".join(worker.worker for worker in mine)
            logger.warning("! these stay until this provider runs again: %s", names)
        await self.backend.close(leave=self.stay)
        try:
            async with asyncio.timeout(TICK_S * 5):
                await self._offer(0)
                for worker in mine if not self.stay else ():
                    data = CapacityStopped.Data(
                        provider=self.name,
                        request=worker.request,
                        worker=worker.worker,
                        reason="its provider was stopped",
                    )
                    event = CapacityStopped(**self.stamp(worker.tenant), data=data)
                    await self._say(event, f"{worker.worker}.stopped")
        except (TimeoutError, Unavailable, LogFull):
            logger.info("the log cannot be written to: leaving without a word")
