"""Scaling with a real broker, conductor and agent: from zero and back, a burst, two conductors."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import Any

import pytest

from inprocess import conducting, declare, working
from jetfleet.client import Client
from jetfleet.events import JobScaled, ReplicaAssigned
from jetfleet.scaling_specs import KpaScaling, LagScaling, SloScaling
from jetfleet.streams import FLEET
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0
QUICK = LagScaling(down_window_s=1)
ZERO: dict[str, Any] = {"min_replicas": 0, "max_replicas": 3, "scaling": QUICK}


async def numbers(client: Client, job: str = "echo") -> list[int]:
    """What was decided, in order."""
    return [
        r.event.data.desired
        async for r in client.events(FLEET)
        if isinstance(r.event, JobScaled) and r.event.data.job == job
    ]


def bursts(found: list[int]) -> list[list[int]]:
    """The numbers between one zero and the next."""
    return [list(burst) for up, burst in groupby(found, key=bool) if up]


async def looked(conductor: Any, times: int = 3) -> None:
    await until(lambda at=conductor.rounds + times: conductor.rounds >= at, "it looked again")


def replicas(conductor: Any, *status: str) -> int:
    return sum(r.status in status for r in conductor.fleet.replicas.values())


@pytest.mark.parametrize(
    "policy",
    [
        QUICK,
        KpaScaling(stable_window_s=6, target_utilization=1),
        SloScaling(lease_s=0, zero_after_s=1),
    ],
    ids=lambda policy: policy.policy,
)
async def test_a_job_comes_from_zero_with_its_first_invocation_and_goes_back(
    client, settings, policy
):
    await declare(client, **{**ZERO, "scaling": policy})
    async with conducting(settings) as conductor, working(settings):
        await until(lambda: "w1" in conductor.fleet.workers, "it has joined")
        await looked(conductor)
        assert not conductor.fleet.replicas
        for value in (1, 2):
            assert await client.run("echo", value, wait_s=WAIT) == value
            await until(lambda: not conductor.fleet.replicas, "nothing is left of it")
        assert await numbers(client) == [0, 1, 0, 1, 0]


async def test_a_burst_gets_as_many_as_it_may_and_they_go_after_it(client, settings):
    await declare(client, "sleepy", behaves="gpus", **{**ZERO, "min_replicas": 1})
    async with conducting(settings) as conductor, working(settings):
        await until(lambda: replicas(conductor, "ready") == 1, "the least there may be")
        handles = [await client.submit("sleepy", 0.5) for _ in range(12)]
        await until(lambda: replicas(conductor, "ready") == 3, "as many as there may be")
        await asyncio.gather(*(handle.output(WAIT) for handle in handles))
        await until(lambda: len(conductor.fleet.replicas) == 1, "one is left")
        found = await numbers(client, "sleepy")
        assert (found[0], max(found), found[-1]) == (1, 3, 1)
        assert await client.run("sleepy", 0, wait_s=WAIT) == ""


async def test_a_decision_says_what_it_rests_on(client, settings):
    await declare(client, **ZERO)
    async with conducting(settings), working(settings):
        await until(lambda: numbers(client), "it has decided, before there is any work")
        await client.run("echo", 1, wait_s=WAIT)
        events = [r.event async for r in client.events(FLEET) if isinstance(r.event, JobScaled)]
    first, woken = events[:2]
    assert (first.data.before, first.data.desired) == (None, 0)
    assert (woken.data.before, woken.data.desired, woken.data.wanted) == (0, 1, 1)
    assert woken.data.why.policy == "lag"
    assert "1 queued or running" in woken.data.why.reason
    assert woken.data.inputs["queued"] == 1
    assert woken.data.why.observed_registry_seq == 2


async def test_a_job_of_a_fixed_size_is_as_it_was_and_nothing_is_asked_for_it(client, settings):
    await declare(client, min_replicas=1, max_replicas=3, desired_replicas=2)
    async with conducting(settings) as conductor, working(settings):
        await until(lambda: replicas(conductor, "ready") == 2, "as many as were declared")
        assert await client.run("echo", 1, wait_s=WAIT) == 1
        await looked(conductor)
        assert conductor.scaler.watcher.watches == {}
        assert len(conductor.fleet.replicas) == 2
        assert await numbers(client) == []


async def test_two_conductors_decide_each_number_once(client, settings):
    await declare(client, "sleepy", behaves="gpus", **ZERO)
    async with conducting(settings) as one, conducting(settings) as other, working(settings):
        for _ in range(2):
            handles = [await client.submit("sleepy", 0.3) for _ in range(9)]
            await asyncio.gather(*(handle.output(WAIT) for handle in handles))
            await until(lambda: not one.fleet.replicas, "back at zero")
        await looked(one)
        await looked(other)
        found = bursts(await numbers(client, "sleepy"))
        assert len(found) == 2
        for burst in found:
            top = burst.index(3)
            assert burst[: top + 1] == sorted(burst[: top + 1])
            assert burst[top:] == sorted(burst[top:], reverse=True)
            assert len(set(burst)) == len(burst)
        assigned = [r async for r in client.events(FLEET) if isinstance(r.event, ReplicaAssigned)]
        assert len(assigned) == 6  # three a burst
        assert one.fleet == other.fleet


async def test_a_conductor_that_comes_new_keeps_what_there_is_for_as_long_as_it_looks_back(
    client, settings
):
    scaling = LagScaling(down_window_s=2)
    await declare(client, "sleepy", behaves="gpus", **{**ZERO, "scaling": scaling})
    async with working(settings):
        async with conducting(settings) as first:
            handles = [await client.submit("sleepy", 0.3) for _ in range(9)]
            await until(lambda: replicas(first, "ready") == 3, "as many as there may be")
        await asyncio.gather(*(handle.output(WAIT) for handle in handles))
        async with conducting(settings) as second:
            await looked(second)
            assert replicas(second, "ready") == 3
            await until(lambda: not second.fleet.replicas, "they go")
    assert (await numbers(client, "sleepy"))[-2:] == [3, 0]


async def test_after_a_restart_of_the_broker_a_job_still_comes_from_zero(broker, client, settings):
    await declare(client, **ZERO)
    async with conducting(settings) as conductor, working(settings):
        assert await client.run("echo", 1, wait_s=WAIT) == 1
        await until(lambda: not conductor.fleet.replicas, "back at zero")
        broker.kill()
        await broker.start()
        await until(lambda: conductor.connection.connected, "connected again")
        await until(lambda: client.connection.connected, "the client too")
        assert await client.run("echo", 2, wait_s=WAIT) == 2
        await until(lambda: not conductor.fleet.replicas, "back at zero again")
