"""The conductor: one placement whoever decides, nothing obeyed that no subject vouches for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import given
from conftest import settings_for
from inprocess import conducting, connected, declare
from jetfleet import access, jwt, subjects
from jetfleet.client import Client
from jetfleet.errors import StartupError
from jetfleet.events import (
    ReplicaAssigned,
    ReplicaReleased,
    WorkerLost,
    encode,
)
from jetfleet.placement_specs import PlacementSpec
from jetfleet.setup import ensure_streams
from jetfleet.streams import FLEET
from pretender import now, pretending
from waiting import until

pytestmark = pytest.mark.anyio


async def fleet_events(client: Client, kind: type) -> list[Any]:
    return [r.event async for r in client.events(FLEET) if isinstance(r.event, kind)]


async def assigned(client: Client, count: int) -> list[Any]:
    """The assignments, once there are this many."""

    async def enough() -> list[Any]:
        found = await fleet_events(client, ReplicaAssigned)
        return found if len(found) >= count else []

    found: list[Any] = await until(enough, f"{count} replicas are assigned")
    return found


async def settled(*conductors: Any) -> None:
    """Return when each has folded all there is and looked at it twice."""
    for conductor in conductors:
        info = await conductor.connection.api(f"STREAM.INFO.{FLEET}")
        await until(
            lambda c=conductor, at=info["state"]["last_seq"]: c.fleet.seq >= at, "it is folded"
        )
    for conductor in conductors:
        # What it does not decide leaves no event to await, so wait for two whole looks.
        await until(lambda c=conductor, at=conductor.rounds + 2: c.rounds >= at, "it looked twice")


# -- deciding


async def test_a_job_is_placed_on_a_worker_with_the_reasons_why(client, settings):
    await declare(client)
    async with conducting(settings), pretending(settings, "w1"):
        (event,) = await assigned(client, 1)
    assert (event.data.worker, event.data.job) == ("w1", "echo")
    assert event.data.shard == subjects.shard_of("echo", settings.shards)
    assert event.data.why.policy == "weighted"
    assert event.data.why.observed_registry_seq == 2
    assert [c.worker for c in event.data.why.candidates] == ["w1"]
    assert event.source.startswith("conductor/")


async def test_two_conductors_make_one_placement(client, settings):
    async with (
        conducting(settings) as one,
        conducting(settings) as other,
        pretending(settings, "w1", memory_mib=60_000),
        pretending(settings, "w2", memory_mib=60_000),
    ):
        for n in range(8):
            await declare(client, f"job-{n}", min_replicas=3, max_replicas=3)
        events = await assigned(client, 24)
        await settled(one, other)
        events = await fleet_events(client, ReplicaAssigned)
        assert len(events) == 24
        assert len({event.data.replica for event in events}) == 24
        per_job = {f"job-{n}": 0 for n in range(8)}
        for event in events:
            per_job[event.data.job] += 1
        assert set(per_job.values()) == {3}
        assert one.fleet == other.fleet
        assert await fleet_events(client, ReplicaReleased) == []


async def test_a_conductor_that_comes_back_goes_on_where_the_log_is(client, settings):
    await declare(client)
    async with pretending(settings, "w1") as worker:
        async with conducting(settings):
            (first,) = await assigned(client, 1)
            await worker.ready(first.data.replica, "echo")
        await declare(client, "second")  # while nobody conducts
        async with conducting(settings) as again:
            events = await assigned(client, 2)
            await settled(again)
            assert [e.data.job for e in await fleet_events(client, ReplicaAssigned)] == [
                "echo", "second",
            ]  # fmt: skip
            assert len(events) == 2
            assert again.fleet.replicas[first.data.replica].status == "ready"


async def test_a_killed_conductor_in_the_middle_leaves_no_double(client, settings):
    async with pretending(settings, "w1", memory_mib=60_000):
        for n in range(6):
            await declare(client, f"job-{n}", min_replicas=2, max_replicas=2)
        for _ in range(5):
            async with conducting(settings):
                count = len(await fleet_events(client, ReplicaAssigned))
                await assigned(client, min(12, count + 1))  # and it is cancelled wherever it is
        async with conducting(settings) as last:
            await assigned(client, 12)
            await settled(last)
        assert len(await fleet_events(client, ReplicaAssigned)) == 12


async def test_a_deleted_job_is_released_and_its_replica_forgotten_when_it_has_stopped(
    client, settings
):
    await declare(client)
    async with conducting(settings) as conductor, pretending(settings, "w1") as worker:
        (event,) = await assigned(client, 1)
        await client.delete_job("echo")

        async def released() -> list[Any]:
            return await fleet_events(client, ReplicaReleased)

        (gone,) = await until(released, "it is released")
        assert gone.data.replica == event.data.replica
        told = given.stopped(event.data.replica, "w1", "echo")
        await worker.say(type(told)(**now(), data=told.data), "stopped")
        await until(lambda: not conductor.fleet.replicas, "it is forgotten")


# -- silence


async def test_a_silent_worker_is_lost_once_and_replaced(client, settings):
    await declare(client)
    async with conducting(settings) as one, conducting(settings) as other:
        async with pretending(settings, "w1") as first:
            (event,) = await assigned(client, 1)
            assert event.data.worker == "w1"
            async with pretending(settings, "w2"):
                first.fall_silent()
                events = await assigned(client, 2)
                assert events[1].data.worker == "w2"
                await settled(one, other)
                lost = await fleet_events(client, WorkerLost)
                assert [e.data.worker for e in lost] == ["w1"]
                assert lost[0].data.silent_s >= 3
                assert len(await fleet_events(client, ReplicaAssigned)) == 2


async def test_of_two_workers_that_end_one_gets_nothing_of_the_other(client, settings):
    apart = PlacementSpec(apart="workers")
    await declare(client, assignment="manual", workers=("w1",), placement=apart)
    async with conducting(settings) as conductor, pretending(settings, "w1") as first:
        await assigned(client, 1)
        async with (
            pretending(settings, "w2", memory_mib=60_000) as second,  # the one that is liked best
            pretending(settings, "w3"),
        ):
            await declare(client, placement=apart)
            first.fall_silent()
            loop = asyncio.get_running_loop()
            await until(lambda: loop.time() - conductor._heard["w1"] > 0.75, "it is silent")
            await second.beat()
            second.fall_silent()  # so it is lost later
            events = await assigned(client, 2)
            assert [event.data.worker for event in events] == ["w1", "w3"]


async def test_a_worker_that_was_lost_and_lives_is_asked_to_join_anew(client, settings):
    await declare(client)
    async with conducting(settings) as conductor, pretending(settings, "w1") as worker:
        await assigned(client, 1)
        worker.fall_silent()
        await until(lambda: conductor.fleet.workers["w1"].status == "lost", "it is declared lost")
        joined_seq = conductor.fleet.workers["w1"].joined_seq
        assert conductor.fleet.replicas == {}
        worker.session = "s2"
        worker._beats = asyncio.create_task(worker._beat())
        nudge = {"rejoin": joined_seq}
        await until(lambda: nudge in worker.commands, "it is asked to join anew")
        await worker.join()
        assert (await assigned(client, 2))[1].data.worker == "w1"


async def test_a_restart_of_the_broker_is_nobodys_silence(broker, client, settings):
    await declare(client)
    async with conducting(settings) as conductor, pretending(settings, "w1"):
        await assigned(client, 1)
        broker.kill()
        await until(lambda: not conductor.connection.connected, "the broker is away")
        conductor._heard["w1"] = float("-inf")  # as if for much longer than a worker may be silent
        before = conductor.rounds
        await until(lambda: conductor.rounds > before + 1, "it has looked meanwhile")
        await broker.start()
        await until(lambda: conductor.connection.connected, "connected again")
        await settled(conductor)
        assert await fleet_events(client, WorkerLost) == []


# -- what is not obeyed


async def test_a_worker_cannot_assign_itself_a_job(client, settings):
    spec = await declare(client, "secret", assignment="manual", workers=("trusted",))
    async with conducting(settings) as conductor, pretending(settings, "w1") as worker:
        await until(lambda: "w1" in conductor.fleet.workers, "it has joined")
        forged = given.assigned("r666", "w1", spec)
        for verb in ("assigned", "joined", "ready"):
            await worker.say(type(forged)(**now(), data=forged.data), verb)
        await until(lambda: conductor.set_aside == 3, "they are set aside")
        assert conductor.fleet.replicas == {}
        assert "not assigned" in (await worker.ask("secret"))["error"]


async def test_what_lies_on_a_decisions_subject_and_is_none_stops_nobody(client, settings):
    async with conducting(settings) as conductor, pretending(settings, "w1"):
        for body in (b"not an event", encode(given.enabled("echo"))):
            await client.connection.store(subjects.revoked("noise"), body)  # an operator may
        await until(lambda: conductor.set_aside == 2, "they are set aside")
        await declare(client)
        await assigned(client, 1)


async def test_a_worker_cannot_speak_for_another(settings, client):
    async with conducting(settings) as conductor, pretending(settings, "w1") as worker:
        await until(lambda: "w1" in conductor.fleet.workers, "it has joined")
        told = given.joined("w2")
        await worker.say(type(told)(**now(), data=told.data), "joined")
        await until(lambda: conductor.set_aside == 1, "it is set aside")
        assert set(conductor.fleet.workers) == {"w1"}
        with pytest.raises(Exception, match="did not answer"):
            await worker.connection.store(
                subjects.fleet("w2", "joined"), encode(told), msg_id="x", timeout_s=0.5
            )
        assert any("jf.fleet.w2.joined" in denied for denied in worker.connection.denied)


# -- rights


async def test_rights_are_given_for_what_is_assigned_and_bound_to_the_workers_key(client, settings):
    await declare(client)
    await declare(client, "other", assignment="manual", workers=("w9",))
    async with conducting(settings) as conductor, pretending(settings, "w1") as worker:
        (event,) = await assigned(client, 1)
        await until(lambda: event.data.replica in conductor.fleet.replicas, "it is folded")
        answer = await worker.ask("echo")
        claims = jwt.decode(answer["token"])
        assert claims["sub"] == worker.public_key
        assert claims["exp"] == answer["expires_at"]
        rights = access.job_permissions(
            "w1", shard=event.data.shard, tenant="default", job="echo", classes=["normal"]
        )
        assert claims["nats"]["pub"]["allow"] == list(rights.publish)
        for job, tenant in (("other", "default"), ("echo", "rival"), ("*", "default"), ("", "")):
            assert "error" in await worker.ask(job, tenant)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"not json", b'{"tenant":1,"job":[]}'])
async def test_a_malformed_request_for_rights_is_answered_with_an_error(settings, body):
    async with conducting(settings) as conductor, pretending(settings, "w1") as worker:
        await until(lambda: conductor.rounds and conductor.fleet.workers, "it has joined")
        answer = await worker.connection.request(subjects.ask_credentials("w1"), body, 10)
        assert "error" in json.loads(answer)


# -- streams


async def test_the_number_of_shards_is_fixed(broker, settings):
    with pytest.raises(StartupError, match="JETFLEET_SHARDS"):
        await ensure_streams(settings_for(broker, shards=3))
    await ensure_streams(settings)  # the same again changes nothing


async def test_streams_are_as_they_are_written_out(settings):
    from jetfleet import streams

    async with connected(settings) as owner:
        for wanted in streams.all_streams(settings.shards):
            present = (await owner.api(f"STREAM.INFO.{wanted['name']}"))["config"]
            for key, value in wanted.items():
                assert present[key] == value, (wanted["name"], key)
