"""The conductor: a consumer that decides.

It folds REGISTRY and FLEET, calls the pure placement policy, and appends what it decides under the
condition that no other decision was made since: of two conductors only one can win, the other
folds the winner's decision and looks again. It also makes the consumers that the log's readers
need, declares silent workers lost, and hands workers the rights of what was assigned to them. It
keeps nothing that the log cannot give back: kill it any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from jetfleet import subjects
from jetfleet.agreement import disagreement
from jetfleet.catalog import RegistryState, evolve_registry
from jetfleet.connection import Connection, WrongSequence
from jetfleet.errors import JetfleetError, LogFull, Unavailable
from jetfleet.events import (
    Event,
    InvalidEvent,
    WorkerHeartbeat,
    WorkerLost,
    decode,
    encode,
)
from jetfleet.fleet import FleetState, WorkerState, evolve_fleet
from jetfleet.images import Images, evolve_images
from jetfleet.log import LogReader, Record, read_records
from jetfleet.policies import placement
from jetfleet.policies.placement import Observation
from jetfleet.policies.placement_search import Round
from jetfleet.secrets import Secrets
from jetfleet.settings import Settings
from jetfleet.setup import ensure
from jetfleet.speeds import Speeds, evolve_speeds
from jetfleet.stamp import Stamp
from jetfleet.streams import FLEET, REGISTRY
from jetfleet_projections.balancer import Balancer
from jetfleet_projections.conductor_consumers import Consumers
from jetfleet_projections.conductor_credentials import CredentialDesk
from jetfleet_projections.conductor_decisions import event_of, tried, words
from jetfleet_projections.conductor_joining import JoinDesk
from jetfleet_projections.freshness import SLOW_S, Freshness
from jetfleet_projections.observing import Watcher
from jetfleet_projections.provisioner import Provisioner
from jetfleet_projections.reaper import Reaper
from jetfleet_projections.scaler import Scaler

logger = logging.getLogger("jetfleet.conductor")
CONTROL = subjects.ALL_CONTROL.removesuffix(">")
TICK_S = 0.5  # how often silence and back-offs are looked at; events wake it at once
MISSED_HEARTBEATS = 3
SHORTEST_SILENCE_S = 3.0
DOUBTFUL = 2 / 3  # of the silence that means a worker is lost: nothing is placed there any more


@dataclass(slots=True, eq=False)
class Conductor:
    """See the module. ``run`` until cancelled."""

    connection: Connection
    settings: Settings
    stamp: Stamp = field(init=False)
    registry: RegistryState = field(default_factory=RegistryState)
    fleet: FleetState = field(default_factory=FleetState)
    speeds: Speeds = field(default_factory=Speeds)
    images: Images = field(default_factory=Images)
    set_aside: int = 0
    rounds: int = 0  # looks at the whole since it began
    _readers: list[LogReader] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _heard: dict[str, float] = field(default_factory=dict)  # by worker, loop time
    _decided_seq: int = 0  # our last decision; nothing is decided before it is folded
    _lost_seq: int = 0  # nor before the last loss that we told of: nothing goes to who is lost
    _known: float | None = None  # when this round began to know all that there is, loop time
    _slept: bool = False  # the loop stood still, since somebody looked here
    consumers: Consumers = field(init=False)
    fresh: Freshness = field(init=False)
    reaper: Reaper = field(init=False)
    scaler: Scaler = field(init=False)
    balancer: Balancer = field(init=False)
    provisioner: Provisioner = field(init=False)

    def __post_init__(self) -> None:
        self.stamp = Stamp(f"conductor/{secrets.token_hex(4)}")
        self.consumers = Consumers(self.connection, self.settings.shards)
        self.fresh = Freshness(self.connection, lambda: (self.registry.seq, self.fleet.seq))
        self.reaper = Reaper(self.connection, self.settings, self.stamp, lambda: self.registry,
                             lambda: self.fleet, self.fresh)  # fmt: skip
        watcher = Watcher(self.connection, self.settings.shards, self.stamp.clock.monotonic,
                          self._wake.set)  # fmt: skip
        self.scaler = Scaler(watcher, self.stamp)
        self.balancer = Balancer(self.connection, self.settings.shards, self.stamp)
        self.provisioner = Provisioner(self.settings, self.stamp)

    async def run(self) -> None:
        """Conduct until cancelled."""
        await self._until_possible(lambda: ensure(self.connection, self.settings))
        self.connection.on_reconnect.append(self._reconnected)
        await self.connection.subscribe(subjects.ALL_TELEMETRY, self._on_heartbeat)
        async with asyncio.TaskGroup() as tasks:
            for stream in (REGISTRY, FLEET):
                reader = LogReader(self.connection, stream, follow=True)
                self._readers.append(reader)
                tasks.create_task(self._follow(reader))
            for reader in self._readers:
                await reader.caught_up.wait()
            logger.info(
                "folded: %d jobs, %d workers, %d replicas",
                len(self.registry.jobs), len(self.fleet.workers), len(self.fleet.replicas),
            )  # fmt: skip
            await self._open_desks()
            tasks.create_task(self.reaper.run())
            while True:
                await self._round()
                self.rounds += 1
                self._wake.clear()
                await self._pause()

    async def _pause(self) -> None:
        """Until something happens, a tick at most; if it was longer, we were stopped."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self._wake.wait()
        self._slept |= loop.time() - before > TICK_S + SLOW_S

    async def _open_desks(self) -> None:
        """Answer workers, once what they may do is known."""
        keys, settings = Secrets(self.settings.data_dir), self.settings
        await CredentialDesk(
            self.connection, keys, lambda: self.fleet, settings.shards, settings.worker_life_s
        ).open()
        await JoinDesk(self.connection, settings, keys, lambda: self.fleet, self.stamp).open()

    async def _until_possible(self, work: Any) -> None:
        while True:
            try:
                await work()
            except Unavailable as error:
                logger.info("waiting for the broker: %s", error)
                await asyncio.sleep(TICK_S)
            else:
                return

    async def _reconnected(self) -> None:
        """After a broker restart: what it held in memory is gone, and nobody's silence counts."""
        self.consumers.restarted()
        self._heard.clear()
        self.reaper.broker_restarted()
        self.scaler.watcher.restarted()
        self.balancer.restarted()
        self._wake.set()
        await self._until_possible(lambda: ensure(self.connection, self.settings))

    async def _follow(self, reader: LogReader) -> None:
        async for record in read_records(reader):
            self._fold(record)
            self._wake.set()

    def _fold(self, record: Record) -> None:
        """Into the state what its subject vouches for; what is set aside moves the position too."""
        event, seq = record.event, record.seq
        why = record.error if event is None else disagreement(record.stream, record.subject, event)
        if event is None or why:
            self.set_aside += 1
            logger.warning("%s %d is set aside: %s", record.stream, seq, why)
        if record.stream == REGISTRY:
            if event is not None and not why:
                self.registry = evolve_registry(self.registry, event, seq)
            self.registry = replace(self.registry, seq=seq)
            return
        if event is not None and not why:
            self.fleet = evolve_fleet(self.fleet, event, seq)
            self.images = evolve_images(self.images, event, self.fleet)
            self.scaler.heard(event, self.fleet)
            self.balancer.heard(event)
            self.provisioner.heard(event, record.time)
        # Whatever lies on a decision's subject counts for "was anything decided since".
        control = seq if record.subject.startswith(CONTROL) else self.fleet.control_seq
        self.fleet = replace(self.fleet, seq=seq, control_seq=control)

    # -- one round

    async def _round(self) -> None:
        try:
            self._known = await self._know()
            if self._known is None:
                return
            await self.consumers.ensure(self.registry, self.fleet)
            await self._declare_lost(self._known)
            folded = self.fleet
            if folded.control_seq >= self._decided_seq and folded.seq >= self._lost_seq:
                await self._decide()
        except (Unavailable, LogFull) as error:
            logger.info("cannot decide now: %s", error)
        except JetfleetError:
            logger.exception("a round failed; trying again")

    async def _know(self) -> float | None:
        """When we knew all that there was; None: nobody's silence counts, nothing is decided."""
        known = await self.fresh.renew()
        if known is None:
            self._heard.clear()  # it is we who hear nothing, or the broker
        if self._slept:
            logger.warning("! this conductor stood still for a while; it looks anew")
            self.scaler.watcher.restarted()
            self._slept = False
        return known

    async def _decide(self) -> None:
        due = await self.scaler.look(self.registry)
        uneven = await self.balancer.look(self.registry, self.fleet, self.speeds)
        registry, fleet = self.registry, self.fleet
        for scaled in self.scaler.decide(due, registry, fleet, self.speeds):
            data = scaled.data
            subject = subjects.scaled(scaled.tenant, data.job)
            if not await self._append(scaled, subject, fleet.control_seq):
                return
            fleet = evolve_fleet(fleet, scaled, self._decided_seq)
            logger.info("↕ %s: %s to %d: %s", data.job, data.before, data.desired, data.why.reason)
        for ended in tried(registry, fleet, self.stamp):
            subject = subjects.tried(ended.tenant, ended.data.job)
            if not await self._append(ended, subject, fleet.control_seq):
                return
            fleet = evolve_fleet(fleet, ended, self._decided_seq)
            logger.info("⚗ %s: %s %s", ended.data.job, ended.data.model, ended.data.status)
        last, silent = fleet.control_seq, frozenset(self._silent(fleet))
        seen = Observation(registry, fleet, self.speeds, self.images, silent)
        work = placement.placed(seen, self.stamp.clock.now())
        for decision in work.decisions:
            event, subject = event_of(decision, seen, self.stamp, self.settings.shards)
            if not await self._append(event, subject, last):
                return
            last = self._decided_seq
            logger.info("%s", words(decision))
        for balanced in self.balancer.decide(uneven, registry, fleet):
            job, reason = balanced.data.job, balanced.data.why.reason
            if not await self._append(balanced, subjects.balanced(balanced.tenant, job), last):
                return
            last = self._decided_seq
            logger.info("⚖ %s: %s", job, reason)
            for worker, term in self.balancer.news(balanced, fleet):
                self._nudge(worker, {"balance": [term]})
        await self._provide(work, last)

    async def _provide(self, work: Round, last: int) -> None:
        """Ask for workers, or give them back, after a round of placement."""
        for event, subject, said in self.provisioner.decide(work):
            if not await self._append(event, subject, last):
                return
            last = self._decided_seq
            logger.info("%s", said)
        for leaving in self.provisioner.leaving():
            self._nudge(leaving, {"drain": True})

    async def _append(self, event: Event, subject: str, last: int) -> bool:
        """Store a decision unless another was made after ``last``; whether it was stored."""
        if not self.fresh.holds(self._known):
            return False
        try:
            stored = await self.connection.store(
                subject, encode(event), msg_id=event.id, expect=(last, subjects.ALL_CONTROL)
            )
        except WrongSequence:
            logger.info("another conductor decided first; folding its decision")
            # Its decision (or our own, stored before a connection broke) is on its way to us.
            self._decided_seq = last + 1
            return False
        self._decided_seq = stored.seq
        return True

    # -- silence

    def _on_heartbeat(self, message: Any) -> None:
        worker = message.subject.rsplit(".", 1)[1]
        self._heard[worker] = asyncio.get_running_loop().time()
        try:
            beat = decode(message.data)
        except InvalidEvent as error:
            logger.debug("a heartbeat of %s says nothing: %s", worker, error)
        else:
            if isinstance(beat, WorkerHeartbeat) and beat.data.worker == worker:
                self.speeds = evolve_speeds(self.speeds, beat)
                state = self.fleet.workers.get(worker)
                if state is not None and (
                    terms := self.balancer.nudge(beat.data, state.heartbeat_s)
                ):
                    self._nudge(worker, {"balance": terms})
        state = self.fleet.workers.get(worker)
        if state is not None and state.status in ("lost", "left"):
            # It lives after all (it was cut off or stopped): let it announce itself anew, unless
            # it has done so already and we have not folded that yet.
            self._nudge(worker, {"rejoin": state.joined_seq})

    def _nudge(self, worker: str, command: dict[str, Any]) -> None:
        """Tell a worker what may be lost."""
        body = json.dumps(command).encode()
        self.connection.spawn(self.connection.publish(subjects.command(worker), body))

    async def _declare_lost(self, now: float) -> None:
        """``now``: all that was said before then has been heard."""
        for worker in self.fleet.workers.values():
            if worker.status not in ("joined", "draining"):
                self._heard.pop(worker.name, None)
                continue
            silent = now - self._heard.setdefault(worker.name, now)
            if silent > _longest_silence_s(worker):
                if not self.fresh.holds(now):
                    return
                await self._lose(worker, silent)

    def _silent(self, fleet: FleetState) -> Iterator[str]:
        """Workers that are on the way to be lost: where many end at once, those that are declared
        lost first shall not be replaced on the others."""
        known = self._known or 0.0
        for name, worker in fleet.workers.items():
            if known - self._heard.get(name, known) > DOUBTFUL * _longest_silence_s(worker):
                yield name

    async def _lose(self, worker: WorkerState, silent: float) -> None:
        data = WorkerLost.Data(
            worker=worker.name, session=worker.session, silent_s=round(silent, 3)
        )
        event = WorkerLost(**self.stamp(self.settings.tenant), data=data)
        stored = await self.connection.store(
            subjects.fleet(worker.name, "lost"),
            encode(event),
            msg_id=f"{worker.session}.{worker.joined_seq}.lost",  # once, whoever says it
        )
        self._lost_seq = max(self._lost_seq, stored.seq)
        self._heard.pop(worker.name, None)
        logger.warning("! worker %s is lost: silent for %.1f s", worker.name, silent)


def _longest_silence_s(worker: WorkerState) -> float:
    """Of one that is not lost yet."""
    return max(MISSED_HEARTBEATS * worker.heartbeat_s, SHORTEST_SILENCE_S)
