"""Preemption with a real broker, conductor and agent: what ran ends, then the room is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inprocess import conducting, working
from jetfleet.client import Client
from jetfleet.events import InvocationStarted, ReplicaAssigned, ReplicaReleased
from jetfleet.evidence import explain
from jetfleet.log import Record
from jetfleet.placement_specs import PlacementSpec
from jetfleet.specs import Resources
from jetfleet.streams import FLEET, INVOCATIONS
from stack import fleet_says, open_job
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0


async def events(client: Client, stream: str, kind: type) -> list[Record]:
    return [r async for r in client.events(stream) if isinstance(r.event, kind)]


async def because(client: Client, name: str, code: str) -> Any:
    """The cause, once it is this one."""

    async def found() -> Any:
        cause = (await explain(client, name)).cause
        return cause if cause.code == code else None

    return await until(found, code)


async def test_a_more_important_job_gets_the_place_once_what_runs_there_has_ended(
    client, settings, tmp_path
):
    gate = tmp_path / "gate"
    async with conducting(settings) as conductor, working(settings):
        await until(lambda: "w1" in conductor.fleet.workers, "it has joined")
        memory = conductor.fleet.workers["w1"].machine.memory_mib
        most = Resources(memory_mib=int(memory * 0.6))  # of two such only one fits
        await open_job(client, "low", "faulty.py:until_file", resources=most)
        running = await client.submit("low", str(gate))
        await until(lambda: Path(f"{gate}.begun").exists(), "it runs")

        urgent = PlacementSpec(priority=10)
        await open_job(
            client, "high", "faulty.py:echo", resources=most, placement=urgent, ready=False
        )
        waiting = await client.submit("high", "now")
        let_go = (await fleet_says(client, ReplicaReleased, job="low")).event.data
        assert (let_go.room_for.job, let_go.room_for.priority) == ("high", 10)
        assert let_go.why.reason.startswith("makes room for high (priority 10, its own is 0)")
        assert [c.worker for c in let_go.why.candidates] == ["w1"]
        cause = await because(client, waiting.invocation, "making_room")
        assert "low on w1" in cause.text

        # Looked at again and again, nobody else goes and nothing is placed: there is no room yet.
        seen = conductor.rounds
        await until(lambda: conductor.rounds > seen + 3, "it looked again")
        assert len(await events(client, FLEET, ReplicaReleased)) == 1
        assert len(await events(client, FLEET, ReplicaAssigned)) == 1

        queued = await client.submit("low", str(gate))
        gate.touch()
        assert await running.output(WAIT) == "released"
        assert await waiting.output(WAIT) == "now"
        attempts = await events(client, INVOCATIONS, InvocationStarted)
        assert [e.event.data.attempt for e in attempts if e.event.data.job == "low"] == [1]
        cause = await because(client, queued.invocation, "preempted")
        assert "a replica on w1 made room for high (priority 10)" in cause.text
        assert (await because(client, "low", "preempted")).text == cause.text
        await queued.cancel()
