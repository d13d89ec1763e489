"""``explain`` on prepared situations, with a broker, conductors and workers: it names the cause."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from inprocess import conducting, declare, queue_holds, working
from jetfleet import causes
from jetfleet.client import Client
from jetfleet.events import JobScaled, ReplicaReady, WorkerLeft
from jetfleet.evidence import explain
from jetfleet.explain import Explanation
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies import placement
from jetfleet.scaling_specs import LagScaling
from jetfleet.specs import Resources
from stack import all_joined, fleet_says, open_job, stack, started
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0
UNTIL_FILE = "faulty.py:until_file"
DIES = """
import os, time
from pathlib import Path

died, go = Path(__file__).with_name("died"), Path(__file__).with_name("go")
while died.exists() and not go.exists():
    time.sleep(0.01)

def run(value):
    if died.exists():
        return "again"
    time.sleep(0.1)
    died.touch()
    os._exit(3)
"""


async def because(client: Client, name: str, code: str, **more: Any) -> Explanation:
    """The explanation, once it names this cause; what it named instead, where it does not."""
    named: list[str] = []

    async def found() -> Explanation | None:
        answer = await explain(client, name, **more)
        named.append(f"{answer.cause.code}: {answer.cause.text}")
        return answer if answer.cause.code == code else None

    try:
        return await until(found, code)
    except AssertionError as error:
        raise AssertionError(f"{code}; but {dict.fromkeys(named)}") from error


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conductor that has not decided for half a second is none."""
    monkeypatch.setattr(causes, "CONDUCTOR_S", timedelta(seconds=0.5))


# -- nobody can


async def test_no_worker_has_joined(client, conductor):
    await declare(client)
    handle = await client.submit("echo", 1)
    found = await because(client, handle.invocation, "no_worker")
    assert found.cause.text == "no worker has joined; `jetfleet agent` starts one"
    assert [wait.code for wait in found.waits] == ["no_worker"]


async def test_no_worker_fits(client, fleet):
    await open_job(client, "huge", UNTIL_FILE, ready=False, resources=Resources(memory_mib=2**30))
    handle = await client.submit("huge", 1)
    found = await because(client, handle.invocation, "no_fit")
    assert "its model needs memory_mib 1073741824" in found.cause.text
    [line] = found.cause.details
    assert line.startswith("w1: ") and line.endswith(" MiB free, 1073741824 needed")
    worker = await because(client, "w1", "idle")
    assert worker.cause.details == (line.replace("w1", "huge"),)


async def test_the_workers_it_is_assigned_to_are_not_there(client, fleet):
    await declare(client, assignment="manual", workers=("w8", "w9"))
    handle = await client.submit("echo", 1)
    found = await because(client, handle.invocation, "workers_away")
    assert "w8 (never joined), w9 (never joined)" in found.cause.text


async def test_the_job_wants_no_replicas(client, fleet):
    await declare(client, min_replicas=0, max_replicas=1)
    handle = await client.submit("echo", 1)
    await because(client, handle.invocation, "no_replicas_wanted")


# -- somebody will


async def test_a_replica_is_being_prepared(client, fleet):
    await open_job(client, "slow", "import_slow.py:echo", ready=False)
    handle = await client.submit("slow", 1)
    found = await because(client, handle.invocation, "preparing")
    assert found.cause.text == "a replica is being prepared on w1 (starting)"
    assert found.cause.since is not None
    [decision] = [e for e in found.timeline if e.type == "jetfleet.replica.assigned"]
    assert decision.why is not None
    assert (decision.why.policy, decision.why.candidates[0].worker) == (placement.NAME, "w1")
    assert (await because(client, "slow", "preparing")).state == "enabled"
    worker = await because(client, "w1", "serving")
    assert worker.cause.details[0].startswith("slow: preparing (starting) for ")


async def test_its_model_fails_and_that_is_named(client, fleet):
    await open_job(client, "bad", "import_fails.py:echo", ready=False)
    handle = await client.submit("bad", 1)
    found = await because(client, handle.invocation, "backing_off")
    assert "no weights here" in found.cause.text
    assert "failures there, waiting" in found.cause.text


async def test_a_job_at_zero_is_woken_and_without_a_conductor_it_is_not(
    client, settings, monkeypatch
):
    await declare(client, min_replicas=0, max_replicas=1, scaling=LagScaling())
    async with working(settings):
        async with conducting(settings):
            await fleet_says(client, JobScaled, job="echo", desired=0)
            await because(client, "echo", "idle")
        handle = await client.submit("echo", 1)
        await queue_holds(client, 1)
        assert (await explain(client, handle.invocation)).cause.code == "waking"
        monkeypatch.setattr(causes, "CONDUCTOR_S", timedelta(seconds=0.5))
        await because(client, handle.invocation, "no_conductor")
        await because(client, "echo", "no_conductor")
        async with conducting(settings):
            assert await handle.output(WAIT) == 1
        ended = await because(client, handle.invocation, "completed")
    codes = [wait.code for wait in ended.waits]
    assert codes[0] == "waking"
    assert "preparing" in codes
    assert [e.why.policy for e in ended.timeline if e.why is not None] == [
        "lag", "lag", placement.NAME,
    ]  # fmt: skip


