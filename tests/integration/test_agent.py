"""The agent against a real broker and conductor: joins, obeys, serves, drains, leaves nothing."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from given import enabled, queued
from inprocess import conducting, connected, declare, queue_holds, working
from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.errors import OutcomePending
from jetfleet.events import (
    InvocationCompleted,
    InvocationFailed,
    InvocationQueued,
    ReplicaFailed,
    ReplicaPreparing,
    ReplicaReady,
    ReplicaStopped,
    WorkerDraining,
    WorkerHeartbeat,
    WorkerJoined,
    WorkerLeft,
    decode,
    encode,
)
from jetfleet.streams import FLEET
from models.serving import lives
from stack import all_joined, fleet_says, started
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0


async def fleet_types(client: Client, *kinds: type) -> list[type]:
    return [type(r.event) async for r in client.events(FLEET) if isinstance(r.event, kinds)]


# -- joining


async def test_a_worker_says_what_its_machine_has(client, conductor, settings):
    labels = {"zone": "a"}
    async with working(settings, labels=labels, owner="ada", trusted=True, price_per_hour=1.5):
        event = (await fleet_says(client, WorkerJoined, worker="w1")).event
    machine = event.data.machine
    assert machine.cpu_count >= 1
    assert machine.memory_mib > 100
    assert machine.hostname
    data = event.data
    assert (data.labels, data.owner, data.trusted, data.price_per_hour) == (
        labels,
        "ada",
        True,
        1.5,
    )
    assert data.public_key.startswith("U")


async def test_a_worker_heartbeats_with_what_it_does(client, conductor, settings):
    beats: asyncio.Queue[WorkerHeartbeat] = asyncio.Queue()
    await client.connection.subscribe(
        subjects.telemetry("w1"), lambda m: beats.put_nowait(decode(m.data))
    )
    await declare(client, concurrency=3)
    async with working(settings) as agent:
        await client.run("echo", 1, wait_s=WAIT)
        async with asyncio.timeout(WAIT):
            while True:
                beat = await beats.get()
                if any(load.finished and not load.running for load in beat.data.jobs):
                    break
        assert beat.data.session == agent.session
        (load,) = beat.data.jobs
        assert (load.job, load.tenant, load.finished) == ("echo", "default", 1)
        assert (load.replicas_ready, load.slots) == (1, 3)
        assert load.busy_s > 0


async def test_a_worker_that_comes_before_any_conductor_waits_for_one(client, settings):
    await declare(client)
    async with working(settings):
        await fleet_says(client, WorkerJoined, worker="w1")
        async with conducting(settings):
            assert await client.run("echo", 5, wait_s=WAIT) == 5


# -- obeying


async def test_an_assignment_is_prepared_and_ready_in_the_log(client, conductor, settings):
    await declare(client)
    async with working(settings):
        record = await fleet_says(client, ReplicaReady, worker="w1", job="echo")
        assert await fleet_types(client, ReplicaPreparing, ReplicaReady) == [
            ReplicaPreparing, ReplicaReady,
        ]  # fmt: skip
        assert record.event.data.prepare_s > 0


async def test_a_model_that_cannot_be_started_says_why(client, conductor, settings):
    await declare(client, "missing", behaves="no_such_function")
    async with working(settings):
        event = (await fleet_says(client, ReplicaFailed, job="missing")).event
        assert "no_such_function" in event.data.reason + "\n".join(event.data.log_tail)
        await declare(client)
        assert await client.run("echo", 1, wait_s=WAIT) == 1  # and it goes on serving


async def test_a_deleted_job_ends_its_processes_and_closes_its_door(client, conductor, settings):
    await declare(client, "about", behaves="about")
    async with working(settings) as agent:
        pid = (await client.run("about", None, wait_s=WAIT))["pid"]
        assert lives(pid)
        await client.delete_job("about")
        await fleet_says(client, ReplicaStopped, job="about")
        assert not lives(pid)
        assert (agent.jobs, agent.replicas) == ({}, {})
        assert list((settings.data_dir / "replicas" / "w1").iterdir()) == []


async def test_replicas_of_a_job_spread_over_workers_and_each_serves(client, conductor, settings):
    async with working(settings, "w1"), working(settings, "w2"):
        await all_joined(client, "w1", "w2")
        await declare(client, "act", behaves="act", min_replicas=2, max_replicas=2)
        handles = [await client.submit("act", "hang") for _ in range(2)]
        both = [(await started(client, handle.invocation)).data.worker for handle in handles]
        assert sorted(both) == ["w1", "w2"]
        for handle in handles:
            await client.cancel(handle.invocation)


async def test_a_changed_model_is_served_without_losing_an_invocation(client, conductor, settings):
    job = await declare(client)
    async with working(settings):
        assert await client.run("echo", "abc", wait_s=WAIT) == "abc"
        handles = [await client.submit("echo", "abc") for _ in range(50)]
        function = job.model.function.replace(":echo", ":length")
        second = job.model.model_copy(update={"version": "2", "function": function})
        await client.register_model(second)
        await client.apply_job(job.model_copy(update={"model": second}))
        outputs = [await handle.output(WAIT) for handle in handles]
        assert set(outputs) <= {"abc", 3}
        await fleet_says(client, ReplicaStopped, job="echo")
        assert await client.run("echo", "abc", wait_s=WAIT) == 3


async def test_any_number_of_assignments_at_once_is_heard(client, conductor, settings):
    """More than one request of the standing pull asks for."""
    for n in range(20):
        await declare(client, f"job-{n}", behaves="no_such_function")
    async with working(settings):

        async def all_tried() -> bool:
            records = client.events(FLEET)
            tried = {
                r.event.data.job async for r in records if isinstance(r.event, ReplicaPreparing)
            }
            return len(tried) == 20

        await until(all_tried, "every job's assignment is obeyed", 60)


# -- serving


async def test_as_many_run_at_once_as_there_are_slots_and_no_more_are_pulled(
    client, conductor, settings
):
    await declare(client, "together", behaves="together", concurrency=3)
    async with working(settings) as agent:
        handles = [await client.submit("together", 0.2) for _ in range(9)]
        most = 0

        def all_done() -> bool:
            nonlocal most
            held = (
                sum(r.running for r in job.replicas) + job.waiting for job in agent.jobs.values()
            )
            most = max(most, *held, 0)
            return all(handle.waiter.event for handle in handles)

        await until(all_done, "all are done")
        assert 2 <= most <= 3
        assert all(isinstance(h.waiter.event, InvocationCompleted) for h in handles)


async def test_a_call_whose_model_is_stopped_for_another_loses_no_attempt(
    client, conductor, settings
):
    await declare(client, "together", behaves="together", concurrency=2, retry_limit=0)
    async with working(settings):
        healthy = await client.submit("together", 1.0)
        hanging = await client.submit("together", 60, timeout_s=0.3)
        assert (await hanging.outcome(WAIT)).data.error.code == "timeout"
        outcome = await healthy.outcome(WAIT)
        assert isinstance(outcome, InvocationCompleted), outcome
        assert outcome.data.attempt == 2


async def test_a_model_that_dies_is_started_again_and_the_next_call_works(
    client, conductor, settings
):
    await declare(client, "act", behaves="act", retry_limit=0)
    async with working(settings):
        outcome = await (await client.submit("act", "os._exit")).outcome(WAIT)
        assert isinstance(outcome, InvocationFailed)
        assert outcome.data.error.code in ("model_exited", "attempts_exhausted")
        assert "last words" in outcome.data.error.detail
        assert await client.run("act", "fine", wait_s=WAIT) == "fine"
        again = await fleet_says(client, ReplicaReady, job="act", restarts=1)
        assert again.event.data.prepare_s > 0


async def test_a_call_that_comes_while_the_model_is_ended_waits_for_it_and_loses_no_attempt(
    client, conductor, settings
):
    await declare(client, "together", behaves="together", concurrency=3, retry_limit=0)
    async with working(settings):
        for _ in range(3):
            hanging = await client.submit("together", 60, timeout_s=0.2)
            assert (await hanging.outcome(WAIT)).data.error.code == "timeout"
            outcome = await (await client.submit("together", 0)).outcome(WAIT)
            assert isinstance(outcome, InvocationCompleted), outcome
            assert outcome.data.attempt == 1
        assert await fleet_types(client, ReplicaFailed) == []


async def test_an_agent_that_was_told_to_go_leaves_assignments_to_its_successor(
    client, conductor, settings
):
    async with working(settings) as agent:
        await fleet_says(client, WorkerJoined, worker="w1")
        agent.stop.set()
        await fleet_says(client, WorkerLeft, worker="w1")
        await declare(client)
        async with working(settings):
            assert await client.run("echo", 1, wait_s=WAIT) == 1


async def test_what_breaks_in_the_agent_is_told_as_a_failed_replica(
    client, conductor, settings, monkeypatch
):
    async def broken(*_: Any, **__: Any) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("jetfleet_agent.replicas.Replica.start", broken)
    await declare(client)
    async with working(settings):
        failed = await fleet_says(client, ReplicaFailed, worker="w1", job="echo")
        assert "KeyError: 'a defect'" in failed.event.data.reason


async def test_what_runs_longer_than_the_lease_is_not_given_to_another(client, conductor, settings):
    await declare(client, "together", behaves="together", ack_wait_s=1)
    async with working(settings, "w1"), working(settings, "w2"):
        outcome = await (await client.submit("together", 2.5)).outcome(WAIT)
        assert isinstance(outcome, InvocationCompleted)
        assert outcome.data.attempt == 1


async def test_a_message_that_is_no_invocation_is_set_aside_and_blocks_nobody(
    client, conductor, settings
):
    await declare(client)
    shard = subjects.shard_of("echo", settings.shards)
    async with working(settings):
        subject = subjects.queued(shard, "default", "echo")
        foreign = encode(queued("i1", of="other"))
        for body in (b"not an event", foreign, encode(enabled("echo"))):
            await client.connection.store(subject, body)
        assert await client.run("echo", 1, wait_s=WAIT) == 1
        await queue_holds(client, 0)


async def test_within_a_job_first_come_is_first_served(client, conductor, settings):
    await declare(client)
    handles = [await client.submit("echo", n) for n in range(100)]
    async with working(settings):
        await asyncio.gather(*(handle.outcome(WAIT) for handle in handles))
    events = [r.event async for r in client.events()]
    asked = [e.data.invocation for e in events if isinstance(e, InvocationQueued)]
    done = [e.data.invocation for e in events if isinstance(e, InvocationCompleted)]
    assert done == asked == [handle.invocation for handle in handles]


# -- leaving


async def test_a_draining_worker_finishes_what_it_has_and_takes_nothing_new(
    client, conductor, settings
):
    await declare(client, "together", behaves="together")
    async with working(settings) as agent:
        running = await client.submit("together", 1.0)
        await started(client, running.invocation)
        waiting = await client.submit("together", 0.01)
        agent.stop.set()
        assert isinstance(await running.outcome(WAIT), InvocationCompleted)
        await fleet_says(client, WorkerLeft, worker="w1")
    assert await fleet_types(client, WorkerDraining, WorkerLeft) == [WorkerDraining, WorkerLeft]
    with pytest.raises(OutcomePending):
        await waiting.outcome(0.2)
    async with working(settings, "w2"):
        assert isinstance(await waiting.outcome(WAIT), InvocationCompleted)


async def test_a_worker_that_leaves_has_no_process_and_no_file_left(client, conductor, settings):
    await declare(client, "about", behaves="about")
    async with working(settings):
        pid = (await client.run("about", None, wait_s=WAIT))["pid"]
    assert not lives(pid)
    assert list((settings.data_dir / "replicas" / "w1").iterdir()) == []


async def test_a_worker_told_that_it_was_lost_ends_its_replicas_and_joins_anew(
    client, conductor, settings
):
    await declare(client)
    async with working(settings) as agent:
        first = (await fleet_says(client, ReplicaReady, job="echo")).event.data.replica
        async with connected(settings) as owner:
            nudge = json.dumps({"rejoin": agent.joined_seq}).encode()
            await owner.publish(subjects.command("w1"), nudge)
            await fleet_says(client, ReplicaStopped, replica=first)
        await until(lambda: agent.replicas and first not in agent.replicas, "it is assigned anew")
        assert await client.run("echo", 1, wait_s=WAIT) == 1


async def test_being_told_that_an_earlier_joining_was_lost_ends_nothing(
    client, conductor, settings
):
    """A conductor that starts folds old losses while heartbeats of today come in."""
    await declare(client)
    async with working(settings) as agent:
        await fleet_says(client, ReplicaReady, job="echo")
        nudge = json.dumps({"rejoin": agent.joined_seq - 1}).encode()
        agent._on_command(SimpleNamespace(data=nudge))
        assert not agent._rejoining


@pytest.mark.parametrize("noise", [b"", b"not json", b"[]", b"1", b"null", b'{"cancel":7}', b"{}"])
async def test_noise_on_its_command_subject_disturbs_nobody(client, conductor, settings, noise):
    await declare(client)
    async with working(settings):
        await client.connection.publish(subjects.command("w1"), noise)
        await client.connection.flush()
        assert await client.run("echo", 1, wait_s=WAIT) == 1


async def test_after_a_restart_of_the_broker_it_serves_on(broker, client, conductor, settings):
    await declare(client)
    async with working(settings) as agent:
        assert await client.run("echo", 1, wait_s=WAIT) == 1
        broker.kill()
        await broker.start()
        await until(lambda: client.connected and agent.connection.connected, "connected again")
        handle: Any = await until(lambda: _submitted(client), "it is accepted")
        assert await handle.output(WAIT) == 2
        restarts = [r async for r in client.events(FLEET) if isinstance(r.event, ReplicaReady)]
        assert len(restarts) == 1  # the replica never knew


async def _submitted(client: Client) -> Any:
    from jetfleet.errors import Unavailable

    try:
        return await client.submit("echo", 2, idempotency_key="once")
    except Unavailable:
        return None  # JetStream is not up yet
