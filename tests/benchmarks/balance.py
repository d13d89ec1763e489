"""Three workers of 5, 20 and 100 ms: how long calls take, with and without balancing.

Part of `make bench`. Alone: python tests/benchmarks/balance.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from fleet import HERE, START_S, Processes, broker_with
from rich.console import Console
from rich.table import Table

from jetfleet.client import Client
from jetfleet.events import JobBalanced, ReplicaReady, WorkerJoined
from jetfleet.specs import JobSpec, ModelSpec, Resources
from jetfleet.streams import FLEET

WORKERS = {"fast": 0.005, "middle": 0.02, "slow": 0.1}  # seconds of a run
JOBS = {"plain_pull": False, "balanced": True}  # of the same model on the same workers
RATE = 60.0
SATURATED = 1_500  # submitted at once
ANSWER_S = 60.0
LEARN_S = 60.0
Samples = dict[str, list[float]]


async def measure(samples: Samples, *, quick: bool = False) -> None:
    """Add figures of both jobs, in turn, each round with the same arrivals for both."""
    rounds, seconds = (1, 10.0) if quick else (3, 20.0)
    async with AsyncExitStack() as stack:
        client = await _start(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        await _learn(client)
        for number in range(rounds):
            arrivals = list(_poisson(RATE, seconds, seed=number))
            for job in JOBS:
                taken = await _open_loop(client, job, arrivals)
                cuts = statistics.quantiles(taken, n=100)
                for percent in (50, 90, 99):
                    _add(samples, f"{job}_p{percent}_ms", cuts[percent - 1] * 1e3)
            for job in JOBS:
                _add(samples, f"{job}_drain_per_s", await _saturated(client, job))
            Console(stderr=True).print(f"  round {number + 1} of {rounds}", style="dim")


async def _start(stack: AsyncExitStack, folder: Path) -> Client:
    """A broker, a conductor, three agents, and both jobs on all of them."""
    processes = Processes()
    _, settings, env = await broker_with(stack, folder / "fleet", processes)
    program = [sys.executable, "-m", "jetfleet"]
    processes.start(*program, "conductor", env=env)
    for name, run_s in WORKERS.items():
        of_agent = {**env, "PACE_S": str(run_s)}
        processes.start(*program, "agent", "--name", name, env=of_agent)
    client = await stack.enter_async_context(await Client.connect(settings))
    await _all(client, WorkerJoined, {(name,) for name in WORKERS}, "worker")
    model = ModelSpec(
        name="paced", function=f"{HERE / 'paced.py'}:paced", resources=Resources(memory_mib=64)
    )
    await client.register_model(model)
    for job, balancing in JOBS.items():
        spec = JobSpec(
            name=job, model=model, min_replicas=3, max_replicas=3, balancing=balancing,
            assignment="manual", workers=tuple(WORKERS),
        )  # fmt: skip
        await client.apply_job(spec)
    served = {(job, worker) for job in JOBS for worker in WORKERS}
    await _all(client, ReplicaReady, served, "job", "worker")
    return client


async def _all(client: Client, kind: type, wanted: set[tuple[str, ...]], *named: str) -> None:
    """Return when all of these have said so."""
    async with asyncio.timeout(START_S):
        async for record in client.events(FLEET, start="all", follow=True):
            if isinstance(record.event, kind):
                wanted -= {tuple(getattr(record.event.data, name) for name in named)}
            if not wanted:
                return


async def _learn(client: Client) -> None:
    """Let all workers work until the conductor knows how fast they are."""
    async with asyncio.timeout(LEARN_S):
        decided = asyncio.create_task(_decided(client))
        while not decided.done():
            for job in JOBS:
                await _saturated(client, job, 300)


async def _decided(client: Client) -> None:
    async for record in client.events(FLEET, start="all", follow=True):
        event = record.event
        if isinstance(event, JobBalanced):
            waits = [w for level in event.data.levels if level.min_pending for w in level.workers]
            if sorted(waits) == ["middle", "slow"]:
                return


def _poisson(rate: float, seconds: float, *, seed: int) -> Iterator[float]:
    """Times of arrival, seconds from the beginning."""
    chance, at = random.Random(seed), 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        yield at


async def _open_loop(client: Client, job: str, arrivals: list[float]) -> list[float]:
    """Seconds from each submit to its outcome; nobody waits for anybody."""
    began = time.perf_counter()

    async def call(at: float) -> float:
        await asyncio.sleep(began + at - time.perf_counter())
        submitted = time.perf_counter()
        await client.run(job, {}, wait_s=ANSWER_S)
        return time.perf_counter() - submitted

    return await asyncio.gather(*(call(at) for at in arrivals))


async def _saturated(client: Client, job: str, count: int = SATURATED) -> float:
    """Outcomes a second, from submitting so many at once to the last outcome."""
    began = time.perf_counter()
    handles = await asyncio.gather(*(client.submit(job, {}) for _ in range(count)))
    await asyncio.gather(*(handle.output(ANSWER_S) for handle in handles))
    return count / (time.perf_counter() - began)


def _add(samples: Samples, name: str, value: float) -> None:
    samples.setdefault(name, []).append(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    options = parser.parse_args()
    samples: Samples = {}
    uvloop.run(measure(samples, quick=options.quick))
    table = Table(title="Workers of 5, 20 and 100 ms")
    for heading in ("figure", "median", "min", "max"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, found in samples.items():
        figures = (statistics.median(found), min(found), max(found))
        table.add_row(name, *(f"{figure:.1f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
