"""Pulling from a backlog on, against the real broker, with the rights of a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from inprocess import conducting, declare, queue_holds, working
from jetfleet.client import Client
from jetfleet.settings import Settings
from jetfleet_agent.worker import JobWorker
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 20.0
SLOTS = 4
ACK_WAIT_S = 60  # what is lost between requests would come again only after this


@asynccontextmanager
async def left_alone(client: Client, settings: Settings) -> AsyncIterator[JobWorker]:
    """A worker that serves a job, without a conductor that would tell it from when on."""
    await declare(client, ack_wait_s=ACK_WAIT_S, concurrency=SLOTS)
    async with working(settings) as agent:
        async with conducting(settings):
            assert await client.run("echo", 0, wait_s=WAIT) == 0
        (job,) = agent.jobs.values()
        yield job


async def heeds(
    client: Client, job: JobWorker, min_pending: int | None, for_s: float = 60.0
) -> None:
    """Return when the worker asks so, and what it had asked before is answered."""
    job.heed(min_pending, for_s)
    await until(lambda: job.load(lambda _: "").min_pending == min_pending, "it asks so")
    while min_pending and job._pull._outstanding > job._pull._waiting:
        await client.run("echo", 0, wait_s=WAIT)


async def test_work_is_left_until_as_much_waits_as_the_threshold_says(client, settings):
    async with left_alone(client, settings) as job:
        await heeds(client, job, 3)
        first, second = [await client.submit("echo", n) for n in (1, 2)]
        await queue_holds(client, 2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await first.output()
        third = await client.submit("echo", 3)
        assert await first.output(WAIT) == 1
        await queue_holds(client, 2)
        await heeds(client, job, None)
        assert [await handle.output(WAIT) for handle in (second, third)] == [2, 3]


async def test_a_threshold_runs_out(client, settings):
    async with left_alone(client, settings) as job:
        await heeds(client, job, 3, for_s=1.0)
        began = time.monotonic()
        assert await client.run("echo", 1, wait_s=WAIT) == 1
        assert 0.1 < time.monotonic() - began < 5


async def test_nothing_is_lost_or_late_while_thresholds_change_under_load(client, settings):
    async with left_alone(client, settings) as job:
        changes = 0

        async def change() -> None:
            nonlocal changes
            while True:
                changes += 1
                job.heed(None if changes % 2 else 1 + changes % 3, 60.0)
                await asyncio.sleep(0.02)

        changing = asyncio.create_task(change())
        try:
            async with asyncio.timeout(ACK_WAIT_S / 2):
                while changes < 100:
                    calls = (client.run("echo", n, wait_s=WAIT) for n in range(8))
                    assert await asyncio.gather(*calls) == [*range(8)]
        finally:
            changing.cancel()
