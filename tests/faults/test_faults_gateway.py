"""Gateways that are killed; several of them at once, with several agents."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest
from story import all_ended, told

from stack import all_joined, open_job, stack
from waiting import until

CALLS = 200
AT_ONCE = 32


@pytest.mark.anyio
async def test_what_a_killed_gateway_accepted_ends_and_its_successor_knows_it(
    tmp_path: Path,
) -> None:
    release = tmp_path / "release"
    async with stack(tmp_path / "stack") as fleet:
        client, gateway = await fleet.client(), await fleet.gateway()
        await gateway.ready()
        await open_job(client, "slow", "faulty.py:until_file")
        ids = [(await gateway.run("slow", str(release))).json()["id"] for _ in range(20)]
        waiting = asyncio.create_task(gateway.run_sync("slow", str(release)))

        async def all_accepted() -> bool:
            return len((await told(client)).queued) == len(ids) + 1

        await until(all_accepted, "the one that is waited for is accepted too")
        gateway.program.kill()
        with pytest.raises(httpx.TransportError):
            await waiting
        release.touch()
        successor = await fleet.gateway("successor", port=gateway.port)
        await successor.ready()
        story = await all_ended(client, (await told(client)).queued)
        answers = [await successor.http.get(f"/v1/invocations/{each}") for each in ids]
    assert {answer.status_code for answer in answers} == {200}
    assert {(a.json()["state"], a.json()["output"]) for a in answers} == {("completed", "released")}
    # The one whose caller lost its connection was accepted too, and has ended like the others.
    assert story.outcomes.keys() > set(ids)


@pytest.mark.anyio
async def test_results_always_reach_the_gateway_that_waits(tmp_path: Path) -> None:
    async with stack(tmp_path / "stack", agents=("a", "b")) as fleet:
        client = await fleet.client()
        gateways = [await fleet.gateway(name) for name in ("g", "h")]
        await all_joined(client, "a", "b")
        await open_job(client, "job", "faulty.py:echo", min_replicas=2, concurrency=4)
        for gateway in gateways:
            await gateway.ready()
        room = asyncio.Semaphore(AT_ONCE)

        async def call(number: int) -> httpx.Response:
            async with room:
                return await gateways[number % 2].run_sync("job", number)

        answers = await asyncio.gather(*map(call, range(CALLS)))
    assert [answer.status_code for answer in answers] == [200] * CALLS
    assert [answer.json()["output"] for answer in answers] == list(range(CALLS))
    assert len({answer.json()["id"] for answer in answers}) == CALLS
    assert Counter(answer.json()["worker"] for answer in answers).keys() == {"a", "b"}


@pytest.mark.anyio
async def test_the_end_of_a_gateway_costs_only_its_own_connections(tmp_path: Path) -> None:
    release = tmp_path / "release"
    async with stack(tmp_path / "stack") as fleet:
        client = await fleet.client()
        killed, ended, stays = [await fleet.gateway(name) for name in ("killed", "ended", "stays")]
        for gateway in (killed, ended, stays):
            await gateway.ready()
        await open_job(client, "slow", "faulty.py:until_file", concurrency=4)
        waiting = [
            asyncio.create_task(gateway.run_sync("slow", str(release)))
            for gateway in (killed, ended, stays)
        ]

        async def all_run() -> bool:
            return len((await told(client)).started) == len(waiting)

        await until(all_run, "all three run")
        killed.program.kill()
        ended.program.signal(signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            await waiting[0]
        release.touch()
        told_off, untouched = await asyncio.gather(*waiting[1:])
        status = await ended.program.ended()
        later = await stays.run_sync("slow", str(release))
    assert (told_off.status_code, untouched.status_code, later.status_code) == (200, 200, 200)
    assert status == 0
