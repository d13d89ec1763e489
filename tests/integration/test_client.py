"""The client against a real broker, with a conductor and agents in the same loop, no projector."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap

import pytest

from conftest import settings_for
from inprocess import conducting, declare, queue_holds, working
from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.clock import new_id
from jetfleet.errors import (
    BrokerUnavailable,
    Conflict,
    IdempotencyMismatch,
    InvalidRequest,
    InvocationCancelled,
    InvocationFailed,
    InvocationNotFound,
    JobDisabled,
    JobNotFound,
    OutcomePending,
    QueryUnavailable,
)
from jetfleet.events import InvocationCompleted, InvocationQueued, InvocationStarted
from jetfleet.server import Broker
from jetfleet.streams import INVOCATIONS
from made_events import TRACE
from stack import position, started

pytestmark = pytest.mark.anyio
WAIT = 30.0


# -- one invocation, end to end


async def test_what_is_submitted_is_run_and_its_outcome_heard(client, fleet):
    await declare(client)
    handle = await client.submit("echo", {"a": None, "b": [1, 2.5, "é"]}, trace=TRACE)
    outcome = await handle.outcome(WAIT)
    assert isinstance(outcome, InvocationCompleted)
    assert await handle.output() == {"a": None, "b": [1, 2.5, "é"]}
    assert outcome.data.worker == "w1"
    assert outcome.traceparent == TRACE
    assert outcome.correlationid == handle.invocation

    kinds = [r.event async for r in client.events() if r.event is not None]
    mine = [e for e in kinds if e.correlationid == handle.invocation]
    assert [type(e) for e in mine] == [InvocationQueued, InvocationCompleted]
    assert mine[1].causationid == mine[0].id
    view = await client.find(handle.invocation)
    assert view.queued_at <= view.started_at < view.finished_at


async def test_an_attempt_that_goes_on_is_told_while_it_runs(client, fleet):
    await declare(client, "slow", behaves="aact")
    handle = await client.submit("slow", 0.1)
    await handle.outcome(WAIT)
    kinds = [r.event async for r in client.events() if r.event is not None]
    mine = [e for e in kinds if e.correlationid == handle.invocation]
    assert [type(e) for e in mine] == [InvocationQueued, InvocationStarted, InvocationCompleted]
    assert mine[1].causationid == mine[2].causationid == mine[0].id
    assert 0 < mine[1].data.run_s < mine[2].data.run_s


async def test_run_returns_what_the_model_returned_or_raises_what_it_ended_with(client, fleet):
    await declare(client)
    await declare(client, "act", behaves="act")
    assert await client.run("echo", None, wait_s=WAIT) is None
    with pytest.raises(InvocationFailed, match="model_error") as caught:
        await client.run("act", "raise", wait_s=WAIT)
    assert caught.value.outcome.data.error.code == "model_error"
    assert "KeyError" in caught.value.outcome.data.error.detail


async def test_chunks_come_as_they_are_made_and_the_output_holds_them_all(client, fleet):
    await declare(client, "count", behaves="count")
    handle = await client.submit("count", {"to": 5}, stream=True)
    assert [chunk async for chunk in handle.chunks()] == [0, 1, 2, 3, 4]
    assert await handle.output(WAIT) == [0, 1, 2, 3, 4]
    assert (await handle.outcome()).data.chunks == 5


async def test_big_inputs_and_outputs_travel_whole_and_outside_the_event(client, fleet):
    await declare(client)
    value = {"text": "é" * 700_000, "none": None}
    handle = await client.submit("echo", value)
    outcome = await handle.outcome(WAIT)
    assert outcome.data.output is None
    assert outcome.data.output_ref.pieces > 1
    assert await handle.output() == value
    queued = await anext(aiter(client.events(start=handle.seq)))
    assert len(queued.body) < 1500


async def test_an_invocation_is_found_by_its_id_from_the_log_alone(client, settings, fleet):
    await declare(client)
    handle = await client.submit("echo", 1)
    await handle.outcome(WAIT)
    async with await Client.connect(settings, role="gateway") as other:
        view = await other.find(handle.invocation)
        assert (view.state, view.job, view.worker) == ("completed", "echo", "w1")
        assert view.queued_seq == handle.seq
        assert (await other.outcome(handle.invocation)).data.output == 1


async def test_what_was_just_submitted_is_found_at_once(client):
    await declare(client)
    for n in range(5):
        handle = await client.submit("echo", n)
        assert (await client.find(handle.invocation)).state == "queued"


async def test_another_client_may_wait_for_an_outcome_by_id(client, settings, fleet):
    await declare(client, "count", behaves="count")
    handle = await client.submit("count", {"to": 3}, stream=True)
    async with await Client.connect(settings, role="gateway") as other:
        outcome = await other.outcome(handle.invocation, WAIT)
        assert await other.output(outcome) == [0, 1, 2]


@pytest.mark.parametrize("wrong", ["", "nothing", "a b", "x\r\ny", "*", new_id(), new_id().upper()])
async def test_an_id_that_is_not_in_the_log_is_not_found(client, wrong):
    with pytest.raises(InvocationNotFound):
        await client.find(wrong)
    with pytest.raises(InvocationNotFound):
        await client.cancel(wrong)


async def test_an_invocation_of_another_tenant_is_not_found(client, settings, broker):
    await declare(client)
    handle = await client.submit("echo", 1)
    async with await Client.connect(settings_for(broker, tenant="rival")) as rival:
        with pytest.raises(InvocationNotFound):
            await rival.find(handle.invocation)
        with pytest.raises(JobNotFound):
            await rival.submit("echo", 1)


async def test_waiting_longer_than_one_wants_leaves_the_invocation_going(client):
    await declare(client)
    handle = await client.submit("echo", 1)
    with pytest.raises(OutcomePending) as caught:
        await handle.outcome(0.05)
    assert caught.value.invocation == handle.invocation
    assert (await client.find(handle.invocation)).state == "queued"


async def test_a_run_that_is_not_waited_for_longer_is_accepted_and_goes_on(client):
    await declare(client)
    with pytest.raises(OutcomePending) as caught:
        await client.run("echo", 1, wait_s=0)
    assert (await client.find(caught.value.invocation)).state == "queued"


async def test_without_a_projector_a_query_says_so(client):
    with pytest.raises(QueryUnavailable):
        await client.sql("select 1")


# -- cancelling


async def test_a_queued_invocation_is_cancelled_without_being_run(client, settings):
    await declare(client)
    async with conducting(settings):  # and nobody who works
        handle = await client.submit("echo", 1)
        view = await client.cancel(handle.invocation, "changed my mind")
        assert view.state == "cancelled"
        with pytest.raises(InvocationCancelled, match="changed my mind"):
            await handle.output(WAIT)
        with pytest.raises(Conflict, match="ended already"):
            await client.cancel(handle.invocation)
        await queue_holds(client, 0)


async def test_a_running_invocation_is_cancelled_and_its_worker_serves_on(client, fleet):
    await declare(client, "act", behaves="act")
    handle = await client.submit("act", "hang")
    await started(client, handle.invocation)
    assert (await client.cancel(handle.invocation, "enough")).state == "cancelled"
    with pytest.raises(InvocationCancelled, match="enough"):
        await handle.output(WAIT)
    assert await client.run("act", "fine", wait_s=WAIT) == "fine"


# -- idempotency


async def test_the_same_key_with_the_same_input_is_the_same_invocation(client, settings):
    await declare(client)
    first = await client.submit("echo", {"a": [1]}, idempotency_key="k 1\r\n")
    again = await client.submit("echo", {"a": [1]}, idempotency_key="k 1\r\n")
    assert again.invocation == first.invocation
    assert (first.duplicate, again.duplicate) == (False, True)
    async with await Client.connect(settings, role="gateway") as other:
        third = await other.submit("echo", {"a": [1]}, idempotency_key="k 1\r\n")
        assert (third.invocation, third.duplicate) == (first.invocation, True)
    assert await position(client, INVOCATIONS) == 1


async def test_the_same_key_with_another_input_is_refused_by_any_client(client, settings):
    await declare(client)
    await client.submit("echo", 1, idempotency_key="k")
    with pytest.raises(IdempotencyMismatch):
        await client.submit("echo", 2, idempotency_key="k")
    async with await Client.connect(settings, role="gateway") as other:
        with pytest.raises(IdempotencyMismatch):
            await other.submit("echo", 2, idempotency_key="k")
    assert await position(client, INVOCATIONS) == 1


async def test_the_same_key_on_another_job_is_another_invocation(client):
    await declare(client)
    await declare(client, "other")
    first = await client.submit("echo", 1, idempotency_key="k")
    second = await client.submit("other", 2, idempotency_key="k")
    assert first.invocation != second.invocation


async def test_a_key_with_a_big_input_is_compared_by_its_digest(client):
    await declare(client)
    big = "x" * 300_000
    first = await client.submit("echo", big, idempotency_key="k")
    assert (await client.submit("echo", big, idempotency_key="k")).invocation == first.invocation
    with pytest.raises(IdempotencyMismatch):
        await client.submit("echo", big[:-1] + "y", idempotency_key="k")


async def test_every_holder_of_a_key_hears_the_one_outcome(client, settings):
    await declare(client)
    async with await Client.connect(settings, role="gateway") as other:
        handles = await asyncio.gather(
            *(c.submit("echo", 7, idempotency_key="k") for c in (client, other, client, other))
        )
        assert len({h.invocation for h in handles}) == 1
        async with conducting(settings), working(settings):
            outcomes = await asyncio.gather(*(h.outcome(WAIT) for h in handles))
        assert len({o.id for o in outcomes}) == 1


# -- reading the log


async def test_events_are_read_from_a_position_and_by_subject(client):
    await declare(client)
    await declare(client, "other")
    for n in range(3):
        await client.submit("echo", n)
        await client.submit("other", n)
    assert [r.seq async for r in client.events(start=4)] == [4, 5, 6]
    mine = subjects.queued("*", "default", "other", "*")
    assert [r.event.data.job async for r in client.events(subject=mine)] == ["other"] * 3
    registered = [r.event.type async for r in client.events("REGISTRY")]
    assert registered == ["jetfleet.model.registered", "jetfleet.job.created"] * 2


@pytest.mark.parametrize("bad", ["a b", "a\r\nPUB x 0\r\n", "a..b", ".", "a.", " "])
async def test_a_filter_that_is_no_subject_is_refused_before_it_reaches_the_wire(client, bad):
    with pytest.raises(InvalidRequest):
        _ = [r async for r in client.events(subject=bad)]
    assert client.connected


@pytest.mark.parametrize("bad", ["", "NOPE", "REGISTRY X", "Q0"])
async def test_a_stream_that_does_not_exist_is_refused_instead_of_awaited(client, bad):
    with pytest.raises(InvalidRequest):
        _ = [r async for r in client.events(bad)]


async def test_a_message_that_is_not_an_event_is_shown_and_not_obeyed(client):
    await declare(client)
    await client.connection.store(subjects.job_event("default", "echo", "deleted"), b"{}")
    await client.registry.sync()
    assert client.registry.invalid == 1
    last = [r async for r in client.events("REGISTRY")][-1]
    assert last.event is None
    assert "not a valid event" in last.error
    await client.submit("echo", 1)


# -- with nothing installed but the base package

BASE_ONLY = """
    import sys
    for name in ("duckdb", "fastapi", "aiohttp", "docker", "pynvml", "psutil", "uvicorn",
                 "starlette", "httptools"):
        sys.modules[name] = None
    import asyncio, json
    from jetfleet.client import Client
    from jetfleet.sync import SyncClient

    async def main():
        async with await Client.connect() as client:
            handle = await client.submit("echo", {"from": "async"})
            return await handle.output(30)

    with SyncClient.connect() as client:
        print(json.dumps([asyncio.run(main()), client.run("echo", {"from": "sync"}, wait_s=30)]))
    ours = [n for n in sys.modules if n.startswith("jetfleet_")]
    assert not ours, ours
