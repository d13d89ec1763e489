"""Agents that are killed, stopped and told to go, in the middle of work."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from story import all_ended, told

from jetfleet.client import Client, Handle
from jetfleet.events import (
    InvocationCompleted,
    InvocationStarted,
    ReplicaReady,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
)
from jetfleet.streams import FLEET
from stack import all_joined, fleet_says, open_job, position, stack, started
from waiting import until

ACK_WAIT_S = 2.0


async def begun(client: Client, handle: Handle, file: Path) -> InvocationStarted:
    """Return when a model is in the middle of it (it makes ``file`` first)."""
    said = await started(client, handle.invocation)
    await until(file.exists, "the model began")
    return said


@pytest.mark.anyio
async def test_work_of_a_killed_agent_is_done_by_another_within_ack_wait(tmp_path: Path) -> None:
    file = tmp_path / "begun"
    async with stack(tmp_path / "stack", agents=("a", "b")) as fleet:
        client = await fleet.client()
        await all_joined(client, "a", "b")
        await open_job(
            client, "job", "faulty.py:first_hangs", min_replicas=2, ack_wait_s=ACK_WAIT_S
        )
        handle = await client.submit("job", str(file))
        first = await begun(client, handle, file)
        victim = next(p for p in fleet.programs if p.name == f"agent-{first.data.worker}")
        killed = time.monotonic()
        victim.kill()
        outcome = await handle.outcome(wait_s=20)
        took = time.monotonic() - killed
        story = await all_ended(client, [handle.invocation])
    assert isinstance(outcome, InvocationCompleted)
    assert (outcome.data.output, outcome.data.attempt) == ("again", 2)
    assert outcome.data.worker != first.data.worker
    assert took < ACK_WAIT_S + 2
    assert len(story.outcomes[handle.invocation]) == 1


@pytest.mark.anyio
async def test_work_of_a_killed_agent_is_done_once_it_is_started_again(tmp_path: Path) -> None:
    file = tmp_path / "begun"
    async with stack(tmp_path / "stack") as fleet:
        client = await fleet.client()
        await open_job(client, "job", "faulty.py:first_hangs", ack_wait_s=ACK_WAIT_S)
        handle = await client.submit("job", str(file))
        await begun(client, handle, file)
        seen = await position(client, FLEET)
        killed = time.monotonic()
        fleet.programs[-1].kill()
        fleet.agent("a")
        await fleet_says(client, ReplicaReady, start=seen + 1, job="job")
        ready = time.monotonic()
        outcome = await handle.outcome(wait_s=20)
        took = time.monotonic() - max(ready, killed + ACK_WAIT_S)
        story = await all_ended(client, [handle.invocation])
    assert isinstance(outcome, InvocationCompleted)
    assert (outcome.data.output, outcome.data.attempt) == ("again", 2)
    # The queue gives it out again ack_wait after the kill; by then the replica may still start.
    assert took < 2
    assert len(story.outcomes[handle.invocation]) == 1


@pytest.mark.anyio
async def test_a_stopped_agent_comes_back_to_one_outcome_and_serves_again(tmp_path: Path) -> None:
    file = tmp_path / "begun"
    async with stack(tmp_path / "stack", agents=("a", "b")) as fleet:
        client = await fleet.client()
        await all_joined(client, "a", "b")
        await open_job(
            client, "job", "faulty.py:first_is_late", min_replicas=2, ack_wait_s=ACK_WAIT_S
        )
        # Done while its agent is stopped, so that the late outcome waits to be published.
        handle = await client.submit("job", {"path": str(file), "seconds": 1})
        stopped = (await begun(client, handle, file)).data.worker
        victim = next(p for p in fleet.programs if p.name == f"agent-{stopped}")
        victim.signal(signal.SIGSTOP)
        outcome = await handle.outcome(wait_s=20)
        lost = await fleet_says(client, WorkerLost, worker=stopped)
        victim.signal(signal.SIGCONT)
        joined = await fleet_says(client, WorkerJoined, start=lost.seq, worker=stopped)
        # It ends its old replicas before it joins anew: what was late has been published by now.
        story = await all_ended(client, [handle.invocation])
        # The other worker holds both replicas of the first job, so the next job is this one's.
        await open_job(client, "next", "faulty.py:echo")
        again = await (await client.submit("next", 1)).outcome(wait_s=20)
        late = await told(client)
    assert isinstance(outcome, InvocationCompleted)
    assert (outcome.data.output, outcome.data.attempt) == ("again", 2)
    assert outcome.data.worker != stopped
    assert story.counting(handle.invocation).id == outcome.id
    assert [event.id for event in late.outcomes[handle.invocation]] == [outcome.id]
    assert joined.seq > lost.seq
    assert again.data.worker == stopped


@pytest.mark.anyio
async def test_sigterm_lets_a_running_task_end_where_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "release"
    async with stack(tmp_path / "stack") as fleet:
        client = await fleet.client()
        await open_job(client, "job", "faulty.py:until_file")
        running = await client.submit("job", str(file))
        await begun(client, running, tmp_path / "release.begun")
        waiting = await client.submit("job", str(file))
        seen = await position(client, FLEET)
        agent = fleet.programs[-1]
        agent.signal(signal.SIGTERM)
        await until(lambda: b"draining" in agent.log.read_bytes(), "it drains")
        file.touch()
        outcome = await running.outcome(wait_s=20)
        status = await agent.ended()
        await fleet_says(client, WorkerLeft, start=seen + 1, worker="a")
        story = await told(client)
        fleet.agent("c")
        rest = await waiting.outcome(wait_s=20)
    assert isinstance(outcome, InvocationCompleted)
    assert (outcome.data.worker, outcome.data.attempt) == ("a", 1)
    assert status == 0
    assert waiting.invocation not in story.outcomes, "it took more while draining"
    assert rest.data.worker == "c"
