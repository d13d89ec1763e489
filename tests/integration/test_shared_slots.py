"""Two jobs on a worker of few slots: they get the same seconds, not the same number of calls."""

from __future__ import annotations

import asyncio

import pytest

from inprocess import working
from jetfleet.client import Client
from jetfleet.events import InvocationCompleted
from stack import open_job

pytestmark = pytest.mark.anyio
WAIT = 30.0
RUN_S = {"short": 0.01, "long": 0.1}


async def test_jobs_of_10_and_of_100_ms_get_the_same_seconds_of_one_slot(
    client, conductor, settings
):
    for name in RUN_S:
        await open_job(client, name, "faulty.py:naps", ready=False)
    handles = {
        name: [await client.submit(name, RUN_S[name]) for _ in range(count)]
        for name, count in (("short", 100), ("long", 10))
    }
    async with working(settings, slots=1):
        await asyncio.gather(*(h.outcome(WAIT) for each in handles.values() for h in each))
    order = await completed(client)
    both = contended(order)
    used = {name: sum(run_s for job, run_s in both if job == name) for name in RUN_S}
    assert sum(used.values()) > 0.5
    assert 0.6 < used["short"] / used["long"] < 1.7, used
    assert len(order) == 110


async def test_a_worker_runs_no_more_at_once_than_it_has_slots_and_who_is_alone_gets_all(
    client, conductor, settings
):
    await open_job(
        client, "alone", "faulty.py:naps", ready=False, concurrency=4,
        priority_classes=("high", "normal"),
    )  # fmt: skip
    await open_job(client, "idle", "faulty.py:naps", ready=False)
    seen: set[int] = set()
    async with working(settings, slots=2) as agent:
        calls = [
            asyncio.create_task(client.run("alone", 0.1, wait_s=WAIT, priority=priority))
            for priority in ("normal", "high") * 5
        ]
        while not all(call.done() for call in calls):
            seen.add(sum(job.running for job in agent.jobs.values()))
            await asyncio.sleep(0.005)
        assert [call.result() for call in calls] == [0.1] * 10
    assert max(seen) == 2


async def completed(client: Client) -> list[tuple[str, float]]:
    """Job and seconds of each run, in the order of the log."""
    events = [r.event async for r in client.events() if isinstance(r.event, InvocationCompleted)]
    return [(event.data.job, event.data.run_s or 0.0) for event in events]


def contended(order: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Those while both had something to do: to the last one of whoever was done first."""
    last = {job: place for place, (job, _) in enumerate(order)}
    return order[: min(last.values()) + 1]