"""


async def test_a_service_needs_nothing_but_the_base_package_to_publish_and_await(
    client, settings, fleet
):
    await declare(client)
    environment = {
        **os.environ,
        "JETFLEET_NATS_URL": settings.nats_url,
        "JETFLEET_DATA_DIR": str(settings.data_dir),
    }
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", textwrap.dedent(BASE_ONLY)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"from": "async"}, {"from": "sync"}]
    assert not done.stderr


def in_a_thread(work, *arguments):
    return asyncio.to_thread(work, *arguments)


async def test_the_blocking_client_does_what_the_async_one_does(client, settings, fleet):
    from jetfleet.sync import SyncClient

    job = await declare(client, "count", behaves="count")

    def work() -> None:
        with SyncClient.connect(settings) as blocking:
            assert blocking.register_model(job.model).kind == "unchanged"
            assert blocking.apply_job(job).kind == "unchanged"
            handle = blocking.submit("count", {"to": 3}, stream=True)
            assert list(handle.chunks()) == [0, 1, 2]
            assert handle.output(WAIT) == [0, 1, 2]
            assert blocking.find(handle.invocation).state == "completed"
            assert blocking.outcome(handle.invocation).data.output == [0, 1, 2]
            assert blocking.run("count", {"to": 1}, wait_s=WAIT) == [0]
            assert next(r.seq for r in blocking.events(start=1)) == 1
            blocking.disable_job("count")
            with pytest.raises(JobDisabled):
                blocking.submit("count", {"to": 1})
            blocking.enable_job("count")
            with pytest.raises(QueryUnavailable):
                blocking.sql("select 1")

    await in_a_thread(work)


async def test_a_broker_that_is_not_ours_is_told_from_one_without_streams(tmp_path, monkeypatch):
    from conftest import new_broker

    monkeypatch.setattr("jetfleet.client.CONNECT_S", 1.0)
    bare: Broker = new_broker(tmp_path / "bare")
    await bare.start()
    try:
        with pytest.raises(BrokerUnavailable, match="has no registry to read"):
            await Client.connect(settings_for(bare))
    finally:
        await bare.stop()
