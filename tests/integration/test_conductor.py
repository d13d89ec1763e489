"""The conductor: one placement whoever decides, nothing obeyed that no subject vouches for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

import given
from conftest import settings_for
from inprocess import conducting, connected, declare
from jetfleet import access, jwt, subjects
from jetfleet.client import Client
from jetfleet.connection import Connection
from jetfleet.errors import ApiError, StartupError
from jetfleet.events import (
    ReplicaAssigned,
    ReplicaReady,
    ReplicaReleased,
    WorkerHeartbeat,
    WorkerJoined,
    WorkerLost,
    encode,
)
from jetfleet.secrets import Secrets
from jetfleet.settings import Settings
from jetfleet.setup import ensure_streams
from jetfleet.streams import FLEET, job_consumer
from waiting import until

pytestmark = pytest.mark.anyio


def now(tenant: str = "default") -> dict[str, Any]:
    return {**given.envelope(tenant=tenant), "time": datetime.now(UTC)}


@dataclass
class Pretender:
    """A worker that says what workers say, and runs nothing."""

    connection: Connection
    name: str
    session: str = "s1"
    public_key: str = field(default_factory=lambda: jwt.public_key(jwt.new_seed("user")))
    commands: list[dict[str, Any]] = field(default_factory=list)
    _beats: asyncio.Task[None] | None = None

    async def join(self, memory_mib: int = 8192) -> None:
        told = given.joined(self.name, session=self.session, memory_mib=memory_mib)
        data = told.data.model_copy(update={"public_key": self.public_key, "heartbeat_s": 0.5})
        await self.say(WorkerJoined(**now(), data=data), "joined")
        if self._beats is None:
            self._beats = asyncio.create_task(self._beat())

    async def say(self, event: Any, verb: str) -> None:
        await self.connection.store(
            subjects.fleet(self.name, verb), encode(event), msg_id=event.id, timeout_s=30
        )

    async def ready(self, replica: str, of: str) -> None:
        data = given.ready(replica, self.name, of).data
        await self.say(ReplicaReady(**now(), data=data), "ready")

    async def _beat(self) -> None:
        data = WorkerHeartbeat.Data(worker=self.name, session=self.session)
        while True:
            beat = WorkerHeartbeat(**now(), data=data)
            await self.connection.publish(subjects.telemetry(self.name), encode(beat))
            await asyncio.sleep(0.3)

    def fall_silent(self) -> None:
        if self._beats is not None:
            self._beats.cancel()
            self._beats = None

    async def ask(self, job: str, tenant: str = "default") -> dict[str, Any]:
        """What the conductor answers to a request for the rights of a job."""
        body = json.dumps({"tenant": tenant, "job": job}).encode()
        return json.loads(
            await self.connection.request(subjects.ask_credentials(self.name), body, 10)
        )


@asynccontextmanager
async def pretending(settings: Settings, name: str, **more: Any) -> AsyncIterator[Pretender]:
    path = Secrets(settings.data_dir).worker(name)
    connection = await Connection.open(settings.nats_url, path, user=name, name=name)
    worker = Pretender(connection, name)
    await connection.subscribe(
        subjects.command(name), lambda m: worker.commands.append(json.loads(m.data))
    )
    await worker.join(**more)
    try:
        yield worker
    finally:
        worker.fall_silent()
        await connection.close()


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


async def test_a_restarted_broker_gets_its_consumers_back(broker, client, settings):
    job = await declare(client)
    config = job_consumer("default", "echo", job, subjects.shard_of("echo", settings.shards))
    verb = f"Q{subjects.shard_of('echo', settings.shards)}.{config['name']}"

    async def there(connection: Connection) -> bool:
        try:
            info = await connection.api(f"CONSUMER.INFO.{verb}")
        except ApiError:
            return False
        return bool(info["config"]["filter_subject"] == config["filter_subject"])

    async with conducting(settings) as conductor, pretending(settings, "w1"):
        await assigned(client, 1)
        await until(lambda: there(conductor.connection), "the job has its consumer")
        broker.kill()
        await broker.start()
        await until(lambda: conductor.connection.connected, "connected again")
        await until(lambda: _again(there, conductor.connection), "it has its consumer again")
        info = await conductor.connection.api(
            f"CONSUMER.INFO.FLEET.{subjects.worker_consumer('w1')}"
        )
        assert info["config"]["opt_start_seq"] == conductor.fleet.workers["w1"].joined_seq


async def _again(there: Any, connection: Connection) -> bool:
    from jetfleet.errors import Unavailable

    try:
        return bool(await there(connection))
    except Unavailable:
        return False  # JetStream is not up yet


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


async def test_a_replica_is_confirmed_to_its_worker_in_its_present_session_only(client, settings):
    async with conducting(settings) as conductor, pretending(settings, "w1") as worker:
        await declare(client)
        (event,) = await assigned(client, 1)
        replica = event.data.replica
        await until(lambda: replica in conductor.fleet.replicas, "it is folded")

        async def confirmed(session: str, replica: str) -> bool:
            body = json.dumps({"session": session, "replica": replica}).encode()
            subject = subjects.ask_credentials("w1")
            answer = json.loads(await worker.connection.request(subject, body, 10))
            return answer == {"assigned": True}

        assert await confirmed(worker.session, replica)
        assert not await confirmed("another", replica)
        assert not await confirmed(worker.session, "another")


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
