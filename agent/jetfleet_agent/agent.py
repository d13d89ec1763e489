"""The agent: joins, obeys the assignments addressed to it, heartbeats, drains, leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jetfleet import subjects
from jetfleet.connection import Connection
from jetfleet.errors import BrokerUnavailable, LogFull
from jetfleet.events import (
    Event,
    InvalidEvent,
    ReplicaAssigned,
    ReplicaReleased,
    WorkerDraining,
    WorkerHeartbeat,
    WorkerJoined,
    WorkerLeft,
    decode,
    encode,
)
from jetfleet.settings import Settings
from jetfleet.stamp import Stamp
from jetfleet.streams import FLEET
from jetfleet_agent.gpus import Gpus
from jetfleet_agent.links import WorkerKey
from jetfleet_agent.logs import LogStreams
from jetfleet_agent.machine import LoadMeter, describe_machine
from jetfleet_agent.pulls import Pull
from jetfleet_agent.replicas import Replica
from jetfleet_agent.serving import JobKey, Serving
from jetfleet_agent.shared_slots import SharedSlots
from jetfleet_agent.worker import JobWorker

logger = logging.getLogger("jetfleet.agent")
LEAVE_S = 5.0
FULL_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What a worker says of itself when it joins."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    owner: str = ""
    trusted: bool = False
    ephemeral: bool = False
    price_per_hour: float = 0.0
    heartbeat_s: float = 2.0
    slots: int | None = None  # most invocations at once over all replicas; None: no limit


@dataclass(slots=True, eq=False)
class Agent:
    """See the module. ``run`` until ``stop`` is set."""

    identity: Identity
    settings: Settings
    connection: Connection
    key: WorkerKey
    workdir: Path
    version: str
    drain_s: float = 30.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: str = ""  # why, once it is so
    stamp: Stamp = field(init=False)
    serving: Serving = field(init=False)
    logs: LogStreams = field(init=False)
    session: str = ""
    joined_seq: int = 0
    _gpus: Gpus = field(default_factory=Gpus)
    _saying: asyncio.Lock = field(default_factory=asyncio.Lock)
    _rejoining: bool = False
    _assignments: Pull | None = None

    def __post_init__(self) -> None:
        self.stamp = Stamp(f"worker/{self.identity.name}")
        self.session = self.stamp.clock.new_id()
        self.serving = Serving(
            self.identity.name, self.settings, self.connection, self.key, self.workdir, self.stamp,
            self._say, self.drain_s, self.session,
            None if self.identity.slots is None else SharedSlots(self.identity.slots),
        )  # fmt: skip
        self.logs = LogStreams(self.serving)

    @property
    def jobs(self) -> dict[JobKey, JobWorker]:
        """The jobs that are served here, by tenant and name."""
        return self.serving.jobs

    @property
    def replicas(self) -> dict[str, Replica]:
        """What runs here, by id."""
        return self.serving.replicas

    async def run(self) -> None:
        """Serve until told to stop, then drain and leave."""
        name = self.identity.name
        await self.connection.subscribe(subjects.command(name), self._on_command)
        pull = self._assignments = Pull(
            self.connection, FLEET, subjects.worker_consumer(name), lambda: 16, lambda: 16,
            self._on_control,
            grouped=False,
        )  # fmt: skip
        outlived = await self.serving.outlived()
        await self._join(tuple(event.data.replica for event in outlived))
        await pull.open()
        self.beside(self.serving.adopt(outlived))
        beating = asyncio.create_task(self._heartbeats())
        try:
            await self.stop.wait()
            await pull.close()  # an assignment that comes now is for whoever follows us
            await self._leave()
        finally:
            beating.cancel()
            await pull.close()
            await asyncio.gather(beating, return_exceptions=True)
            await self.serving.close()
            self._gpus.close()

    # -- what it says

    async def _say(self, event: Event, verb: str) -> int:
        """Append a fleet event, in the order of calls; waits for the log as long as it takes."""
        subject = subjects.fleet(self.identity.name, verb)
        async with self._saying:
            while True:
                try:
                    stored = await self.connection.store(
                        subject, encode(event), msg_id=event.id, timeout_s=None
                    )
                except LogFull as error:
                    logger.warning("! %s is not in the log: %s", event.type, error)
                    await asyncio.sleep(FULL_RETRY_S)
                else:
                    return stored.seq

    async def _join(self, outlived: tuple[str, ...] = ()) -> None:
        who = self.identity
        gpus = await self._gpus.specs()
        data = WorkerJoined.Data(
            worker=who.name,
            session=self.session,
            machine=await asyncio.to_thread(describe_machine, self.workdir, gpus),
            agent_version=self.version,
            public_key=self.key.public_key,
            replicas=(*self.replicas, *outlived),
            labels=who.labels,
            owner=who.owner,
            trusted=who.trusted,
            ephemeral=who.ephemeral,
            price_per_hour=who.price_per_hour,
            heartbeat_s=who.heartbeat_s,
        )
        event = WorkerJoined(**self.stamp(self.settings.tenant), data=data)
        self.joined_seq = await self._say(event, "joined")
        machine = data.machine
        logger.info(
            "joined as %s: %d CPUs, %d MiB, %d GPUs",
            who.name, machine.cpu_count, machine.memory_mib, len(machine.gpus),
        )  # fmt: skip

    async def _heartbeats(self) -> None:
        meter = LoadMeter()
        while True:
            try:
                await self._heartbeat(meter)
            except Exception:  # one that is missing is better than none any more
                logger.exception("! a heartbeat failed")
            await asyncio.sleep(self.identity.heartbeat_s)

    async def _heartbeat(self, meter: LoadMeter) -> None:
        load, gpus = meter.read(), await self._gpus.loads()
        data = WorkerHeartbeat.Data(
            worker=self.identity.name,
            session=self.session,
            cpu=load.cpu,
            memory_used_mib=load.memory_used_mib,
            gpus=gpus or (),
            jobs=tuple(job.load(self._gpus.kind) for job in self.jobs.values()),
        )
        beat = WorkerHeartbeat(**self.stamp(self.settings.tenant), data=data)
        with contextlib.suppress(BrokerUnavailable):  # it hears silence anyway
            self.connection.send(subjects.telemetry(self.identity.name), encode(beat))
        if (change := self._gpus.change(gpus)) is not None:
            self._join_anew(*change)

    # -- what it hears

    def _on_command(self, message: Any) -> None:
        """Nudges: they may be lost, and obeying one twice does no harm."""
        try:
            command = json.loads(message.data)
        except ValueError:
            command = None
        if not isinstance(command, dict):
            logger.warning("a command that is no JSON object is ignored")
            return
        if "cancel" in command:
            for job in self.jobs.values():
                if command["cancel"] in job.tasks:
                    job.cancel(command["cancel"], command.get("reason", ""))
        if command.get("rejoin") == self.joined_seq:  # else it is not of our last joining
            self._join_anew("thought lost by the conductor", None)
        if isinstance(command.get("logs"), dict):
            self.logs.lease(command["logs"])
        if isinstance(command.get("balance"), list):
            self.serving.heed(command["balance"])
        if command.get("listen") and self._assignments is not None:
            self.beside(self._assignments.again())
        if command.get("drain"):
            within_s = command.get("within_s")
            self.leave("asked to", None if within_s is None else float(within_s))

    def leave(self, reason: str, within_s: float | None = None) -> None:
        """Drain, then end; the first reason is told. ``within_s``: instead of ``drain_s``."""
        if not self.stop.is_set():
            self.leaving = reason
            if within_s is not None:
                self.drain_s = self.serving.drain_s = within_s
            self.stop.set()

    def _join_anew(self, reason: str, gone: frozenset[str] | None) -> None:
        if not self._rejoining and not self.stop.is_set():
            self._rejoining = True
            self.beside(self._rejoin(reason, gone))

    async def _rejoin(self, reason: str, gone: frozenset[str] | None) -> None:
        """End the replicas on GPUs that are gone, and announce the machine as it is now.

        ``gone`` None: we were thought lost and all of our replicas were replaced, so all end.
        """
        try:
            logger.warning("! %s; joining anew", reason)
            if gone:
                await self._say_draining(reason)
            wait_s = self.drain_s if gone is None else 0
            ended = [r for r in self.replicas.values() if gone is None or gone & {*r.gpus}]
            await asyncio.gather(*(self.serving.end(replica, wait_s) for replica in ended))
            if not self.stop.is_set():  # else it would join after it has left
                await self._join()
        finally:
            self._rejoining = False

    def _on_control(self, message: Any) -> None:
        """An assignment or release addressed to us; acknowledged once it is in our hands."""
        seq = int(message.reply.rsplit(".", 4)[1])
        try:
            event = decode(message.data)
        except InvalidEvent as error:
            logger.warning("FLEET %d is set aside: %s", seq, error)
        else:
            addressed = message.subject.rsplit(".", 1)[1] == self.identity.name
            if self.stop.is_set():
                return  # unacked, it comes to whoever follows us
            if self._rejoining and isinstance(event, ReplicaAssigned):
                return  # whether it outlives our joining is not known yet; unacked, it comes again
            if seq > self.joined_seq and addressed:
                self._obey(event)
        with contextlib.suppress(BrokerUnavailable):  # it comes again
            self.connection.send(message.reply, b"+ACK")

    def _obey(self, event: Event) -> None:
        if isinstance(event, ReplicaAssigned):
            self.serving.begin(event)
        elif isinstance(event, ReplicaReleased):
            known = self.serving.replicas.get(event.data.replica)
            if known is not None:
                self.beside(self.serving.end(known, self.drain_s))
            else:
                data = event.data
                self.beside(self.serving.say_stopped(event.tenant, data.job, data.replica))

    # -- leaving

    async def _leave(self) -> None:
        """Drain: take nothing more, let what runs end, say good-bye."""
        name = self.identity.name
        logger.info(
            "draining: %d invocations running", sum(len(j.tasks) for j in self.jobs.values())
        )
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._say_draining(self.leaving)
        except TimeoutError:
            logger.warning("the log cannot be written to: leaving without a word")
        await self.serving.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                left = WorkerLeft.Data(worker=name, session=self.session)
                await self._say(WorkerLeft(**self.stamp(self.settings.tenant), data=left), "left")
                logger.info("left")

    async def _say_draining(self, reason: str = "") -> None:
        data = WorkerDraining.Data(worker=self.identity.name, session=self.session, reason=reason)
        await self._say(WorkerDraining(**self.stamp(self.settings.tenant), data=data), "draining")

    def beside(self, work: Any) -> None:
        """Run something beside the agent, until it ends; a failure is logged, not lost."""
        self.serving.soon(work)
