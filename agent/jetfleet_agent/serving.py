"""What this worker runs: its replicas, and the jobs that they serve."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jetfleet.connection import Connection
from jetfleet.events import (
    Event,
    ReplicaAssigned,
    ReplicaFailed,
    ReplicaPreparing,
    ReplicaReady,
    ReplicaStopped,
    ReplicaTried,
)
from jetfleet.settings import Settings
from jetfleet.stamp import Stamp
from jetfleet_agent import adoption
from jetfleet_agent.links import JobLink, NotAssigned, WorkerKey, confirm
from jetfleet_agent.replicas import Replica
from jetfleet_agent.runtimes import StartFailed, owner_of
from jetfleet_agent.shared_slots import SharedSlots
from jetfleet_agent.trial import run_example
from jetfleet_agent.worker import JobWorker

logger = logging.getLogger("jetfleet.agent")
TAIL_LIMIT = 100_000  # characters of a log that an event holds; the broker takes messages of 1 MB
LONGEST_LEASE_S = 600.0  # of a threshold, whatever a nudge says
JobKey = tuple[str, str]
Say = Callable[[Event, str], Awaitable[int]]


@dataclass(slots=True, eq=False)
class Serving:
    """See the module.

    Args:
        say: appends a fleet event of this worker (event, verb) to the log.
        drain_s: how long running calls of a released replica may take.
    session: str
    shared: SharedSlots | None = None
    """

    worker: str
    settings: Settings
    connection: Connection
    key: WorkerKey
    workdir: Path
    stamp: Stamp
    say: Say
    drain_s: float
    session: str
    shared: SharedSlots | None = None
    jobs: dict[JobKey, JobWorker] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _opening: dict[JobKey, asyncio.Lock] = field(default_factory=dict)
    _beginnings: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # by replica

    # -- beginning

    def begin(self, event: ReplicaAssigned) -> None:
        """Obey an assignment, in the background; one that is obeyed already changes nothing."""
        if event.data.replica not in self.replicas:
            self._begin_soon(event, adopt=False)

    def _begin_soon(self, event: ReplicaAssigned, *, adopt: bool) -> asyncio.Task[None]:
        replica = self._replica(event)
        task = self.soon(self._begin(replica, event, adopt))
        self._beginnings[replica.id] = task
        return task

    async def outlived(self) -> list[ReplicaAssigned]:
        """Assignments whose containers an agent before us left running."""
        return await adoption.running(await asyncio.to_thread(adoption.remembered, self.workdir))

    async def adopt(self, outlived: Iterable[ReplicaAssigned]) -> None:
        """Serve from what runs on, as far as it is still ours, and end the rest."""
        before = self.stamp.clock.now().timestamp()
        begun = [self._begin_soon(event, adopt=True) for event in outlived]
        await asyncio.gather(*begun, return_exceptions=True)
        await adoption.sweep(owner_of(self.worker, self.workdir), self.replicas)
        await asyncio.to_thread(adoption.tidy, self.workdir, before, self.replicas)

    def _replica(self, event: ReplicaAssigned) -> Replica:
        data, tenant = event.data, event.tenant
        replica = Replica(
            data.replica,
            tenant,
            data.spec,
            self.workdir / data.replica,
            lambda: self._slots_changed((tenant, data.job)),
            self.settings.payload_limit,
            owner_of(self.worker, self.workdir),
            data.gpus,
            lambda stage: self._report(replica, stage),
            held=data.trial,
        )
        self.replicas[replica.id] = replica
        return replica

    async def _begin(self, replica: Replica, event: ReplicaAssigned, adopt: bool) -> None:
        """Prepare a replica; it serves from the moment its job's pull counts its slots."""
        began = asyncio.get_running_loop().time()
        if not adopt:
            await self.say(self._preparing(replica, "starting", event), "preparing")
        try:
            if adopt:  # one that was replaced meanwhile would serve beside its successor
                await confirm(self.connection, self.worker, self.session, replica.id)
            else:
                await asyncio.to_thread(adoption.remember, replica.workdir, event)
            job = await self._job(replica, event.data.shard)
            job.replicas.append(replica)
            await replica.start(self._on_lost, self._on_back, adopt=adopt)
            if replica.held:
                await self._try_out(replica, event)
        except (StartFailed, NotAssigned) as error:
            reason = error.reason if isinstance(error, StartFailed) else str(error)
            replica.failure = error if isinstance(error, StartFailed) else StartFailed(reason)
            await self._on_lost(replica)
            return
        except Exception as error:  # a full disk, or a defect: it must not prepare for ever
            logger.exception("! replica of %s broke", replica.spec.name)
            replica.failure = StartFailed(f"the agent broke ({type(error).__name__}: {error})")
            await self._on_lost(replica)
            return
        took = asyncio.get_running_loop().time() - began
        await self._say_ready(replica, took, cause=event, adopted=adopt)
        how = "goes on" if adopt else "ready"
        logger.info("replica of %s %s in %.2f s", replica.spec.name, how, took)

    async def _try_out(self, replica: Replica, event: ReplicaAssigned) -> None:
        """Run the model's example. Raises StartFailed when it does not pass: then it never serves.

        What is told of it comes before what is told of the replica, so nobody takes a failed trial
        for one that was lost.
        """
        await self.say(self._preparing(replica, "trying its example input", event), "preparing")
        answer = await run_example(replica)
        data = ReplicaTried.Data(
            **self._facts(replica), passed=not answer.reason, reason=answer.reason,
            run_s=round(answer.run_s, 6),
        )  # fmt: skip
        await self.say(ReplicaTried(**self.stamp(replica.tenant, cause=event), data=data), "tried")
        if answer.reason:
            raise StartFailed(f"its example input failed: {answer.reason}", replica.tail())
        passed = event.data.model_copy(update={"trial": False})  # an agent after us tries no more
        await asyncio.to_thread(
            adoption.remember, replica.workdir, event.model_copy(update={"data": passed})
        )
        logger.info("the example input of %s passed", replica.spec.name)
        replica.held = False
        replica.changed()

    async def _on_back(self, replica: Replica, took_s: float) -> None:
        """It ended by itself and serves again."""
        if not replica.held:
            await self._say_ready(replica, took_s)

    async def _say_ready(
        self, replica: Replica, took_s: float, cause: Event | None = None, *, adopted: bool = False
    ) -> None:
        data = ReplicaReady.Data(
            **self._facts(replica), prepare_s=round(took_s, 3), restarts=replica.restarts,
            adopted=adopted, **replica.described(),
        )  # fmt: skip
        await self.say(ReplicaReady(**self.stamp(replica.tenant, cause=cause), data=data), "ready")

    def _report(self, replica: Replica, stage: str) -> None:
        """What a long start does just now, as an event."""
        self.soon(self.say(self._preparing(replica, stage, None), "preparing"))

    def _preparing(self, replica: Replica, stage: str, cause: Event | None) -> ReplicaPreparing:
        data = ReplicaPreparing.Data(**self._facts(replica), stage=stage)
        return ReplicaPreparing(**self.stamp(replica.tenant, cause=cause), data=data)

    async def _job(self, replica: Replica, shard: int) -> JobWorker:
        """The job's worker here, opened with rights on its queue when it is the first."""
        key = (replica.tenant, replica.spec.name)
        async with self._opening.setdefault(key, asyncio.Lock()):
            present = self.jobs.get(key)
            if present is not None and not present.draining:
                present.spec = replica.spec
                return present
            link = await JobLink.open(
                self.connection, self.key, self.worker, replica.tenant, replica.spec.name
            )
            job = JobWorker(
                link, self.worker, replica.tenant, replica.spec, shard, self.stamp,
                self.settings.inline_limit, self.shared,
            )  # fmt: skip
            self.jobs[key] = job
            await job.open()
            return job

    def _slots_changed(self, key: JobKey) -> None:
        if key in self.jobs:
            self.jobs[key].slots_changed()

    def heed(self, said: list[Any]) -> None:
        """From which backlog on we pull for which job, and for how long that holds."""
        for each in said:
            try:
                job = self.jobs.get((each["tenant"], each["job"]))
                pending, for_s = each["min_pending"], float(each["for_s"])
                pending = None if pending is None else max(1, int(pending))
            except (TypeError, ValueError, KeyError, OverflowError) as error:
                logger.warning("a threshold is ignored: %s", error)
                continue
            if job is not None:
                job.heed(pending, min(max(0.0, for_s), LONGEST_LEASE_S))

    # -- ending

    async def _on_lost(self, replica: Replica) -> None:
        """A replica could not be made ready, or does not come back."""
        failure = replica.failure or StartFailed("it ended")
        failed = ReplicaFailed(
            **self.stamp(replica.tenant),
            data=ReplicaFailed.Data(
                **self._facts(replica), reason=failure.reason, log_tail=_newest(failure.log_tail)
            ),
        )
        logger.error("! replica of %s failed: %s", replica.spec.name, failure.reason)
        await self.say(failed, "failed")
        await self._remove(replica)

    async def end(self, replica: Replica, within_s: float) -> None:
        """A replica that is not wanted: its calls may end, then it is gone."""
        if replica.stopping or replica.id not in self.replicas:
            return
        replica.stopping = True  # takes no new calls
        beginning = self._beginnings.get(replica.id)
        if beginning is not None and not beginning.done():
            beginning.cancel()  # a pull may take long
            await asyncio.wait({beginning})
        self._slots_changed((replica.tenant, replica.spec.name))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while replica.running:
                    await self.jobs[replica.tenant, replica.spec.name].slot_event()
        await self._remove(replica)
        await self.say_stopped(replica.tenant, replica.spec.name, replica.id)

    async def _remove(self, replica: Replica) -> None:
        await replica.stop()
        self.replicas.pop(replica.id, None)
        self._beginnings.pop(replica.id, None)
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

    async def say_stopped(self, tenant: str, job: str, replica: str) -> None:
        """Nothing is left of this replica here."""
        data = ReplicaStopped.Data(worker=self.worker, job=job, replica=replica)
        await self.say(ReplicaStopped(**self.stamp(tenant), data=data), "stopped")

    def _facts(self, replica: Replica) -> dict[str, str]:
        return {"worker": self.worker, "job": replica.spec.name, "replica": replica.id}

    async def drain(self) -> None:
        """Take nothing more, let what runs end, then end every replica."""
        await self._stop_beginning()
        await asyncio.gather(*(job.drain(self.drain_s) for job in self.jobs.values()))
        await self.stop_everything()

    async def stop_everything(self) -> None:
        """End every replica and leave every job, now."""
        await self._stop_beginning()
        await asyncio.gather(*(replica.stop() for replica in self.replicas.values()))
        self.replicas.clear()
        jobs, self.jobs = list(self.jobs.values()), {}
        for job in jobs:
            await job.close()

    async def _stop_beginning(self) -> None:
        """What is not ready yet will not be, and opens no job any more."""
        for task in self._beginnings.values():
            task.cancel()
        await asyncio.gather(*self._beginnings.values(), return_exceptions=True)
        self._beginnings.clear()

    async def close(self) -> None:
        """End what is under way, and everything."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.stop_everything()

    def soon(self, work: Any) -> asyncio.Task[None]:
        """Run something in the background; a failure is logged, not lost."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("! something in the agent broke", exc_info=error)


def _newest(lines: tuple[str, ...]) -> tuple[str, ...]:
    """As many of the last lines as an event has room for."""
    kept, room = list[str](), TAIL_LIMIT
    for line in reversed(lines):
        room -= len(line)
        if room < 0:
            break
        kept.append(line)
    return tuple(reversed(kept))
