"""An agent whose surroundings fail it: a full disk, a full log, models that end badly."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import settings_for
from inprocess import conducting, declare, working
from jetfleet import blobs, secrets, subjects
from jetfleet.connection import Connection
from jetfleet.errors import BrokerUnavailable, LogFull
from jetfleet.events import (
    InvocationCancelled,
    InvocationCompleted,
    ReplicaFailed,
    ReplicaReady,
    WorkerDraining,
    WorkerJoined,
)
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet_agent.links import JobLink
from joining_made import joined, token_of
from stack import fleet_says, started
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0


async def test_a_replica_that_cannot_be_noted_down_has_failed(
    client, conductor, settings, monkeypatch
):
    full = True

    def remember(*_: object) -> None:
        if full:
            raise OSError("no space left on device")

    monkeypatch.setattr("jetfleet_agent.adoption.remember", remember)
    await declare(client)
    async with working(settings) as agent:
        event = (await fleet_says(client, ReplicaFailed, job="echo")).event
        assert "no space left" in event.data.reason
        await until(lambda: event.data.replica not in agent.replicas, "nothing of it is left")
        full = False
        assert await client.run("echo", 1, wait_s=WAIT) == 1


async def test_what_a_full_log_refuses_is_said_once_it_has_room(
    client, conductor, settings, monkeypatch
):
    store, refused = Connection.store, []

    async def full_once(self: Connection, subject: str, *more: Any, **named: Any) -> Any:
        if subject == subjects.fleet("w1", "ready") and not refused:
            refused.append(subject)
            raise LogFull
        return await store(self, subject, *more, **named)

    monkeypatch.setattr(Connection, "store", full_once)
    monkeypatch.setattr("jetfleet_agent.agent.FULL_RETRY_S", 0.05)
    await declare(client)
    async with working(settings):
        await fleet_says(client, ReplicaReady, job="echo")
    assert refused


async def test_a_model_that_talked_much_before_it_failed_still_fails(client, conductor, settings):
    say = r"print('\n'.join(['\x01' * 4096] * 60), flush=True); raise SystemExit(3)"
    model = ModelSpec(name="noisy", contract="openai", command=(sys.executable, "-c", say))
    await client.register_model(model)
    await client.apply_job(JobSpec(name="noisy", model=model))
    async with working(settings):
        data = (await fleet_says(client, ReplicaFailed, job="noisy")).event.data
    assert 20 < len(data.log_tail) < 50


async def test_a_model_that_ends_again_and_again_leaves_nothing(
    client, conductor, settings, monkeypatch
):
    monkeypatch.setattr("jetfleet_agent.replicas.RESTARTS", 0)
    await declare(client, "act", behaves="act", retry_limit=0)
    async with working(settings) as agent:
        first = (await fleet_says(client, ReplicaReady, job="act")).event.data.replica
        await (await client.submit("act", "os._exit")).outcome(WAIT)
        await fleet_says(client, ReplicaFailed, replica=first)
        await until(lambda: first not in agent.replicas, "it is forgotten")


async def test_an_input_that_cannot_be_read_for_a_moment_costs_no_attempt(
    client, conductor, settings, monkeypatch
):
    read, refused = blobs.read, []

    async def away(*args: Any) -> bytes:
        if len(refused) < 5:
            refused.append(args)
            raise BrokerUnavailable("away")
        return await read(*args)

    monkeypatch.setattr("jetfleet_agent.attempt.blobs.read", away)
    await declare(client, retry_limit=0)
    big = "x" * (settings.inline_limit + 1)
    async with working(settings):
        outcome = await (await client.submit("echo", big)).outcome(WAIT)
    assert isinstance(outcome, InvocationCompleted)
    assert outcome.data.attempt == 1
    assert len(refused) == 5


async def test_an_input_that_stays_unreadable_is_handed_back_and_cancelled_at_once(
    client, conductor, settings, monkeypatch
):
    asked = []

    async def away(*args: Any) -> bytes:
        asked.append(args)
        raise BrokerUnavailable("away")

    monkeypatch.setattr("jetfleet_agent.attempt.blobs.read", away)
    monkeypatch.setattr("jetfleet_agent.attempt.INPUT_WAIT_S", 0.3)
    await declare(client, retry_limit=0)
    await declare(client, "other")
    big = "x" * (settings.inline_limit + 1)
    async with working(settings):
        outcome = await (await client.submit("echo", big)).outcome(WAIT)
        assert outcome.data.error.code == "attempts_exhausted"
        assert len(asked) > 1
        monkeypatch.setattr("jetfleet_agent.attempt.INPUT_WAIT_S", WAIT)
        before = len(asked)
        handle = await client.submit("other", big)
        await until(lambda: len(asked) > before, "it is waited for")
        await handle.cancel("not needed")
        assert isinstance(await handle.outcome(WAIT), InvocationCancelled)


async def test_a_job_whose_door_is_not_open_yet_stays_shut_while_the_worker_drains(
    client, conductor, settings, monkeypatch
):
    opening, told, go_on = JobLink.open, asyncio.Event(), asyncio.Event()

    async def slowly(base: Connection, key: Any, worker: str, tenant: str, job: str) -> JobLink:
        if job == "second":
            told.set()
            await go_on.wait()
        return await opening(base, key, worker, tenant, job)

    monkeypatch.setattr(JobLink, "open", slowly)
    await declare(client, "together", behaves="together")
    async with working(settings) as agent:
        running = await client.submit("together", 1.0)
        await started(client, running.invocation)
        await declare(client, "second")
        async with asyncio.timeout(WAIT):
            await told.wait()
        agent.leave("the test says so")
        await fleet_says(client, WorkerDraining, worker="w1")
        go_on.set()
        second = ("default", "second")
        await until(lambda: not agent.serving._beginnings or second in agent.jobs, "either way")
        assert second not in agent.jobs
        assert isinstance(await running.outcome(WAIT), InvocationCompleted)


async def test_a_full_disk_does_not_end_the_renewing(broker, client, tmp_path, monkeypatch):
    refused: list[object] = []

    def write(path: Path, text: str) -> None:
        if len(refused) < 3:
            refused.append(path)
            raise OSError("no space left on device")
        secrets.write(path, text)

    async with conducting(settings_for(broker, worker_life_s=3)):
        async with joined(broker, tmp_path, token_of(broker)) as box:
            await fleet_says(client, WorkerJoined, worker="box")
            before = box.place.credentials.read_text()
            monkeypatch.setattr("jetfleet_agent.joining.write", write)
            await until(lambda: box.place.credentials.read_text() != before, "renewed after all")
            assert len(refused) == 3
            assert not box.place.refused


async def test_a_model_that_lost_its_channel_takes_no_call_while_it_is_ended(
    client, conductor, settings, tmp_path
):
    """Its calls, and those that come meanwhile, are for the model that follows it."""
    file = tmp_path / "closer.py"
    file.write_text(
        "import os, pathlib, time\n"
        "def close_once(path):\n"
        "    if pathlib.Path(path).exists():\n"
        "        return 'served'\n"
        "    pathlib.Path(path).touch()\n"
        "    os.closerange(3, 100)\n"
        "    time.sleep(60)\n"
    )
    model = ModelSpec(name="closer", function=f"{file}:close_once")
    await client.register_model(model)
    await client.apply_job(JobSpec(name="closer", model=model))
    async with working(settings):
        mark = str(tmp_path / "closed")
        handles = [await client.submit("closer", mark) for _ in range(4)]
        outcomes = [await handle.outcome(WAIT) for handle in handles]
    assert [getattr(o.data, "output", o.data) for o in outcomes] == ["served"] * 4
    assert [o.data.attempt for o in outcomes] == [2, 1, 1, 1]
