"""Serving one job on this worker: pull for free slots, run, publish the outcome, acknowledge.

The order is the promise: the model runs, the outcome is in the log, then the queue forgets the
message. What dies in between is delivered again, and the first outcome in the log counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from nats.aio.msg import Msg

from jetfleet import subjects
from jetfleet.errors import BrokerUnavailable
from jetfleet.events import (
    InvalidEvent,
    InvocationCancelRequested,
    InvocationQueued,
    JobLoad,
    decode,
)
from jetfleet.specs import JobSpec
from jetfleet.stamp import Stamp
from jetfleet_agent.attempt import Task
from jetfleet_agent.links import JobLink
from jetfleet_agent.outcome import Publisher
from jetfleet_agent.pulls import Pull
from jetfleet_agent.replicas import Replica

logger = logging.getLogger("jetfleet.worker")
ACK, NAK, TERM, PROGRESS = b"+ACK", b"-NAK", b"+TERM", b"+WPI"
CANCELS_KEPT = 10_000
MEMORY_RUNS = 50  # the moving average of service times is about the mean of so many


@dataclass(slots=True, eq=False)
class JobWorker:
    """One job on this worker: all of its replicas here, and its invocations in progress."""

    link: JobLink
    worker: str
    tenant: str
    spec: JobSpec
    shard: int
    stamp: Stamp
    inline_limit: int
    replicas: list[Replica] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)  # by invocation
    draining: bool = False
    waiting: int = 0  # tasks that have no replica yet
    finished: int = 0
    busy_s: float = 0.0
    service_s: float | None = None  # moving average over calls that completed
    measured: int = 0  # calls in it
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    publisher: Publisher = field(init=False)
    _pull: Pull = field(init=False)
    _cancelled: dict[str, str] = field(default_factory=dict)  # invocation -> reason
    _background: set[asyncio.Task[None]] = field(default_factory=set)
    _progress: asyncio.Task[None] | None = None
    _lease: asyncio.TimerHandle | None = None  # of a threshold
    _slot_waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.publisher = Publisher(
            self.link.connection, self.worker, self.tenant, self.spec.name, self.shard,
            self.stamp, self.inline_limit,
        )  # fmt: skip
        self._pull = Pull(
            self.link.connection,
            subjects.queue_stream(self.shard),
            subjects.job_consumer(self.tenant, self.spec.name, self.spec.priority_class),
            self._wanted,
            self._slots,
            self._take,
        )
        self.idle.set()

    async def open(self) -> None:
        await self.link.connection.subscribe(
            subjects.cancel(self.shard, self.tenant, self.spec.name), self._on_cancel
        )
        self._progress = asyncio.create_task(self._keep_leases())
        await self._pull.open()

    async def close(self) -> None:
        """Stop pulling and leave; what runs should have ended (``drain``)."""
        await self._pull.close()
        if self._lease is not None:
            self._lease.cancel()
        if self._progress is not None:
            self._progress.cancel()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.link.close()

    async def drain(self, within_s: float) -> None:
        """Take nothing more and let what runs end; hand back what does not in time."""
        self.draining = True
        try:
            async with asyncio.timeout(within_s):
                # Else what is queued or handed back comes to us again, an attempt less each time.
                await self._pull.withdraw(patient=self._free() > 0)
                self.slots_changed()  # what waits for a replica is handed back now
                await self.idle.wait()
        except TimeoutError:
            await self._hand_all_back()

    async def _hand_all_back(self) -> None:
        """Let others have what runs here, at once; our own runs of it have no outcome any more."""
        for task in list(self.tasks.values()):
            self._say(task.message, NAK)
            logger.info("↻ %s handed back", task.invocation)
        for run in list(self._background):
            run.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    # -- slots

    def _wanted(self) -> int:
        return 0 if self.draining else self._free()

    def _slots(self) -> int:
        return sum(replica.spec.concurrency for replica in self.replicas if replica.serving)

    def _free(self) -> int:
        replicas = self.replicas
        if len(replicas) == 1:
            return replicas[0].free - self.waiting
        return sum(replica.free for replica in replicas) - self.waiting

    def slots_changed(self) -> None:
        """Call when a replica begins or ceases to serve, or a slot is free again."""
        for waiter in self._slot_waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._slot_waiters.clear()
        self._pull.top_up()

    async def slot_event(self) -> None:
        """Return at the next change of slots."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._slot_waiters.append(waiter)
        await waiter

    def choose(self) -> Replica | None:
        """The serving replica with most free slots."""
        if len(self.replicas) == 1:
            return self.replicas[0] if self.replicas[0].free > 0 else None
        best = max(self.replicas, key=lambda replica: replica.free, default=None)
        return best if best is not None and best.free > 0 else None

    # -- balancing

    def heed(self, min_pending: int | None, for_s: float) -> None:
        """Pull only while so many wait (None: whenever a slot is free), for as long at most."""
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None
        if self.draining:
            return
        loop = asyncio.get_running_loop()
        if min_pending is not None:
            self._lease = loop.call_later(for_s, self.heed, None, 0.0)
        if min_pending != self._pull.min_pending:
            change = loop.create_task(self._pull.only_from(min_pending))
            self._background.add(change)
            change.add_done_callback(self._background.discard)

    # -- messages

    def _take(self, message: Msg) -> None:
        try:
            event = decode(message.data)
        except InvalidEvent as error:
            logger.error("! a message of %s is set aside: %s", self.spec.name, error)
            self._say(message, TERM)
            return
        ours = (self.tenant, self.spec.name)
        if not isinstance(event, InvocationQueued) or (event.tenant, event.data.job) != ours:
            logger.error("! a message of %s is not an invocation of it", self.spec.name)
            self._say(message, TERM)
            return
        known = self.tasks.get(event.data.invocation)
        if known is not None:
            known.message = message  # delivered again after a broker restart: acknowledge this one
        elif self.draining and self._free() <= 0:  # else it was asked for before, and can run
            self._say(message, NAK)
        else:  # where a slot is gone meanwhile it waits here: handing it back costs it an attempt
            self._begin(Task(self, event, message, event.data.invocation))

    def _begin(self, task: Task) -> None:
        self.tasks[task.invocation] = task
        task.wait()
        self.idle.clear()
        run = asyncio.get_running_loop().create_task(self._run(task))
        self._background.add(run)
        run.add_done_callback(self._background.discard)

    async def _run(self, task: Task) -> None:
        try:
            done = await task.run(self._cancelled.get(task.invocation))
            if done:
                self._say(task.message, ACK)
        except Exception:
            logger.exception("! invocation %s of %s broke", task.invocation, self.spec.name)
        finally:
            self.tasks.pop(task.invocation, None)
            if not self.tasks:
                self.idle.set()
            if task.waiting:  # it ended without a run, so nobody said that its slot is free
                task.wait_over()
                self.slots_changed()

    def hand_back(self, task: Task) -> None:
        """Let another worker have it, at once."""
        self._say(task.message, NAK)

    def _say(self, message: Msg, word: bytes) -> None:
        """Tell the queue about a message; when that is lost, ``ack_wait`` brings it back."""
        try:
            self.link.connection.send(message.reply, word)
        except BrokerUnavailable as error:
            logger.info("%s is not told to the queue: %s", word.decode(), error)

    async def _keep_leases(self) -> None:
        """Tell the broker, three times per ``ack_wait``, that what runs here is alive."""
        while True:
            await asyncio.sleep(self.spec.ack_wait_s / 3)
            for task in list(self.tasks.values()):
                self._say(task.message, PROGRESS)

    # -- cancelling

    def _on_cancel(self, message: Msg) -> None:
        try:
            event = decode(message.data)
        except InvalidEvent as error:
            logger.warning("a cancellation is set aside: %s", error)
            return
        if isinstance(event, InvocationCancelRequested):
            self.cancel(event.data.invocation, event.data.reason)

    def cancel(self, invocation: str, reason: str = "") -> None:
        """Stop it if it runs here; remember it in case it is pulled later."""
        if invocation not in self._cancelled:
            self._cancelled[invocation] = reason
            if len(self._cancelled) > CANCELS_KEPT:
                del self._cancelled[next(iter(self._cancelled))]  # the oldest
        task = self.tasks.get(invocation)
        if task is not None:
            task.cancel(reason)

    # -- telemetry

    def completed(self, run_s: float) -> None:
        """A call ended well after ``run_s``. The first one warms up, so the second replaces it."""
        old = run_s if self.service_s is None else self.service_s
        self.measured += 1
        weight = 1 / min(max(1, self.measured - 1), MEMORY_RUNS)
        self.service_s = old + weight * (run_s - old)

    def load(self, kind: Callable[[tuple[str, ...]], str]) -> JobLoad:
        """Now, for the heartbeat. ``kind``: the type of GPUs with these names."""
        serving = [replica for replica in self.replicas if replica.serving]
        return JobLoad(
            job=self.spec.name,
            tenant=self.tenant,
            replicas_ready=len(serving),
            slots=sum(replica.spec.concurrency for replica in serving),
            running=len(self.tasks),
            finished=self.finished,
            busy_s=round(self.busy_s, 6),
            model=self.spec.model.ref,
            gpu=kind(tuple(gpu for replica in self.replicas for gpu in replica.gpus)),
            service_s=None if self.service_s is None else round(self.service_s, 6),
            min_pending=self._pull.min_pending,
        )

    def now(self) -> datetime:
        return datetime.now(UTC)
