"""What a look of the conductor at a whole fleet costs, and how that grows.

``python tests/benchmarks/rounds.py`` folds made-up events of as many jobs as workers into a real
``Conductor`` whose connection answers at once, so that what is measured is deciding: consumers
checked, silence looked at, every job scaled, replicas placed, decisions encoded. Two jobs in three
follow their work and have 300 s of arrivals behind them. Their clock is ours.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from jetfleet import subjects
from jetfleet.clock import Clock
from jetfleet.events import (
    Event,
    JobCreated,
    JobDeleted,
    JobLoad,
    ReplicaAssigned,
    ReplicaReady,
    ReplicaStopped,
    WorkerHeartbeat,
    WorkerJoined,
    decode,
)
from jetfleet.log import Record
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies.placement_filters import YIELDED_S
from jetfleet.policies.placement_preempt import LOOKS
from jetfleet.scaling_specs import KpaScaling, LagScaling, SloScaling, StaticScaling
from jetfleet.settings import Settings
from jetfleet.specs import GpuSpec, JobSpec, Machine, ModelSpec, Resources
from jetfleet.speeds import evolve_speeds
from jetfleet.stamp import Stamp
from jetfleet.streams import FLEET, REGISTRY
from jetfleet_projections.conductor import Conductor
from jetfleet_projections.observing import Watcher
from jetfleet_projections.scaler import Scaler

SIZES = (100, 300, 1_000)
NEW, PASSED_S, STEP_S = 50, 300.0, 0.5
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
GPUS = (None, "T4", "A10", "H100")
SCALINGS = (
    StaticScaling(),
    LagScaling(),
    KpaScaling(),
    StaticScaling(),
    SloScaling(),
    SloScaling(),
)
TENANT = "default"
FILLERS = 20  # jobs that together fill all workers


@dataclass
class Instant:
    """A connection that answers at once, and remembers what was stored."""

    connected: bool = True
    stored: list[tuple[str, bytes]] = field(default_factory=list)
    seq: int = 0

    async def api(self, *_: Any, **__: Any) -> dict[str, Any]:
        # Ends of logs at 0: all is folded.
        return {"num_pending": 0, "num_ack_pending": 1, "config": {}, "state": {"last_seq": 0}}

    async def subscribe(self, *_: Any) -> Any:
        return SimpleNamespace(stop=None)

    async def publish(self, *_: Any) -> None:
        pass

    async def store(self, subject: str, body: bytes, **_: Any) -> Any:
        self.seq += 1
        self.stored.append((subject, body))
        return SimpleNamespace(seq=self.seq)


@dataclass
class World:
    """A conductor with its fleet. ``passed``: seconds by its own clock."""

    size: int
    passed: float = 0.0
    connection: Instant = field(default_factory=Instant)
    registry_seq: int = 0
    folded: int = 0  # events
    fold_s: float = 0.0

    def __post_init__(self) -> None:
        clock = Clock(now=self.now, monotonic=lambda: self.passed)
        self.conductor = Conductor(self.connection, Settings())  # type: ignore[arg-type]
        self.conductor.stamp = self.stamp = Stamp("conductor/bench", clock)
        watcher = Watcher(self.connection, 4, clock.monotonic, lambda: None)  # type: ignore[arg-type]
        self.conductor.scaler = Scaler(watcher, self.stamp)

    def now(self) -> datetime:
        return BEGAN + timedelta(seconds=self.passed)

    def fold(self, stream: str, events: Iterable[tuple[str, Event]]) -> None:
        """Let the conductor fold these, as it does what the log delivers."""
        for subject, event in events:
            if stream == REGISTRY:
                self.registry_seq = seq = self.registry_seq + 1
            else:
                self.connection.seq = seq = self.connection.seq + 1
            self._fold(Record(stream, seq, subject, event.time, b"", event))  # type: ignore[arg-type]

    def fold_stored(self) -> list[ReplicaAssigned]:
        """Its own decisions come back to it; returns the assignments."""
        stored, self.connection.stored = self.connection.stored, []
        first = self.connection.seq - len(stored) + 1
        events = [decode(body) for _, body in stored]
        for at, ((subject, body), event) in enumerate(zip(stored, events, strict=True)):
            self._fold(Record(FLEET, first + at, subject, event.time, body, event))
        return [event for event in events if isinstance(event, ReplicaAssigned)]

    def _fold(self, record: Record) -> None:
        began = time.perf_counter()
        self.conductor._fold(record)
        self.fold_s += time.perf_counter() - began
        self.folded += 1

    async def round(self) -> float:
        """Milliseconds of one round; half a second passes before it."""
        self.passed += STEP_S
        began = time.perf_counter()
        await self.conductor._round()
        return (time.perf_counter() - began) * 1000

    async def settle(self) -> None:
        """Rounds until nothing is left to decide, what was assigned being ready at once."""
        calm = 0
        for _ in range(100):
            await self.round()
            calm = 0 if self.connection.stored else calm + 1
            if calm > 8:  # not all jobs are looked at in one round
                return
            self.fold(FLEET, self.ready(self.fold_stored()))
        raise RuntimeError("it goes on deciding")

    def ready(self, assigned: Iterable[ReplicaAssigned]) -> Iterator[tuple[str, Event]]:
        for one in assigned:
            data = ReplicaReady.Data(
                worker=one.data.worker, job=one.data.job, replica=one.data.replica, prepare_s=20,
            )  # fmt: skip
            event = ReplicaReady(**self.stamp(TENANT), data=data)
            yield subjects.fleet(one.data.worker, "ready"), event

    def joined(self) -> Iterator[tuple[str, Event]]:
        """Workers of twenty owners with four kinds of machines."""
        for n in range(self.size):
            gpu = GPUS[n % len(GPUS)]
            gpus = () if gpu is None else (
                GpuSpec(index=0, name=gpu, uuid=f"GPU-{n}", memory_mib=40_000,
                        compute_capability=8.0),
            )  # fmt: skip
            machine = Machine(
                hostname=f"w{n}", cpu_count=16, memory_mib=65_536, disk_free_mib=10**6, gpus=gpus
            )
            data = WorkerJoined.Data(
                worker=f"w{n}", session="s1", machine=machine, agent_version="1",
                public_key="U" * 56, owner=f"owner{n % 20}", trusted=n % 2 == 0,
                labels={"zone": f"z{n % 3}"}, price_per_hour=n % 7 / 4, heartbeat_s=10_000,
            )  # fmt: skip
            yield subjects.fleet(f"w{n}", "joined"), WorkerJoined(**self.stamp(TENANT), data=data)

    def stopped(self) -> Iterator[tuple[str, Event]]:
        """What was let go has ended."""
        for one in self.conductor.fleet.replicas.values():
            if one.status == "releasing":
                data = ReplicaStopped.Data(worker=one.worker, job=one.job, replica=one.id)
                event = ReplicaStopped(**self.stamp(TENANT), data=data)
                yield subjects.fleet(one.worker, "stopped"), event

    def created(
        self, names: Iterable[str], priority: int = 0, least: int = 1, **resources: int
    ) -> Iterator[tuple[str, Event]]:
        """Jobs of a model each, of which half need a GPU."""
        for n, name in enumerate(names):
            need = {"memory_mib": 2_000, "gpu_memory_mib": 8_000 * (n % 2), **resources}
            model = ModelSpec(
                name=name, runtime="docker", contract="cog", image=f"registry.example/{name}:1",
                resources=Resources(**need),
            )  # fmt: skip
            own = name.startswith("job")
            scaling = SCALINGS[n % len(SCALINGS)] if own else StaticScaling()
            spec = JobSpec(
                name=name, model=model, min_replicas=least, max_replicas=4 if own else least,
                scaling=scaling, placement=PlacementSpec(priority=priority),
            )  # fmt: skip
            event = JobCreated(**self.stamp(TENANT), data=JobCreated.Data(job=spec))
            yield subjects.job_event(TENANT, name, "created"), event

    def deleted(self, names: Iterable[str]) -> Iterator[tuple[str, Event]]:
        for name in names:
            event = JobDeleted(**self.stamp(TENANT), data=JobDeleted.Data(job=name))
            yield subjects.job_event(TENANT, name, "deleted"), event

    def hear(self) -> None:
        """A heartbeat of every worker, with the speed of four models."""
        for n in range(self.size):
            loads = tuple(
                JobLoad(
                    job=name,
                    tenant=TENANT,
                    replicas_ready=1,
                    slots=1,
                    running=0,
                    finished=100,
                    busy_s=20,
                    model=f"{name}:1",
                    gpu=GPUS[n % len(GPUS)] or "",
                    service_s=0.2 + n % 5 / 10,
                )
                for name in (f"job{(n * 4 + k) % self.size}" for k in range(4))
            )
            data = WorkerHeartbeat.Data(worker=f"w{n}", session="s1", jobs=loads)
            beat = WorkerHeartbeat(**self.stamp(TENANT), data=data)
            self.conductor.speeds = evolve_speeds(self.conductor.speeds, beat)

    def arrive(self, for_s: float) -> None:
        """An invocation every second for each job that is watched, over the next seconds."""
        began = self.passed
        for step in range(round(for_s / STEP_S)):
            now = began + (step + 1) * STEP_S
            for watch in self.conductor.scaler.watcher.watches.values():
                if step % 2:
                    watch.arrived(now)
                watch.told(0, step // 20 % 3, now)
        self.passed = began + for_s


async def measure(size: int, count: int) -> dict[str, list[float]]:
    """Samples of one size, ``count`` of each figure; milliseconds, and microseconds an event."""
    world = World(size)
    world.fold(REGISTRY, world.created(f"job{n}" for n in range(size)))
    world.fold(FLEET, world.joined())
    await world.settle()
    world.hear()
    world.arrive(PASSED_S)
    await world.settle()
    gc.collect()
    found: dict[str, list[float]] = {
        "steady_ms": [],
        "placing_ms": [],
        "starved_ms": [],
        "urgent_ms": [],
    }
    fold_us = world.fold_s / world.folded * 1e6
    for n in range(count):
        found["steady_ms"].append(await world.round())
        assert not world.connection.stored
        names = [f"new{n}-{k}" for k in range(NEW)]
        world.fold(REGISTRY, world.created(names))
        found["placing_ms"].append(await world.round())
        placed = world.fold_stored()
        assert len(placed) == NEW
        world.fold(FLEET, world.ready(placed))
        names = [f"huge{n}-{k}" for k in range(NEW)]
        world.fold(REGISTRY, world.created(names, memory_mib=10**6))
        found["starved_ms"].append(await world.round())
        world.fold(REGISTRY, world.deleted(names))
    found["urgent_ms"] = [ms async for ms in urgent(world, count)]
    return {**found, "fold_us": [fold_us]}


async def urgent(world: World, count: int) -> AsyncIterator[float]:
    """Milliseconds of rounds in which more important jobs find every worker full."""
    fill = (f"fill{n}" for n in range(FILLERS))
    world.fold(REGISTRY, world.created(fill, least=world.size // FILLERS, memory_mib=60_000))
    await world.settle()
    for n in range(count):
        names = [f"urgent{n}-{k}" for k in range(NEW)]
        world.fold(REGISTRY, world.created(names, priority=1, memory_mib=62_000))
        yield await world.round()
        # Too many for one round take turns.
        assert (
            sum(".released." in subject for subject, _ in world.connection.stored)
            >= min(NEW, LOOKS // world.size) // 2
        )
        world.fold_stored()
        world.fold(FLEET, list(world.stopped()))
        world.fold(REGISTRY, world.deleted(names))
        world.passed += YIELDED_S  # then who made room is put back
        await world.settle()


async def samples(count: int, sizes: Iterable[int] = SIZES) -> dict[str, list[float]]:
    """By ``rounds_<size>_<figure>``."""
    return {
        f"rounds_{size}_{name}": values
        for size in sizes
        for name, values in (await measure(size, count)).items()
    }


if __name__ == "__main__":
    wanted = [int(argument) for argument in sys.argv[1:]] or SIZES
    for figure, values in asyncio.run(samples(5, wanted)).items():
        middle = statistics.median(values)
        print(f"{figure:28} {middle:9.2f} ({min(values):.2f} to {max(values):.2f})")
