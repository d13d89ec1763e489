"""What is measured: each subject takes the same work and returns figures by name."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import floors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.specs import JobSpec

PAYLOAD = {"text": "x" * 1012}  # 1 KiB of JSON
BODY = b'{"text":"%s"}' % (b"x" * 1012)
IN_FLIGHT = 256  # submits at once while enqueueing
ANSWER_S = 30.0
DRAIN_S = 120.0


async def latencies(name: str, calls: int, call: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    """One caller, one call after the other: p50, p95, p99 in ms."""
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - began) * 1e3)
    cuts = statistics.quantiles(taken, n=100)
    return {f"{name}_p50_ms": cuts[49], f"{name}_p95_ms": cuts[94], f"{name}_p99_ms": cuts[98]}


async def throughput(callers: int, calls: int, call: Callable[[], Awaitable[Any]]) -> float:
    """Calls a second with so many callers at once."""
    left = calls

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return calls / (time.perf_counter() - began)


@dataclass(slots=True, eq=False)
class Drain:
    """Counts outcomes; the rate is between the first and the last of them."""

    expected: int
    count: int = 0
    first: float = 0.0
    last: float = 0.0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, _: Msg) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.count += 1
        if self.count >= self.expected:
            self.done.set()

    async def rate(self) -> float:
        async with asyncio.timeout(DRAIN_S):
            await self.done.wait()
        return (self.expected - 1) / (self.last - self.first)


@dataclass(slots=True, eq=False)
class LogFloor:
    """Raw nats-py: publish, pull, publish, receive (floors.py)."""

    nats: Nats
    url: str
    name: str
    way: str
    waiting: dict[str, asyncio.Future[bytes]] = field(default_factory=dict)
    number: int = 0
    worker: subprocess.Popen[bytes] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, name: str, way: str) -> AsyncIterator[LogFloor]:
        nats = Nats()
        await nats.connect(url)
        await floors.make_stream(nats)
        self = cls(nats, url, name, way)
        await nats.subscribe(floors.RESULT, cb=self._on_result)
        try:
            yield self
        finally:
            self._stop_worker()
            await nats.close()

    def _start_worker(self) -> None:
        script = str(Path(floors.__file__))
        self.worker = subprocess.Popen(
            [sys.executable, script, "work", self.url, self.way], stdout=subprocess.PIPE
        )
        assert self.worker.stdout is not None
        self.worker.stdout.readline()

    def _stop_worker(self) -> None:
        if self.worker is not None:
            self.worker.terminate()
            self.worker.wait()

    async def _on_result(self, message: Msg) -> None:
        future = self.waiting.pop((message.headers or {})["Nats-Msg-Id"][:-5], None)
        if future is not None:
            future.set_result(message.data)

    async def call(self) -> None:
        self.number += 1
        key = f"{self.name}{self.number}"
        self.waiting[key] = future = asyncio.get_running_loop().create_future()
        await self.nats.jetstream().publish(floors.WORK, BODY, headers={"Nats-Msg-Id": key})
        await asyncio.wait_for(future, ANSWER_S)

    async def submit(self) -> None:
        self.number += 1
        await self.nats.jetstream().publish(
            floors.WORK, BODY, headers={"Nats-Msg-Id": f"{self.name}{self.number}"}
        )

    async def one_caller(self, calls: int) -> dict[str, float]:
        with self.working():
            await self.call()
            return await latencies(self.name, calls, self.call)

    async def callers(self, count: int, calls: int) -> dict[str, float]:
        with self.working():
            await self.call()
            return {f"{self.name}_{count}_per_s": await throughput(count, calls, self.call)}

    @contextmanager
    def working(self) -> Iterator[None]:
        """Its worker runs only while it is measured, so that the floors do not share one."""
        self._start_worker()
        try:
            yield
        finally:
            self._stop_worker()

    async def enqueue_and_drain(self, count: int) -> dict[str, float]:
        enqueued = await throughput(IN_FLIGHT, count, self.submit)
        drain = Drain(count)
        subscription = await self.nats.subscribe(floors.RESULT, cb=drain.take)
        with self.working():
            rate = await drain.rate()
        await subscription.unsubscribe()
        return {f"{self.name}_enqueue_per_s": enqueued, f"{self.name}_drain_per_s": rate}


@dataclass(slots=True, eq=False)
class JetfleetClient:
    """jetfleet's client to its agent and back, the model in a process of its own."""

    client: Client

    async def call(self) -> None:
        await self.client.run("noop", PAYLOAD, wait_s=ANSWER_S)

    async def submit(self) -> None:
        await self.client.submit("noop", PAYLOAD)

    async def one_caller(self, calls: int) -> dict[str, float]:
        return await latencies("client", calls, self.call)

    async def callers(self, count: int, calls: int) -> dict[str, float]:
        return {f"client_{count}_per_s": await throughput(count, calls, self.call)}

    async def enqueue_and_drain(self, count: int) -> dict[str, float]:
        """The job is scaled to zero meanwhile, so that enqueueing is measured alone."""
        await self._scale(0)
        enqueued = await throughput(IN_FLIGHT, count, self.submit)
        drain = Drain(count)
        any_ = subjects.ANY
        heard = subjects.done(any_, any_, "noop", self.client.origin, any_)
        subscription = await self.client.connection.subscribe(heard, drain.take)
        await self._scale(1)
        rate = await drain.rate()
        await subscription.stop()
        return {"client_enqueue_per_s": enqueued, "client_drain_per_s": rate}

    async def _scale(self, replicas: int) -> None:
        job = self.client.registry.job("default", "noop")
        assert job is not None
        wanted = {**job.spec.model_dump(), "min_replicas": 0, "desired_replicas": replicas}
        change = await self.client.apply_job(JobSpec.model_validate(wanted))
        if replicas or change.kind == "unchanged":
            return
        async with asyncio.timeout(ANSWER_S):
            start = datetime_before()
            async for record in self.client.events("FLEET", start=start, follow=True):
                if record.event is not None and record.event.type == "jetfleet.replica.stopped":
                    return


def datetime_before() -> Any:
    """A moment ago, so that what the scaling just caused is read too."""
    from datetime import UTC, datetime, timedelta

    return datetime.now(UTC) - timedelta(seconds=1)


@dataclass(slots=True, eq=False)
class Http:
    """A POST with 1 KiB of JSON over a kept connection."""

    session: Any
    name: str
    url: str

    @classmethod
    @asynccontextmanager
    async def open(cls, base: str, name: str, path: str) -> AsyncIterator[Http]:
        import aiohttp

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Content-Type": "application/json"},
        ) as session:
            yield cls(session, name, base + path)

    async def call(self) -> None:
        body = b'{"input":%s}' % BODY if self.name == "run_sync" else BODY
        async with self.session.post(self.url, data=body) as answer:
            text = await answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{self.url} answered {answer.status}: {text[:500]!r}")

    async def one_caller(self, calls: int) -> dict[str, float]:
        return await latencies(self.name, calls, self.call)

    async def callers(self, count: int, calls: int) -> dict[str, float]:
        return {f"{self.name}_{count}_per_s": await throughput(count, calls, self.call)}