async def test_there_is_room_and_no_conductor(client, settings, impatient):
    await declare(client)
    async with working(settings):
        await all_joined(client, "w1")
        handle = await client.submit("echo", 1)
        found = await because(client, handle.invocation, "no_conductor")
        assert found.cause.text == "a worker has room and nobody decides: is a conductor running?"


async def test_a_broker_began_anew_and_no_conductor_made_what_workers_pull_through(
    broker, client, settings, tmp_path
):
    async with working(settings):
        async with conducting(settings):
            await open_job(client, "one", UNTIL_FILE, ack_wait_s=30)
            first, second = [await client.submit("one", str(tmp_path / "go")) for _ in range(2)]
            await started(client, first.invocation)
        broker.kill()
        await broker.start()
        await until(lambda: client.connected, "the client is back")
        found = await because(client, second.invocation, "no_conductor")
        assert found.cause == causes.NOTHING_TO_PULL
        assert (await explain(client, "one")).cause.text == found.cause.text
        async with conducting(settings):
            await because(client, second.invocation, "in_queue")
            (tmp_path / "go").touch()
            assert await second.output(WAIT) == "released"


async def test_its_model_ended_under_it_and_is_being_started_again(client, fleet, tmp_path):
    source = tmp_path / "dies.py"
    source.write_text(DIES)
    await open_job(client, "dies", str(source) + ":run", ack_wait_s=30)
    handle = await client.submit("dies", 1)
    found = await because(client, handle.invocation, "restarting")
    assert found.cause.text == "the model ended under attempt 1 and is being started again on w1"
    (tmp_path / "go").touch()
    assert await handle.output(WAIT) == "again"


# -- somebody does


async def test_what_was_handed_back_waits_for_a_slot(client, conductor, settings, tmp_path):
    apart = PlacementSpec(apart="workers")
    async with working(settings, "w1") as leaving, working(settings, "w2"):
        await all_joined(client, "w1", "w2")
        await open_job(client, "two", UNTIL_FILE, min_replicas=2, ack_wait_s=30, placement=apart)
        handles = [await client.submit("two", str(tmp_path / "go")) for _ in range(2)]
        runs = [(await started(client, each.invocation)).data for each in handles]
        leaving.leave("repairs", 0)
        await fleet_says(client, WorkerLeft, worker="w1")
        [back] = [run.invocation for run in runs if run.worker == "w1"]
        found = await because(client, back, "in_queue")
        assert found.cause.text.startswith("attempt 1 was lost: ")
        assert found.cause.text.endswith(
            "attempt 2 waits: it is 1 of 1 in the queue of two; 1 of 1 slots are busy on w2"
        )
        (tmp_path / "go").touch()
        for handle in handles:
            assert await handle.output(WAIT) == "released"


async def test_its_place_in_the_queue(client, fleet, tmp_path):
    await open_job(client, "one", UNTIL_FILE)
    handles = [await client.submit("one", str(tmp_path / "go")) for _ in range(4)]
    await started(client, handles[0].invocation)
    await queue_holds(client, 4, "one")
    found = await because(client, handles[2].invocation, "in_queue")
    assert found.cause.text == "it is 2 of 3 in the queue of one; 1 of 1 slots are busy on w1"
    assert (await explain(client, handles[0].invocation)).cause.text == "attempt 1 runs on w1"
    job = await because(client, "one", "serving")
    assert job.cause.details == ("3 waiting, 1 running",)
    (tmp_path / "go").touch()
    for handle in handles:
        assert await handle.output(WAIT) == "released"
    assert (await explain(client, handles[2].invocation)).cause.code == "completed"


async def test_a_disabled_job_and_a_deleted_one(client, fleet):
    await declare(client)
    await fleet_says(client, ReplicaReady, job="echo")
    await client.disable_job("echo", "repairs")
    found = await because(client, "echo", "job_disabled")
    assert found.state == "disabled"
    assert found.cause.text == "it takes no new invocations: the job was disabled: repairs"
    await client.delete_job("echo")
    assert (await because(client, "echo", "job_deleted")).state == "deleted"


async def test_an_attempt_was_lost_with_its_worker(tmp_path):
    async with stack(tmp_path / "stack", agents=("a",)) as fleet:
        client = await fleet.client()
        await open_job(client, "once", "faulty.py:first_hangs", ack_wait_s=6)
        handle = await client.submit("once", str(tmp_path / "begun"))
        await started(client, handle.invocation)
        fleet.programs[-1].kill()
        silent = await because(client, handle.invocation, "redelivery")
        assert silent.cause.text.startswith("attempt 1 was lost: a was lost, silent for ")
        worker = await because(client, "a", "lost")
        assert worker.state == "lost"
        alone = await because(client, handle.invocation, "no_worker")
        assert "attempt 2 waits: no worker is at work" in alone.cause.text
        fleet.agent("b")
        assert await handle.output(WAIT) == "again"
        ended = await because(client, handle.invocation, "completed")
        assert ended.cause.text.startswith("completed on b in ")
        assert ended.cause.text.endswith("2 attempts")
        assert any("a was lost" in each.text for each in ended.timeline)
