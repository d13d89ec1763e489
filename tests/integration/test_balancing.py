"""A slow and a fast worker in processes: who serves when, and nobody starves without the fast."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.events import JobBalanced, WorkerHeartbeat, decode
from jetfleet.streams import FLEET
from stack import Stack, all_joined, heard, open_job, stack

pytestmark = pytest.mark.anyio
WAIT = 30.0
RUN_S = {"fast": 0.01, "slow": 0.08}
LEASE_S = 10.0  # how long a threshold holds without news


def agent(running: Stack, name: str) -> Any:
    environment = {"PACE_S": str(RUN_S[name]), "PACE_NAME": name}
    return running.agent(name, environment=environment)


async def served(client: Client, count: int) -> Counter[str]:
    """Who served so many calls at once."""
    calls = (client.run("paced", {}, wait_s=WAIT) for _ in range(count))
    return Counter(await asyncio.gather(*calls))


async def waiting_since(client: Client, worker: str) -> None:
    """Return when a worker has said that it waits for a backlog."""
    told = asyncio.Event()

    def on_heartbeat(message: Any) -> None:
        beat = decode(message.data)
        assert isinstance(beat, WorkerHeartbeat)
        if any(load.min_pending for load in beat.data.jobs):
            told.set()

    heartbeats = await client.connection.subscribe(subjects.telemetry(worker), on_heartbeat)
    try:
        async with asyncio.timeout(WAIT):
            await told.wait()
    finally:
        await heartbeats.stop()


async def begin(running: Stack) -> dict[str, Any]:
    """A job that both serve, and of which it is known how fast they are; the agents."""
    client = await running.client()
    agents = {name: agent(running, name) for name in RUN_S}
    await all_joined(client, *agents)
    await open_job(
        client, "paced", "behaviours.py:paced", min_replicas=2, assignment="manual",
        workers=tuple(RUN_S),
    )  # fmt: skip
    await learned(client)
    return {"client": client, **agents}


async def learned(client: Client) -> None:
    """Both work until the slow one waits for a backlog."""
    waiting = asyncio.create_task(waiting_since(client, "slow"))
    while not waiting.done():
        await served(client, 100)
    await waiting


def thresholds(event: Any) -> dict[str, int | None]:
    return {name: level.min_pending for level in event.data.levels for name in level.workers}


async def test_the_slow_worker_leaves_little_work_to_the_fast_one_and_helps_with_much(tmp_path):
    async with stack(tmp_path, agents=()) as running:
        there = await begin(running)
        client = there["client"]
        one_by_one = Counter([await client.run("paced", {}, wait_s=WAIT) for _ in range(40)])
        assert one_by_one["slow"] <= 1  # it may have asked before it knew
        both = await served(client, 150)
        assert both["slow"] >= 8
        assert both["fast"] > both["slow"]
        record = await heard(
            client, FLEET, lambda r: isinstance(r.event, JobBalanced), "a decision in the log"
        )
        assert record.event.data.why.policy == "overflow"
        assert thresholds(record.event)["fast"] is None
        assert thresholds(record.event)["slow"] >= 2
        await client.close()


async def test_when_the_fast_worker_is_killed_the_slow_one_serves_at_once_what_comes(tmp_path):
    async with stack(tmp_path, agents=()) as running:
        there = await begin(running)
        client = there["client"]
        there["fast"].kill()
        assert await client.run("paced", {}, wait_s=WAIT) == "slow"  # its loss was noticed
        began = time.monotonic()
        assert await client.run("paced", {}, wait_s=WAIT) == "slow"
        assert time.monotonic() - began < 1
        await client.close()


async def test_without_a_conductor_nobody_waits_for_a_worker_that_is_gone(tmp_path):
    async with stack(tmp_path, agents=()) as running:
        there = await begin(running)
        client = there["client"]
        (conductor,) = (p for p in running.programs if p.name == "conductor")
        conductor.kill()
        there["fast"].kill()
        began = time.monotonic()
        assert await client.run("paced", {}, wait_s=WAIT) == "slow"
        assert time.monotonic() - began < LEASE_S + 5
        await client.close()
