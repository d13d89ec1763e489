"""Trials with a broker, a conductor and two agents, one of them trusted."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
from test_gateway_http import gateway

from inprocess import answering, conducting, working
from jetfleet.client import Client
from jetfleet.errors import TrialFailed
from jetfleet.events import Event, JobTried, ReplicaAssigned, ReplicaPreparing, ReplicaReady
from jetfleet.evidence import explain
from jetfleet.settings import Settings
from jetfleet.specs import JobSpec
from jetfleet.streams import FLEET
from models.serving import function
from stack import all_joined, fleet_says
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0
NO_EXAMPLE: Any = None


async def declare(
    client: Client,
    name: str,
    behaves: str = "misbehave",
    *,
    example: Any,
    version: str = "1",
    **settings: Any,
) -> JobSpec:
    """A job of this name on a model with this example; an update where it is there already."""
    spec = function(behaves, "faulty.py").model_copy(
        update={"name": name, "version": version, "example_input": example}
    )
    await client.register_model(spec)
    limits = {"ack_wait_s": 2, "timeout_s": 30, "min_replicas": 2, "max_replicas": 2}
    job = JobSpec(name=name, model=spec, **{**limits, **settings})
    await client.apply_job(job)
    return job


async def said(client: Client, kind: type[Event], job: str) -> list[Any]:
    """What the log has of this kind of a job."""
    records = [record async for record in client.events(FLEET)]
    return [r.event for r in records if isinstance(r.event, kind) and r.event.data.job == job]


async def ready_on(client: Client, job: str, *workers: str) -> None:
    for worker in workers:
        await fleet_says(client, ReplicaReady, job=job, worker=worker)


async def looked_again(conductor: Any) -> None:
    """What it does not decide leaves no event: wait for two whole looks."""
    await until(lambda at=conductor.rounds + 2: conductor.rounds >= at, "it looked twice")


@pytest.fixture
async def fleet(client: Client, settings: Settings) -> Any:
    """A conductor, a trusted worker and a general one."""
    async with (
        conducting(settings) as conductor,
        working(settings, "good", trusted=True),
        working(settings, "general"),
    ):
        await all_joined(client, "good", "general")
        yield conductor


async def test_models_are_tried_where_nothing_can_go_wrong_first(client, broker, fleet, settings):
    await declare(client, "fine", example="hello")
    await declare(client, "raises", example="raise")
    await declare(client, "exits", example="exit")
    await declare(client, "hangs", example="hang", timeout_s=1)
    await declare(client, "daring", example="raise", trial=False)
    await declare(client, "plain", example=NO_EXAMPLE)

    # Opted out, or without an example: anywhere, and nothing is tried.
    for job in ("daring", "plain"):
        await ready_on(client, job, "good", "general")
        assert await client.run(job, "served", wait_s=WAIT) == "served"
        assert not await said(client, JobTried, job)

    # What passed: on the trusted worker before the other had it, and then on both.
    await ready_on(client, "fine", "good", "general")
    [verdict] = await said(client, JobTried, "fine")
    assert (verdict.data.status, verdict.data.worker) == ("verified", "good")
    first, second = await said(client, ReplicaAssigned, "fine")
    assert (first.data.worker, first.data.trial) == ("good", True)
    assert (second.data.worker, second.data.trial) == ("general", False)
    assert first.time < verdict.time < second.time
    assert first.data.replica in [r.data.replica for r in await said(client, ReplicaReady, "fine")]
    assert await client.run("fine", "served", wait_s=WAIT) == "served"

    # What failed: the reason is told, and no general worker ever had it.
    reasons = {
        "raises": "model_error: ValueError: a trouble of mine",
        "exits": "model_exited: ",
        "hangs": "it ran longer than timeout_s (1 s)",
    }
    for job in reasons:
        await fleet_says(client, JobTried, job=job, status="failed")
    await looked_again(fleet)
    for job, reason in reasons.items():
        [verdict] = await said(client, JobTried, job)
        assert verdict.data.reason.startswith(reason)
        assert [e.data.worker for e in await said(client, ReplicaAssigned, job)] == ["good"]
        assert not await said(client, ReplicaReady, job)
        with pytest.raises(TrialFailed, match="register a new version") as refused:
            await client.submit(job, "anything")
        assert reason in str(refused.value)
    async with gateway(broker) as http:
        answer = await http.post("/v1/inference_jobs/raises/run_sync", json={"input": 1})
    assert (answer.status_code, answer.json()["code"]) == (409, "trial_failed")
    assert reasons["raises"] in answer.json()["detail"]
    assert (await explain(client, "raises")).cause.code == "trial_failed"
    async with answering(settings) as service:
        await service.connection.flush()  # the broker knows that it answers
        rows = (await client.query("ps", tenant="default")).dicts()
    assert {row["job"]: row["trial"] for row in rows} == {
        "fine": "verified", "plain": "unverified", "daring": "unverified", "raises": "failed",
        "exits": "failed", "hangs": "failed",
    }  # fmt: skip

    # What to do about it, done.
    await declare(client, "raises", example="hello", version="2")
    await ready_on(client, "raises", "good", "general")
    assert await client.run("raises", "served", wait_s=WAIT) == "served"


async def test_a_version_that_fails_leaves_the_older_one_serving(client, fleet):
    await declare(client, "echo", example="hello")
    await ready_on(client, "echo", "good", "general")
    await declare(client, "echo", example="raise", version="2")
    told = await fleet_says(client, JobTried, job="echo", status="failed")
    assert told.event.data.keeps == "echo:1"
    await looked_again(fleet)
    assert await client.run("echo", "served", wait_s=WAIT) == "served"
    models = {r.spec.model.version for r in fleet.fleet.replicas.values()}
    assert models == {"1"}
    assert len(fleet.fleet.replicas) == 2
    found = await explain(client, "echo")
    assert any("echo:2 failed its trial on good" in line for line in found.cause.details)


async def test_a_trial_waits_for_a_trusted_worker_and_survives_its_end(client, settings, tmp_path):
    go = tmp_path / "go"
    async with conducting(settings), working(settings, "general"), AsyncExitStack() as trusted:
        await all_joined(client, "general")
        await declare(client, "slow", "until_file", example=str(go), min_replicas=1, max_replicas=1)
        handle = await client.submit("slow", str(go))

        async def untrusted() -> Any:
            return (await explain(client, handle.invocation)).cause.code == "no_trusted_worker"

        await until(untrusted, "the cause is told")
        async with working(settings, "good", trusted=True):
            stage = "trying its example input"
            await fleet_says(client, ReplicaPreparing, job="slow", stage=stage)
            # and it leaves in the middle of it
        assert not await said(client, JobTried, "slow")
        await trusted.enter_async_context(working(settings, "better", trusted=True))
        await fleet_says(client, ReplicaPreparing, job="slow", worker="better", stage=stage)
        go.touch()
        assert await handle.output(WAIT) == "released"
        assert [e.data.worker for e in await said(client, JobTried, "slow")] == ["better"]
        assigned = await said(client, ReplicaAssigned, "slow")
        assert [(e.data.worker, e.data.trial) for e in assigned] == [
            ("good", True), ("better", True),
        ]  # fmt: skip
