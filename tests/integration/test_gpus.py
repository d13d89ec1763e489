"""GPUs, with real processes and a fake driver: shared within their memory, lost while they work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inprocess import conducting, declare, working
from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.errors import QueryUnavailable
from jetfleet.events import (
    InvocationCompleted,
    ReplicaAssigned,
    ReplicaReady,
    ReplicaStopped,
    WorkerDraining,
    WorkerJoined,
)
from jetfleet.specs import Resources
from jetfleet.streams import FLEET
from jetfleet.telemetry import last_heartbeat
from nvml import FakeDriver, compile_library
from stack import Stack, fleet_says, open_job, position, stack, started
from waiting import until

pytestmark = pytest.mark.anyio
LARGE = Resources(gpu_memory_mib=24_000)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack(tmp_path / "stack", agents=()) as opened:
        yield opened


@pytest.fixture
async def client(running: Stack) -> Client:
    return await running.client()


async def with_gpus(
    running: Stack, client: Client, library: Path, name: str, **state: int
) -> FakeDriver:
    """A joined worker whose driver we are."""
    fake = FakeDriver(library, running.folder / f"{name}.gpus", state)
    running.agent(name, environment=fake.environment)
    await fleet_says(client, WorkerJoined, worker=name)
    return fake


async def assignments(client: Client) -> list[ReplicaAssigned.Data]:
    records = [record async for record in client.events(FLEET)]
    return [r.event.data for r in records if isinstance(r.event, ReplicaAssigned)]


async def test_two_jobs_of_24_gb_never_run_on_one_gpu_of_40_gb(running, client, library):
    await with_gpus(running, client, library, "a", count=1, memory_mib=40_000)
    await open_job(client, "one", "behaviours.py:gpus", resources=LARGE)
    await open_job(client, "two", "behaviours.py:gpus", resources=LARGE, ready=False)
    await open_job(client, "cpu", "behaviours.py:gpus")  # assigned after it, so it was looked at
    assert [(data.job, data.gpus) for data in await assignments(client)] == [
        ("one", ("GPU-0",)), ("cpu", ()),
    ]  # fmt: skip
    assert await client.run("one", 0, wait_s=30) == "GPU-0"
    assert await client.run("cpu", 0, wait_s=30) == "", "it asked for no GPU and sees none"
    await with_gpus(running, client, library, "b", count=1, memory_mib=40_000, first=7)
    assert await client.run("two", 0, wait_s=30) == "GPU-7"
    await client.delete_job("one")
    await fleet_says(client, ReplicaStopped, job="one")
    await open_job(client, "three", "behaviours.py:gpus", resources=LARGE)
    assert [data.gpus for data in await assignments(client)][-1] == ("GPU-0",)


async def test_jobs_that_fit_together_share_a_gpu_and_others_take_the_next(
    running, client, library
):
    await with_gpus(running, client, library, "a", count=2, memory_mib=40_000)
    small = Resources(gpu_memory_mib=16_000)
    for name, need in (("one", LARGE), ("two", LARGE), ("small", small)):
        await open_job(client, name, "behaviours.py:gpus", resources=need)
    assert [data.gpus for data in await assignments(client)] == [
        ("GPU-0",), ("GPU-1",), ("GPU-0",),
    ]  # fmt: skip


async def test_a_lost_gpu_moves_its_jobs_and_the_rest_of_the_machine_works_on(
    running, client, library
):
    fake = await with_gpus(running, client, library, "a", count=2, memory_mib=40_000)
    await open_job(client, "cpu", "behaviours.py:about")
    await open_job(client, "one", "behaviours.py:gpus", resources=LARGE)
    await open_job(client, "two", "behaviours.py:gpus", resources=LARGE)
    pids = [(await client.run("cpu", None, wait_s=30))["pid"]]
    await with_gpus(running, client, library, "b", count=1, memory_mib=40_000, first=7)
    busy = await client.submit("one", 20)
    assert (await started(client, busy.invocation)).data.worker == "a"
    await busy.cancel("so that its second attempt does not last as long")
    busy = await client.submit("one", 3)
    await started(client, busy.invocation)
    start = await position(client, FLEET) + 1

    fake.set(count=2, memory_mib=40_000, lost=0)
    drained = await fleet_says(client, WorkerDraining, start=start, worker="a")
    assert drained.event.data.reason == "lost GPU 0 (Fake H100, GPU-0)"
    again = await fleet_says(client, WorkerJoined, start=start, worker="a")
    assert [gpu.uuid for gpu in again.event.data.machine.gpus] == ["GPU-1"]
    assert len(again.event.data.replicas) == 2, "what is not on that GPU goes on"
    outcome = await busy.outcome(30)
    assert isinstance(outcome, InvocationCompleted)
    assert (outcome.data.worker, outcome.data.output) == ("b", "GPU-7")
    pids.append((await client.run("cpu", None, wait_s=30))["pid"])
    assert pids[0] == pids[1]
    assert await client.run("two", 0, wait_s=30) == "GPU-1"


async def test_without_a_driver_the_machine_serves_cpu_work_and_gpus_that_return_serve_again(
    running, client, library
):
    fake = await with_gpus(running, client, library, "a", count=1, memory_mib=40_000)
    await open_job(client, "one", "behaviours.py:gpus", resources=LARGE)
    await open_job(client, "cpu", "behaviours.py:echo")
    start = await position(client, FLEET) + 1
    fake.set(unloaded=1)
    drained = await fleet_says(client, WorkerDraining, start=start, worker="a")
    assert "driver is gone" in drained.event.data.reason
    bare = await fleet_says(client, WorkerJoined, start=start, worker="a")
    assert bare.event.data.machine.gpus == ()
    assert await client.run("cpu", 5, wait_s=30) == 5
    waiting = await client.submit("one", 0)
    fake.set(count=1, memory_mib=40_000)
    back = await fleet_says(client, WorkerJoined, start=bare.seq + 1, worker="a")
    assert [gpu.uuid for gpu in back.event.data.machine.gpus] == ["GPU-0"]
    assert isinstance(await waiting.outcome(30), InvocationCompleted)


async def test_a_driver_that_hangs_costs_no_heartbeat_and_no_work(running, client, library):
    fake = await with_gpus(running, client, library, "a", count=1, memory_mib=40_000)
    await open_job(client, "one", "behaviours.py:gpus", resources=LARGE)
    start = await position(client, FLEET) + 1
    fake.set(count=1, memory_mib=40_000, delay_ms=2_000)
    first = await last_heartbeat(client.connection, "a")

    async def without_gpus() -> Any:
        heard = await last_heartbeat(client.connection, "a")
        return heard is not None and heard != first and not heard.heartbeat.data.gpus

    await until(without_gpus, "a heartbeat without GPU telemetry")
    assert await client.run("one", 0, wait_s=30) == "GPU-0"
    beats: asyncio.Queue[Any] = asyncio.Queue()
    await client.connection.subscribe(subjects.telemetry("a"), beats.put_nowait)
    async with asyncio.timeout(60):
        for _ in range(5):  # a second and a half apart: longer than a worker may be silent
            await beats.get()
    said = [r.event async for r in client.events(FLEET, start=start)]
    assert [event for event in said if not isinstance(event, ReplicaReady)] == []
    fake.set(count=1, memory_mib=40_000)


async def test_the_last_heartbeat_tells_of_gpus_and_of_the_speed_of_jobs(running, client, library):
    fake = await with_gpus(running, client, library, "a", count=1, memory_mib=40_000)
    await open_job(client, "one", "behaviours.py:gpus", resources=LARGE)
    assert await last_heartbeat(client.connection, "nobody") is None
    await client.run("one", 0.1, wait_s=30)
    fake.set(count=1, memory_mib=40_000, utilization=42, used_mib=1234)

    async def told() -> Any:
        heard = await last_heartbeat(client.connection, "a")
        data = heard.heartbeat.data if heard is not None else None
        ours = data is not None and data.jobs and data.jobs[0].service_s and data.gpus
        return data if ours and data.gpus[0].utilization == 0.42 else None

    data = await until(told, "the heartbeat tells it")
    assert data.gpus[0].memory_used_mib == 1234
    (load,) = data.jobs
    assert (load.model, load.gpu) == ("one:1", "Fake H100")
    assert 0.1 <= load.service_s < 2


async def test_a_machine_without_a_driver_says_nothing_about_it(running, client):
    running.agent("cpu")
    joined = await fleet_says(client, WorkerJoined, worker="cpu")
    assert joined.event.data.machine.gpus == ()
    await open_job(client, "echo", "behaviours.py:echo")
    assert await client.run("echo", 1, wait_s=30) == 1
    log = (running.folder / "agent-cpu.log").read_text().lower()
    assert "nvml" not in log
    assert "nvidia" not in log


async def test_the_speed_of_models_can_be_asked_in_sql_and_rebuilt_from_the_log(
    running, client, library
):
    projector = running.projector()
    await with_gpus(running, client, library, "a", count=1, memory_mib=40_000)
    await open_job(client, "one", "behaviours.py:gpus", resources=LARGE)
    await open_job(client, "cpu", "behaviours.py:echo")
    for _ in range(3):
        await client.run("one", 0.05, wait_s=30)
    await client.run("cpu", 1, wait_s=30)

    async def rows() -> Any:
        try:
            return (await client.sql("SELECT * FROM speeds ORDER BY model")).dicts()
        except QueryUnavailable:
            return None  # it begins

    before = await until(rows, "the projector answers")
    assert [(row["model"], row["gpu"], row["runs"]) for row in before] == [
        ("cpu:1", "", 1), ("one:1", "Fake H100", 3),
    ]  # fmt: skip
    assert before[1]["service_p50_s"] >= 0.05
    assert await projector.stop() == 0
    for file in running.broker.data_dir.glob("*.duckdb*"):
        file.unlink()
    running.projector()
    assert await until(rows, "the next one answers") == before


async def test_the_conductor_knows_the_speeds_that_workers_tell(settings):
    async with conducting(settings) as conductor, await Client.connect(settings) as asking:
        await declare(asking)
        async with working(settings):
            await asking.run("echo", 1, wait_s=30)
            await until(
                lambda: conductor.speeds.of_worker("w1", "default", "echo:1")[1], "it is told"
            )
