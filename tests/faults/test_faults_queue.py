"""The queue's promises: in order, nothing kept past its time, cancelled or deleted work ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from story import all_ended

from jetfleet.client import Client, Handle
from jetfleet.events import InvocationCancelled, InvocationCompleted, InvocationExpired
from jetfleet.submit import queue_depth
from stack import Stack, open_job, stack, started
from waiting import WITHIN_S, until

QUEUED = 500
REAPED_S = 3.0  # after the deadline; the conductor looks twice a second
NOBODY = {"assignment": "manual", "workers": ("nobody",)}  # no replica is ever placed


@pytest.fixture(scope="module")
async def fleet(anyio_backend: str, tmp_path_factory: Any) -> AsyncIterator[Stack]:
    async with stack(tmp_path_factory.mktemp("queue") / "stack") as opened:
        yield opened


@pytest.fixture(scope="module")
async def client(fleet: Stack) -> Client:
    return await fleet.client()


async def running(client: Client, job: str, file: Path) -> Handle:
    """An invocation in the hands of the only replica of a new job, until ``file`` is there."""
    await open_job(client, job, "faulty.py:until_file")
    handle = await client.submit(job, str(file))
    await started(client, handle.invocation)
    return handle


async def emptied(client: Client, job: str) -> None:
    """Return when the job's queue holds nothing: what ended does not stay in it."""
    state = client.registry.job("default", job)
    assert state is not None

    async def empty() -> bool:
        return (await queue_depth(client.connection, state, client.settings.shards))[0] == 0

    await until(empty, f"the queue of {job} is empty", within_s=5)


@pytest.mark.anyio
async def test_one_replica_serves_500_queued_in_the_order_of_the_log(client: Client) -> None:
    spec = await open_job(client, "order", "faulty.py:echo", ready=False, **NOBODY)
    handles = await asyncio.gather(*(client.submit("order", n) for n in range(QUEUED)))
    await client.apply_job(spec.model_copy(update={"assignment": "auto", "workers": ()}))
    ids = [handle.invocation for handle in handles]
    story = await all_ended(client, ids)
    queued = sorted(ids, key=story.queued.__getitem__)
    served = [each for each in story.outcomes if each in story.queued]
    assert served == queued
    assert all(isinstance(story.counting(each), InvocationCompleted) for each in ids)
    await emptied(client, "order")


@pytest.mark.anyio
async def test_what_nobody_starts_in_time_expires_and_leaves_the_queue(client: Client) -> None:
    await open_job(client, "nobody", "faulty.py:echo", ready=False, **NOBODY)
    handle = await client.submit("nobody", 1, ttl_s=1)
    outcome = await handle.outcome(wait_s=WITHIN_S)
    assert isinstance(outcome, InvocationExpired)
    late = (datetime.now(UTC) - outcome.data.expires_at).total_seconds()
    assert 0 <= late < REAPED_S
    story = await all_ended(client, [handle.invocation])
    assert len(story.outcomes[handle.invocation]) == 1
    assert not story.attempts(handle.invocation)
    await emptied(client, "nobody")


@pytest.mark.anyio
async def test_what_waits_behind_running_work_past_its_time_expires(
    client: Client, tmp_path: Path
) -> None:
    first = await running(client, "busy", tmp_path / "release")
    behind = await client.submit("busy", str(tmp_path / "release"), ttl_s=1)
    expired = await behind.outcome(wait_s=1 + REAPED_S)
    (tmp_path / "release").touch()
    completed = await first.outcome(wait_s=WITHIN_S)
    assert isinstance(expired, InvocationExpired)
    assert isinstance(completed, InvocationCompleted)
    await emptied(client, "busy")


@pytest.mark.anyio
async def test_queued_and_running_work_is_cancelled_and_the_next_call_works(
    client: Client, tmp_path: Path
) -> None:
    first = await running(client, "stop", tmp_path / "never")
    queued = await client.submit("stop", str(tmp_path / "never"))
    began = time.monotonic()
    views = [await client.cancel(each.invocation, "enough") for each in (queued, first)]
    took = time.monotonic() - began
    outcomes = [await each.outcome(wait_s=WITHIN_S) for each in (queued, first)]
    (tmp_path / "now").touch()
    after = await client.run("stop", str(tmp_path / "now"), wait_s=WITHIN_S)
    story = await all_ended(client, [queued.invocation, first.invocation])
    assert [view.state for view in views] == ["cancelled", "cancelled"]
    assert took < 10
    assert all(isinstance(outcome, InvocationCancelled) for outcome in outcomes)
    assert [outcome.data.worker for outcome in outcomes] == [None, "a"]
    assert not story.attempts(queued.invocation)
    assert after == "released"
    await emptied(client, "stop")


@pytest.mark.anyio
async def test_work_queued_for_a_job_that_is_deleted_is_cancelled(
    client: Client, tmp_path: Path
) -> None:
    first = await running(client, "gone", tmp_path / "release")
    queued = [await client.submit("gone", str(tmp_path / "release")) for _ in range(20)]
    await client.delete_job("gone")
    outcomes = [await each.outcome(wait_s=WITHIN_S) for each in queued]
    (tmp_path / "release").touch()
    last = await first.outcome(wait_s=WITHIN_S)
    story = await all_ended(client, [each.invocation for each in queued])
    assert all(isinstance(outcome, InvocationCancelled) for outcome in outcomes)
    assert all(len(story.outcomes[each.invocation]) == 1 for each in queued)
    assert isinstance(last, InvocationCompleted)  # a released replica lets its calls end
