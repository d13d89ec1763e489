"""A conductor concludes nothing from what it does not know: after it, or the broker, slept."""

from __future__ import annotations

import pytest

from inprocess import conducting, connected, declare, working
from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.events import ReplicaAssigned, WorkerLost
from jetfleet.log import Record
from jetfleet.streams import FLEET, REGISTRY
from jetfleet_projections import freshness
from jetfleet_projections.conductor import Conductor
from jetfleet_projections.observing import Watcher
from stack import fleet_says, position
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0


async def looked(conductor: Conductor, times: int = 3) -> None:
    await until(lambda at=conductor.rounds + times: conductor.rounds >= at, "it looked again")


async def count(client: Client, kind: type) -> int:
    return sum([isinstance(record.event, kind) async for record in client.events(FLEET)])


async def test_while_the_broker_answers_too_late_nobody_is_lost_and_nothing_decided(
    client, settings, monkeypatch
):
    async with conducting(settings) as conductor, working(settings) as agent:
        await until(lambda: "w1" in conductor.fleet.workers, "it has joined")
        monkeypatch.setattr(freshness, "SLOW_S", -1.0)
        await looked(conductor)
        conductor._heard["w1"] = float("-inf")
        await declare(client)
        await looked(conductor)
        assert await count(client, WorkerLost) == await count(client, ReplicaAssigned) == 0
        monkeypatch.setattr(freshness, "SLOW_S", 1.0)
        assert await client.run("echo", 1, wait_s=WAIT) == 1
        assert await count(client, WorkerLost) == 0
        assert agent.replicas


async def test_work_of_a_job_that_is_not_known_yet_is_not_ended(client, settings, monkeypatch):
    """What the broker tells of the registry is late: the job is not there, and not deleted."""
    held: list[Record] = []
    fold = Conductor._fold

    def late(self: Conductor, record: Record) -> None:
        if record.stream == REGISTRY:
            held.append(record)
        else:
            fold(self, record)

    monkeypatch.setattr(freshness, "SLOW_S", 0.2)
    async with conducting(settings) as conductor, working(settings):
        await until(lambda: "w1" in conductor.fleet.workers, "it has joined")
        monkeypatch.setattr(Conductor, "_fold", late)
        await declare(client)
        handle = await client.submit("echo", 1)
        scan = conductor.reaper.scans[subjects.shard_of("echo", settings.shards)]
        await until(lambda: handle.invocation in scan.by_invocation, "the work is seen")
        await looked(conductor)
        assert (await client.find(handle.invocation)).state == "queued"
        assert held and not conductor.registry.jobs
        monkeypatch.setattr(Conductor, "_fold", fold)
        for record in held:
            conductor._fold(record)
        assert await handle.output(WAIT) == 1


async def test_a_decision_is_not_stored_once_what_it_rests_on_is_old(client, settings, monkeypatch):
    async with conducting(settings) as conductor, working(settings):
        await until(lambda: "w1" in conductor.fleet.workers, "it has joined")
        monkeypatch.setattr(freshness, "HOLDS_S", 0.0)
        await declare(client)
        await until(lambda: conductor.registry.jobs, "it knows of the job")
        await looked(conductor)
        assert await count(client, ReplicaAssigned) == 0
        monkeypatch.setattr(freshness, "HOLDS_S", 5.0)
        await fleet_says(client, ReplicaAssigned, job="echo")


async def test_what_was_deleted_from_the_end_of_a_log_is_not_waited_for(client, settings):
    async with connected(settings) as owner:
        await owner.store(subjects.fleet("w1", "noise"), b"soon gone")
        await owner.api(f"STREAM.MSG.DELETE.{FLEET}", {"seq": await position(client, FLEET)})
    async with conducting(settings), working(settings):
        await declare(client)
        assert await client.run("echo", 1, wait_s=WAIT) == 1


async def test_a_registry_event_that_is_set_aside_stops_nobody(client, settings):
    await client.connection.store(subjects.job_event("default", "echo", "deleted"), b"no event")
    async with conducting(settings) as conductor, working(settings):
        await until(lambda: conductor.set_aside == 1, "it is set aside")
        await client.registry.sync()
        await declare(client)
        assert await client.run("echo", 1, wait_s=WAIT) == 1


async def test_after_it_stood_still_arrivals_that_come_at_once_are_no_burst(
    client, settings, monkeypatch
):
    begun: list[Watcher] = []

    def restarted(watcher: Watcher) -> None:
        begun.append(watcher)

    async with conducting(settings) as conductor, working(settings):
        await until(lambda: conductor.rounds, "it conducts")
        monkeypatch.setattr(Watcher, "restarted", restarted)
        await looked(conductor)
        assert begun == []
        conductor._slept = True
        await looked(conductor)
    assert begun == [conductor.scaler.watcher]
