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
from jetfleet.errors import Unavailable
from jetfleet.events import (
    Event,
    InvalidEvent,
    ReplicaAssigned,
    ReplicaFailed,
    ReplicaPreparing,
    ReplicaReady,
    ReplicaReleased,
    ReplicaStopped,
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
from jetfleet_agent.links import JobLink, NotAssigned, WorkerKey
from jetfleet_agent.machine import LoadMeter, describe_machine
from jetfleet_agent.pulls import Pull
from jetfleet_agent.replicas import Replica
from jetfleet_agent.runtimes import StartFailed
from jetfleet_agent.worker import JobWorker

logger = logging.getLogger("jetfleet.agent")
JobKey = tuple[str, str]
LEAVE_S = 5.0


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
    jobs: dict[JobKey, JobWorker] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    stamp: Stamp = field(init=False)
    session: str = ""
    joined_seq: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _opening: dict[JobKey, asyncio.Lock] = field(default_factory=dict)
    _gpus: Gpus = field(default_factory=Gpus)
    _rejoining: bool = False
    _assignments: Pull | None = None

    def __post_init__(self) -> None:
        self.stamp = Stamp(f"worker/{self.identity.name}")
        self.session = self.stamp.clock.new_id()

    async def run(self) -> None:
        """Serve until told to stop, then drain and leave."""
        name = self.identity.name
        await self.connection.subscribe(subjects.command(name), self._on_command)
        pull = self._assignments = Pull(
            self.connection, FLEET, subjects.worker_consumer(name), lambda: 16, lambda: 16,
            self._on_control,
            grouped=False,
        )  # fmt: skip
        await self._join()
        await pull.open()
        beating = asyncio.create_task(self._heartbeats())
        try:
            await self.stop.wait()
            await self._leave()
        finally:
            beating.cancel()
            await pull.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(beating, *self._tasks, return_exceptions=True)
            await self._stop_everything()
            self._gpus.close()

    # -- what it says

    async def _say(self, event: Event, verb: str, msg_id: str | None = None) -> int:
        """Append a fleet event; waits for the broker as long as it takes."""
        subject = subjects.fleet(self.identity.name, verb)
        stored = await self.connection.store(
            subject, encode(event), msg_id=msg_id or event.id, timeout_s=None
        )
        return stored.seq

    async def _join(self) -> None:
        who = self.identity
        gpus = await self._gpus.specs()
        data = WorkerJoined.Data(
            worker=who.name,
            session=self.session,
            machine=await asyncio.to_thread(describe_machine, self.workdir, gpus),
            agent_version=self.version,
            public_key=self.key.public_key,
            replicas=tuple(self.replicas),
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
            load = meter.read()
            data = WorkerHeartbeat.Data(
                worker=self.identity.name,
                session=self.session,
                cpu=load.cpu,
                memory_used_mib=load.memory_used_mib,
                gpus=await self._gpus.loads(),
                jobs=tuple(job.load() for job in self.jobs.values()),
            )
            beat = WorkerHeartbeat(**self.stamp(self.settings.tenant), data=data)
            with contextlib.suppress(Unavailable):  # silence is what a lost broker hears anyway
                await self.connection.publish(subjects.telemetry(self.identity.name), encode(beat))
            await asyncio.sleep(self.identity.heartbeat_s)

    # -- what it hears

    def _on_command(self, message: Any) -> None:
        """Nudges: they may be lost, and obeying one twice does no harm."""
        try:
            command = json.loads(message.data)
        except ValueError:
            logger.warning("a command is not JSON and is ignored")
            return
        if "cancel" in command:
            for job in self.jobs.values():
                if command["cancel"] in job.tasks:
                    job.cancel(command["cancel"], command.get("reason", ""))
        if command.get("rejoin") and not self._rejoining and not self.stop.is_set():
            self._rejoining = True
            self._soon(self._rejoin())
        if command.get("listen") and self._assignments is not None:
            self._soon(self._assignments.again())
        if command.get("drain"):
            self.stop.set()

    async def _rejoin(self) -> None:
        """We were thought lost: our replicas were replaced, so end them and announce ourselves."""
        try:
            logger.warning("! thought lost by the conductor; joining anew")
            for replica in list(self.replicas.values()):
                await self._end(replica)
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
            if seq > self.joined_seq and addressed and not self.stop.is_set():
                self._obey(event)
        self._soon(self.connection.publish(message.reply, b"+ACK"))

    def _obey(self, event: Event) -> None:
        if isinstance(event, ReplicaAssigned) and event.data.replica not in self.replicas:
            data = event.data
            replica = Replica(
                data.replica,
                event.tenant,
                data.spec,
                self.workdir / data.replica,
                lambda: self._slots_changed((event.tenant, data.job)),
                self.settings.payload_limit,
                self.identity.name,
                data.gpus,
                lambda stage: self._report(replica, stage),
            )
            self.replicas[replica.id] = replica
            self._soon(self._begin(replica, event))
        elif isinstance(event, ReplicaReleased):
            known = self.replicas.get(event.data.replica)
            if known is not None:
                self._soon(self._end(known))
            else:
                self._soon(self._say_stopped(event.tenant, event.data.job, event.data.replica))

    # -- replicas

    async def _begin(self, replica: Replica, event: ReplicaAssigned) -> None:
        """Prepare a replica; it serves from the moment its job's pull counts its slots."""
        began = asyncio.get_running_loop().time()
        facts = self._facts(replica)
        preparing = ReplicaPreparing(
            **self.stamp(replica.tenant, cause=event), data=ReplicaPreparing.Data(**facts)
        )
        await self._say(preparing, "preparing")
        try:
            job = await self._job(replica, event.data.shard)
            job.replicas.append(replica)
            await replica.start(self._on_lost)
        except (StartFailed, NotAssigned) as error:
            reason = error.reason if isinstance(error, StartFailed) else str(error)
            replica.failure = error if isinstance(error, StartFailed) else StartFailed(reason)
            await self._on_lost(replica)
            return
        took = asyncio.get_running_loop().time() - began
        ready = ReplicaReady(
            **self.stamp(replica.tenant, cause=event),
            data=ReplicaReady.Data(
                **facts,
                prepare_s=round(took, 3),
                restarts=replica.restarts,
                **replica.described(),
            ),
        )
        await self._say(ready, "ready")
        logger.info("replica of %s ready in %.2f s", replica.spec.name, took)

    def _report(self, replica: Replica, stage: str) -> None:
        """What a long start does just now, as an event."""
        data = ReplicaPreparing.Data(**self._facts(replica), stage=stage)
        said = ReplicaPreparing(**self.stamp(replica.tenant), data=data)
        self._soon(self._say(said, "preparing"))

    async def _job(self, replica: Replica, shard: int) -> JobWorker:
        """The job's worker here, opened with rights on its queue when it is the first."""
        key = (replica.tenant, replica.spec.name)
        async with self._opening.setdefault(key, asyncio.Lock()):
            present = self.jobs.get(key)
            if present is not None and not present.draining:
                present.spec = replica.spec
                return present
            link = await JobLink.open(
                self.connection, self.key, self.identity.name, replica.tenant, replica.spec.name
            )
            job = JobWorker(
                link, self.identity.name, replica.tenant, replica.spec, shard, self.stamp,
                self.settings.inline_limit,
            )  # fmt: skip
            self.jobs[key] = job
            await job.open()
            return job

    def _slots_changed(self, key: JobKey) -> None:
        if key in self.jobs:
            self.jobs[key].slots_changed()

    async def _on_lost(self, replica: Replica) -> None:
        """A replica could not be made ready, or does not come back."""
        failure = replica.failure or StartFailed("it ended")
        failed = ReplicaFailed(
            **self.stamp(replica.tenant),
            data=ReplicaFailed.Data(
                **self._facts(replica), reason=failure.reason, log_tail=failure.log_tail
            ),
        )
        logger.error("! replica of %s failed: %s", replica.spec.name, failure.reason)
        await self._say(failed, "failed")
        await self._remove(replica)

    async def _end(self, replica: Replica) -> None:
        """A released replica: its calls may end, then it is gone."""
        if replica.stopping or replica.id not in self.replicas:
            return
        replica.stopping = True  # takes no new calls
        self._slots_changed((replica.tenant, replica.spec.name))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.drain_s):
                while replica.running:
                    await self.jobs[replica.tenant, replica.spec.name].slot_event()
        await self._remove(replica)
        await self._say_stopped(replica.tenant, replica.spec.name, replica.id)

    async def _remove(self, replica: Replica) -> None:
        await replica.stop()
        self.replicas.pop(replica.id, None)
        key = (replica.tenant, replica.spec.name)
        job = self.jobs.get(key)
        if job is None:
            return
        if replica in job.replicas:
            job.replicas.remove(replica)
        job.slots_changed()
        if not any((r.tenant, r.spec.name) == key for r in self.replicas.values()):
            del self.jobs[key]
            await job.drain(self.drain_s)
            await job.close()

    async def _say_stopped(self, tenant: str, job: str, replica: str) -> None:
        data = ReplicaStopped.Data(worker=self.identity.name, job=job, replica=replica)
        await self._say(ReplicaStopped(**self.stamp(tenant), data=data), "stopped")

    def _facts(self, replica: Replica) -> dict[str, str]:
        return {
            "worker": self.identity.name,
            "job": replica.spec.name,
            "replica": replica.id,
        }

    # -- leaving

    async def _leave(self) -> None:
        """Drain: take nothing more, let what runs end, say good-bye."""
        name = self.identity.name
        logger.info(
            "draining: %d invocations running", sum(len(j.tasks) for j in self.jobs.values())
        )
        try:
            async with asyncio.timeout(LEAVE_S):
                data = WorkerDraining.Data(worker=name, session=self.session)
                await self._say(
                    WorkerDraining(**self.stamp(self.settings.tenant), data=data), "draining"
                )
        except TimeoutError:
            logger.warning("the broker is away: leaving without a word")
        await asyncio.gather(*(job.drain(self.drain_s) for job in self.jobs.values()))
        await self._stop_everything()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                left = WorkerLeft.Data(worker=name, session=self.session)
                await self._say(WorkerLeft(**self.stamp(self.settings.tenant), data=left), "left")
                logger.info("left")

    async def _stop_everything(self) -> None:
        await asyncio.gather(*(replica.stop() for replica in self.replicas.values()))
        self.replicas.clear()
        jobs, self.jobs = list(self.jobs.values()), {}
        for job in jobs:
            await job.close()

    def _soon(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("! something in the agent broke", exc_info=error)
