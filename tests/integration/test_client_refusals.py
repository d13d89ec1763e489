"""What the client refuses, and what ends otherwise than completed; a real broker."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta

import pytest

from conftest import settings_for
from inprocess import conducting, declare, queue_holds, working
from jetfleet.client import Client
from jetfleet.errors import (
    BrokerUnavailable,
    InvalidRequest,
    InvocationExpired,
    InvocationFailed,
    JobDisabled,
    JobNotFound,
    PayloadTooLarge,
    QueryUnavailable,
    QueueFull,
)
from jetfleet.streams import INVOCATIONS
from made_events import TRACE
from stack import position
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0


# -- refused, and nothing is left behind


async def test_a_full_queue_refuses_exactly_above_its_cap(client):
    await declare(client, queue_cap=25)
    results = await asyncio.gather(
        *(client.submit("echo", n) for n in range(40)), return_exceptions=True
    )
    refused = [r for r in results if isinstance(r, QueueFull)]
    assert len(refused) == 15
    assert refused[0].retry_after_s > 0
    assert await position(client, INVOCATIONS) == 25


async def test_a_queue_that_drains_takes_work_again(client, settings):
    await declare(client, queue_cap=3)
    handles = [await client.submit("echo", n) for n in range(3)]
    with pytest.raises(QueueFull):
        await client.submit("echo", 4)
    async with conducting(settings), working(settings):
        await asyncio.gather(*(h.outcome(WAIT) for h in handles))
        await queue_holds(client, 0)
        assert await client.run("echo", 5, wait_s=WAIT) == 5


@pytest.mark.parametrize(
    "name", ["missing", "", "a b", "a.b", "echo\n", "echo\r\nPUB x 0", "*", ">"]
)
async def test_an_unknown_job_is_not_found(client, name):
    await declare(client)
    with pytest.raises(JobNotFound):
        await client.submit(name, 1)
    assert await position(client, INVOCATIONS) == 0
    assert client.connected


async def test_a_disabled_job_refuses_until_it_is_enabled(client):
    await declare(client)
    await client.disable_job("echo", "maintenance")
    with pytest.raises(JobDisabled):
        await client.submit("echo", 1)
    assert await position(client, INVOCATIONS) == 0
    await client.enable_job("echo")
    await client.submit("echo", 1)


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"timeout_s": 30.1}, "timeout_s"),
        ({"timeout_s": math.nan}, "timeout_s"),
        ({"timeout_s": math.inf}, "timeout_s"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": 61}, "ttl_s"),
        ({"ttl_s": math.nan}, "ttl_s"),
        ({"idempotency_key": ""}, "Idempotency-Key"),
        ({"idempotency_key": "k" * 256}, "Idempotency-Key"),
        ({"trace": "x"}, "traceparent"),
        ({"trace": TRACE + "\r\nNats-Msg-Id: x"}, "traceparent"),
        ({"trace": TRACE + "\n"}, "traceparent"),
    ],
)
async def test_limits_and_keys_out_of_bounds_are_refused_with_the_field_named(
    client, limits, field
):
    await declare(client, queue_ttl_s=60)
    with pytest.raises(InvalidRequest) as caught:
        await client.submit("echo", 1, **limits)
    assert caught.value.field == field
    assert await position(client, INVOCATIONS) == 0


@pytest.mark.parametrize(
    "value",
    [math.nan, {"a": [math.inf]}, object(), "\ud800", {"a": object()}, "x" * 200_000 + "\ud800",
     [math.nan] * 100_000],
    ids=["nan", "inf", "object", "surrogate", "nested", "big surrogate", "big nan"],
)  # fmt: skip
async def test_an_input_that_is_not_json_is_refused(client, value):
    await declare(client)
    with pytest.raises(InvalidRequest) as caught:
        await client.submit("echo", value)
    assert caught.value.field == "input"
    assert await position(client, INVOCATIONS) == 0


async def test_words_that_only_look_like_numbers_json_lacks_are_fine(client):
    await declare(client)
    await client.submit("echo", {"NaN": "Infinity"})
    assert await position(client, INVOCATIONS) == 1


async def test_an_input_over_the_installations_limit_is_refused(client, broker):
    await declare(client)
    async with await Client.connect(settings_for(broker, payload_limit=300_000)) as small:
        with pytest.raises(PayloadTooLarge, match="300,000"):
            await small.submit("echo", "x" * 300_000)
        await small.submit("echo", "x" * 290_000)
    assert await position(client, INVOCATIONS) == 1


async def test_limits_given_with_a_request_are_in_its_event(client):
    await declare(client)
    before = datetime.now(UTC)
    handle = await client.submit("echo", 1, timeout_s=2, ttl_s=5)
    event = (await anext(aiter(client.events(start=handle.seq)))).event
    assert event.data.timeout_s == 2
    assert timedelta(0) <= event.data.expires_at - before - timedelta(seconds=5)
    assert event.data.expires_at - before < timedelta(seconds=6)


async def test_what_nobody_starts_before_its_time_expires(client, settings):
    await declare(client)
    async with conducting(settings):
        handle = await client.submit("echo", 1, ttl_s=0.2)
        with pytest.raises(InvocationExpired):
            await handle.output(WAIT)
        await queue_holds(client, 0)


async def test_a_run_longer_than_its_timeout_fails(client, fleet):
    await declare(client, "act", behaves="act")
    with pytest.raises(InvocationFailed, match="timeout"):
        await client.run("act", "hang", timeout_s=0.3, wait_s=WAIT)
    assert await client.run("act", "fine", wait_s=WAIT) == "fine"


async def test_without_a_broker_a_submit_is_refused_at_once(client, broker):
    await declare(client)
    broker.kill()
    await until(lambda: not client.connected, "the connection is lost")
    with pytest.raises(BrokerUnavailable):
        await client.submit("echo", 1)
    with pytest.raises(QueryUnavailable):
        await client.sql("select 1")
    assert client.registry.job("default", "echo") is not None  # reading goes on


async def test_connecting_to_nobody_ends_in_words(broker, monkeypatch):
    monkeypatch.setattr("jetfleet.client.CONNECT_S", 0.5)
    with pytest.raises(BrokerUnavailable, match="no broker answers"):
        await Client.connect(settings_for(broker, nats_url="nats://127.0.0.1:1"))
    with pytest.raises(BrokerUnavailable, match="no credentials"):
        await Client.connect(settings_for(broker, data_dir=broker.data_dir / "nowhere"))


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("job", {"job": None}),
        ("job", {"job": ["echo"]}),
        ("timeout_s", {"timeout_s": "5"}),
        ("ttl_s", {"ttl_s": "5"}),
        ("Idempotency-Key", {"idempotency_key": 5}),
        ("traceparent", {"trace": 5}),
    ],
)
async def test_an_argument_of_the_wrong_type_is_refused_with_its_name(client, field, arguments):
    await declare(client)
    with pytest.raises(InvalidRequest) as refused:
        await client.submit(**{"job": "echo", "input": 1, **arguments})
    assert refused.value.field == field
    assert await position(client, INVOCATIONS) == 0
