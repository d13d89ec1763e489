"""Capacity from end to end: a replica that fits nowhere brings a worker, which goes again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jetfleet.capacity import CapacityState, evolve_capacity
from jetfleet.client import Client
from jetfleet.events import (
    CapacityAccepted,
    CapacityOffered,
    CapacityReleased,
    CapacityRequested,
    CapacityStarted,
    CapacityStopped,
    WorkerJoined,
    WorkerLeft,
)
from jetfleet.evidence import explain
from jetfleet.placement_specs import PlacementSpec
from jetfleet.specs import Resources
from jetfleet.streams import FLEET
from stack import Program, Stack, fleet_says, open_job, position, stack
from waiting import WITHIN_S, until

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "docs" / "examples" / "capacity" / "local.sh"
BURST = PlacementSpec(labels={"pool": "burst"}, apart="workers")


def provider(fleet: Stack, *arguments: str) -> Program:
    """``jetfleet provider``, with ``jetfleet`` on its path for what it starts."""
    found = Path(sys.executable).parent
    path = {"PATH": f"{found}:{os.environ['PATH']}"}
    return fleet._spawn("provider", "provider", *arguments, environment=path)


def by_command(fleet: Stack, folder: Path) -> Program:
    return provider(
        fleet, "command", "--name", "cloud", "--memory-mib", "4096", "--max-workers", "5",
        "--boot-s", "60", "--lease-s", "0", "--idle-s", "1", "--label", "pool=burst",
        "--join", fleet.broker.websocket_url, "--", str(LOCAL), str(folder),
    )  # fmt: skip


async def state(client: Client) -> CapacityState:
    found = CapacityState()
    async for record in client.events(FLEET):
        if record.event is not None:
            found = evolve_capacity(found, record.event, record.time)
    return found


async def comes_and_serves(client: Client, folder: Path) -> str:
    """Two replicas fit nowhere, and the ceiling is one worker: which comes, and serves."""
    await open_job(
        client, "echo", "behaviours.py:echo", ready=False, min_replicas=2, placement=BURST
    )
    handle = await client.submit("echo", 5)
    asked = (await fleet_says(client, CapacityRequested, provider="cloud")).event
    assert isinstance(asked, CapacityRequested)
    (worker,) = asked.data.workers
    assert [(n.job, n.replicas, n.labels) for n in asked.data.needs] == [("echo", 2, BURST.labels)]
    assert "1 of 2 replicas that fit nowhere" in asked.data.why.reason
    accepted = await fleet_says(client, CapacityAccepted, workers=(worker,))
    told = (await fleet_says(client, CapacityStarted, worker=worker)).event
    assert isinstance(told, CapacityStarted)
    assert told.data.handle == (folder / f"{worker}.pid").read_text().strip()
    joined = await fleet_says(client, WorkerJoined, worker=worker)
    assert accepted.seq < joined.seq
    assert isinstance(joined.event, WorkerJoined)
    assert joined.event.data.ephemeral
    assert await handle.output(wait_s=WITHIN_S) == 5
    return worker


async def no_further(client: Client, what: str) -> None:
    """Return when this is said to be why job echo has no second replica."""

    async def named() -> bool:
        return any(what in each for each in (await explain(client, "echo")).cause.details)

    await until(named, what)


async def short_of(client: Client, job: str, resources: Resources) -> str:
    """Why nobody is asked for a worker for a job that needs this."""
    await open_job(
        client, job, "behaviours.py:echo", ready=False, resources=resources, placement=BURST
    )
    await client.submit(job, 1)

    async def named() -> str:
        found = (await explain(client, job)).cause
        return found.text if found.code == "capacity_withheld" else ""

    return await until(named, f"{job}: nobody is asked")


async def test_a_worker_comes_for_what_fits_nowhere_and_goes_when_it_idles(tmp_path, monkeypatch):
    monkeypatch.setenv("JETFLEET_CAPACITY_WORKERS", "1")
    folder = tmp_path / "machines"
    async with stack(tmp_path / "stack") as fleet:
        client = await fleet.client()
        running = by_command(fleet, folder)
        await fleet_says(client, CapacityOffered, provider="cloud", most=5)
        worker = await comes_and_serves(client, folder)

        await no_further(client, "cloud: the fleet's providers may have 1 worker")
        gpus = Resources(memory_mib=256, gpu_memory_mib=9_000)
        text = await short_of(client, "gpus", gpus)
        assert text.startswith("no provider can give it a worker: cloud: its workers: no GPU with")

        # a machine that a worker stands for offers no further one
        provider(fleet, "process", "--label", "pool=burst")
        await fleet_says(client, CapacityOffered, provider="process", most=0)
        await no_further(client, "process: it offers none now")
        assert list((await state(client)).workers) == [worker]

        # killed -9, it finds what it had started, and what it never did
        running.kill()
        stray = subprocess.Popen(["sleep", "600"], start_new_session=True)
        (folder / "cloud-stray.pid").write_text(str(stray.pid))
        for job in ("echo", "gpus"):
            await client.delete_job(job)
        await fleet_says(client, CapacityReleased, worker=worker)
        await fleet_says(client, WorkerLeft, worker=worker)
        by_command(fleet, folder)
        stopped = (await fleet_says(client, CapacityStopped, worker=worker)).event
        assert isinstance(stopped, CapacityStopped)
        assert stopped.data.reason == "it has left"
        await until(lambda: stray.poll() is not None, "the stray is stopped")
        await until(lambda: not list(folder.glob("*.pid")), "nothing is there any more")
        assert not (await state(client)).workers


async def test_processes_of_this_machine_end_with_their_provider_and_come_again(tmp_path):
    options = ("process", "--lease-s", "0", "--idle-s", "30")
    async with stack(tmp_path / "stack", agents=()) as fleet:
        client = await fleet.client()
        running = provider(fleet, *options)
        await open_job(client, "echo", "behaviours.py:echo")
        assert await client.run("echo", 1, wait_s=WITHIN_S) == 1
        (worker,) = (await state(client)).workers
        assert worker.startswith("process-")

        running.kill()
        start = await position(client, FLEET) + 1
        provider(fleet, *options)
        await fleet_says(client, CapacityStopped, start=start, worker=worker)
        again = await fleet_says(client, WorkerJoined, start=start)
        assert isinstance(again.event, WorkerJoined) and again.event.data.worker != worker
        assert await client.run("echo", 2, wait_s=WITHIN_S) == 2
