"""The fleet as a whole: half of it lost at once, a conductor that was stopped, jobs at zero."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest
from ledger import assert_never_more, once, read
from story import all_ended

from jetfleet.events import (
    InvocationCompleted,
    JobScaled,
    ReplicaReady,
    ReplicaStopped,
    WorkerLost,
)
from jetfleet.scaling_specs import LagScaling
from jetfleet.streams import FLEET
from stack import all_joined, fleet_says, open_job, position, stack
from waiting import WITHIN_S, until

CALLS = 300
CALL_S = 0.3
# Three seconds of silence, a look, and the start of the replicas; the queue gives out again what
# was running two seconds after the kill. Twice as much, because machines can be busy.
REPLACED_S = 15.0
ENDED_S = 30.0


@pytest.mark.anyio
async def test_half_of_a_fleet_is_killed_at_once_and_all_work_ends_once(tmp_path: Path) -> None:
    names = tuple("abcdef")
    dead, alive = names[:3], names[3:]
    async with stack(tmp_path / "stack", agents=names) as fleet:
        client = await fleet.client()
        await all_joined(client, *names)
        await open_job(client, "job", "faulty.py:naps", min_replicas=6, concurrency=4)
        before = await read(client)
        handles = [await client.submit("job", CALL_S) for _ in range(CALLS)]
        killed = time.monotonic()
        for program in [p for p in fleet.programs if p.name.removeprefix("agent-") in dead]:
            program.kill()
        after = await once(
            client,
            lambda ledger: len(ledger.lost) == 3 and len(ledger.serving("job", "ready")) == 6,
            "the replicas of the dead are placed and ready elsewhere",
            WITHIN_S,
        )
        replaced_s = time.monotonic() - killed
        story = await all_ended(client, [handle.invocation for handle in handles])
        ended_s = time.monotonic() - killed
        ledger = await read(client)
    assert {replica.worker for replica in before.serving("job", "ready")} == set(names)
    assert {replica.worker for replica in after.serving("job")} == set(alive)
    assert sorted(ledger.lost) == sorted(dead)
    # One of the dead may get a replica of another, while it is silent and not yet declared lost.
    assert 6 + 3 <= len(ledger.assigned) <= 6 + 3 + 2
    assert_never_more(ledger, {"job": 6})
    assert all(len(each) == 1 for each in story.outcomes.values())
    outcomes = [story.counting(handle.invocation) for handle in handles]
    assert all(isinstance(outcome, InvocationCompleted) for outcome in outcomes)
    assert any(outcome.data.attempt > 1 for outcome in outcomes)  # something was running there
    print(f"replaced after {replaced_s:.1f} s, all ended after {ended_s:.1f} s")
    assert replaced_s < REPLACED_S
    assert ended_s < ENDED_S


@pytest.mark.anyio
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "pause_s",
    [pytest.param(8, id="it keeps its connection"), pytest.param(60, id="the broker gives it up")],
)
async def test_a_conductor_that_was_stopped_takes_no_decision_twice_and_declares_nobody_lost(
    tmp_path: Path, pause_s: float
) -> None:
    async with stack(tmp_path / "stack", agents=("a", "b", "c")) as fleet:
        client = await fleet.client()
        await all_joined(client, "a", "b", "c")
        sleeper, other = fleet.programs[0], fleet.conductor()
        await until(lambda: other.log.read_bytes().count(b"folded: ") == 2, "both conduct")
        await open_job(client, "job", "faulty.py:echo", min_replicas=2)

        sleeper.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        victim = (await read(client)).serving("job")[0].worker
        next(p for p in fleet.programs if p.name == f"agent-{victim}").kill()
        lost = await fleet_says(client, WorkerLost, worker=victim)
        await fleet_says(client, ReplicaReady, start=lost.seq, job="job")
        await open_job(client, "made", "faulty.py:echo")
        waits = await open_job(
            client, "waits", "faulty.py:echo", ready=False, assignment="manual", workers=("nobody",)
        )
        waiting = await client.submit("waits", 1)
        # It is the length of this that is tested.
        await asyncio.sleep(stopped + pause_s - time.monotonic())
        sleeper.signal(signal.SIGCONT)

        await open_job(client, "with-both", "faulty.py:echo")
        assert await client.run("with-both", 2, wait_s=WITHIN_S) == 2
        other.kill()
        await open_job(client, "alone", "faulty.py:echo")
        assert await client.run("alone", 3, wait_s=WITHIN_S) == 3
        await client.apply_job(waits.model_copy(update={"assignment": "auto", "workers": ()}))
        output = await waiting.output(wait_s=WITHIN_S)
        await all_ended(client, [waiting.invocation])
        ledger = await read(client)
    assert output == 1  # it was not ended for a job that one of them had not heard of
    assert ledger.lost == [victim]
    wanted = {"job": 2, "made": 1, "waits": 1, "with-both": 1, "alone": 1}
    assert_never_more(ledger, wanted)
    assert {job: len(ledger.serving(job, "ready")) for job in wanted} == wanted
    assert len(ledger.assigned) == sum(wanted.values()) + 1  # the one of the dead worker


@pytest.mark.anyio
async def test_a_job_is_served_from_zero_and_goes_back_and_idle_ones_cost_no_replica(
    tmp_path: Path,
) -> None:
    idle = [f"idle{number}" for number in range(20)]
    async with stack(tmp_path / "stack") as fleet:
        client, gateway = await fleet.client(), await fleet.gateway()
        await gateway.ready()
        await all_joined(client, "a")
        for name in (*idle, "job"):
            await open_job(
                client, name, "faulty.py:echo", ready=False,
                min_replicas=0, max_replicas=2, scaling=LagScaling(down_window_s=1),
            )  # fmt: skip
        for name in (*idle, "job"):
            await fleet_says(client, JobScaled, job=name, desired=0)
        for value in (1, 2):
            start = await position(client, FLEET) + 1
            accepted = await gateway.run("job", value)
            assert accepted.status_code == 202, accepted.text
            story = await all_ended(client, [accepted.json()["id"]])
            outcome = story.counting(accepted.json()["id"])
            assert isinstance(outcome, InvocationCompleted)
            assert outcome.data.output == value
            await fleet_says(client, ReplicaStopped, start=start, job="job")
        ledger = await read(client)
    assert ledger.assigned == ["job", "job"]
    assert ledger.state.replicas == {}
    assert {job: scaled[0] for (_, job), scaled in ledger.state.scaled.items()} == dict.fromkeys(
        (*idle, "job"), 0
    )
