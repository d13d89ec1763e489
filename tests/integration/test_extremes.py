"""Inputs, outputs and errors at the edge of what JSON readers take: all of them end."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest

import given
from inprocess import connected, declare, depth, queue_of
from jetfleet import subjects
from jetfleet.client import Client, Gap
from jetfleet.clock import new_id
from jetfleet.errors import BeyondLimits, EventUnreadable, InvalidRequest, InvocationFailed
from jetfleet.events import encode
from jetfleet.specs import JobSpec
from jetfleet_projections.queue_rescue import UNSETTLED, rescue
from jetfleet_projections.queue_scan import QueueScan
from models.extremes import nest
from models.serving import function

pytestmark = pytest.mark.anyio
WAIT = 30.0
UNREADABLE = b"[" * 250 + b"]" * 250


async def serve(client: Client, behaves: str) -> None:
    spec = function(behaves, "extremes.py").model_copy(update={"name": behaves})
    await client.register_model(spec)
    await client.apply_job(JobSpec(name=behaves, model=spec, ack_wait_s=2, timeout_s=30))


async def all_are_events(client: Client) -> bool:
    return all([record.event is not None async for record in client.events()])


# -- inputs


@pytest.mark.parametrize(
    "value",
    [nest(129), nest(199), nest(220), nest(254), nest(5_000), 10**1_000, 10**5_000,
     {"big": "x" * 200_000, "n": 10**2_000}, ["x" * 200_000, nest(198)]],
    ids=["129 levels", "199 levels", "220 levels", "254 levels", "5000 levels", "1,001 digits",
         "5,001 digits", "digits in a big one", "levels in a big one"],
)  # fmt: skip
async def test_an_input_that_not_all_could_read_is_refused(client, value):
    await declare(client)
    with pytest.raises(BeyondLimits) as refused:
        await client.submit("echo", value)
    assert refused.value.field == "input"
    assert [record async for record in client.events()] == []


@pytest.mark.parametrize("value", [{1, 2}, b"x", {"image": b"\x89PNG"}, [object()]])
async def test_an_input_that_is_no_json_is_refused_and_not_changed(client, value):
    await declare(client)
    with pytest.raises(InvalidRequest, match="not JSON") as refused:
        await client.submit("echo", value)
    assert refused.value.field == "input"


async def test_a_model_whose_example_nobody_could_read_is_refused(client):
    spec = function("echo").model_copy(update={"name": "deep", "example_input": nest(190)})
    with pytest.raises(BeyondLimits):
        await client.register_model(spec)


async def test_what_is_just_within_the_limits_goes_all_the_way(client, fleet):
    await declare(client)
    for value in (nest(128), {"n": 10**999}, [nest(127)] * 50):
        assert await client.run("echo", value, wait_s=WAIT) == value


# -- outputs


@pytest.mark.parametrize("levels", [129, 197, 199, 220, 900])
async def test_an_output_that_nests_too_deep_fails_and_says_so(client, fleet, levels):
    await serve(client, "nest")
    with pytest.raises(InvocationFailed, match=r"128 levels|not JSON") as failed:
        await client.run("nest", levels, wait_s=WAIT)
    assert failed.value.outcome.data.error.code == "invalid_output"
    assert await all_are_events(client)


async def test_an_output_with_too_long_a_number_fails_and_says_so(client, fleet):
    await serve(client, "digits")
    assert await client.run("digits", 1_000, wait_s=WAIT) == {"n": 10**999}
    for count in (1_001, 4_300):
        with pytest.raises(InvocationFailed, match="1,000 digits") as failed:
            await client.run("digits", count, wait_s=WAIT)
        assert failed.value.outcome.data.error.code == "invalid_output"
    assert await all_are_events(client)


@pytest.mark.parametrize(
    ("behaves", "words"),
    [
        ("raise_half_a_surrogate", "ValueError: \\ud800 bad"),
        ("raise_odd_file_name", "caf\\udce9.txt"),
    ],
)
async def test_an_error_with_text_that_cannot_be_written_is_told_once(
    client, fleet, behaves, words
):
    await serve(client, behaves)
    with pytest.raises(InvocationFailed) as failed:
        await client.run(behaves, None, wait_s=WAIT)
    data = failed.value.outcome.data
    assert (data.error.code, data.attempt) == ("model_error", 1)
    assert words in data.error.message


async def test_an_outcome_that_cannot_be_written_becomes_a_failure(client, fleet, monkeypatch):
    """Whatever its text is, the call is not run again."""
    from jetfleet_agent import attempt

    await serve(client, "raise_half_a_surrogate")
    told, clean = [], attempt._clean
    monkeypatch.setattr(
        attempt, "_clean", lambda text: "\ud800" if told.append(text) is None and len(told) < 3
        else clean(text)
    )  # fmt: skip
    with pytest.raises(InvocationFailed, match="cannot be written") as failed:
        await client.run("raise_half_a_surrogate", None, wait_s=WAIT)
    assert failed.value.outcome.data.attempt == 1


# -- chunks


async def test_a_chunk_too_large_to_send_leaves_a_gap_and_the_stream_goes_on(client, fleet, caplog):
    await serve(client, "speak")
    sizes = [3, 600_000, 1_100_000, 4, 2_000_000]
    handle = await client.submit("speak", sizes, stream=True)
    came = [chunk async for chunk in handle.chunks(gaps=True)]
    assert came == ["xxx", Gap(1), Gap(2), "xxxx", Gap(4)]
    assert [len(text) for text in await handle.output(WAIT)] == sizes
    with caplog.at_level(logging.WARNING, "jetfleet.outcomes"):
        handle = await client.submit("speak", sizes, stream=True)
        assert [chunk async for chunk in handle.chunks()] == ["xxx", "xxxx"]
    assert [r.message for r in caplog.records if "too large" in r.message][1:] != []


# -- what older versions, or others, left in the log


async def test_a_queued_event_that_cannot_be_read_is_named_and_not_run(client, settings, put):
    await declare(client)
    event = given.queued("0198a0a0-0000-7000-8000-0000000000aa", input="here")
    invocation = new_id()
    body = encode(event).replace(event.data.invocation.encode(), invocation.encode())
    shard = subjects.shard_of("echo", settings.shards)
    await put.store(
        subjects.queued(shard, "default", "echo"), body.replace(b'"here"', UNREADABLE),
        msg_id=invocation,
    )  # fmt: skip
    for ask in (client.find, client.outcome, client.cancel):
        with pytest.raises(EventUnreadable, match=r"nor run.*recursion limit"):
            await ask(invocation)
    async with connected(settings) as owner:
        scans = [QueueScan(owner, n) for n in range(settings.shards)]
        assert (
            await rescue(owner, scans, timedelta(minutes=2), datetime.now(UTC) + 2 * UNSETTLED) == 0
        )


async def test_an_outcome_that_its_subject_does_not_vouch_for_is_none(client, settings, put):
    await declare(client)
    handle = await client.submit("echo", 1)
    shard = subjects.shard_of("echo", settings.shards)
    forged = encode(given.completed(handle.invocation, "forged", worker="w1"))
    for subject in (
        subjects.done(shard, "default", "echo", "o1", "w2"),
        subjects.started(shard, "default", "echo", "w1"),
    ):
        await put.store(subject, forged)
    assert (await client.find(handle.invocation)).state == "queued"


async def test_an_outcome_that_cannot_be_read_is_said_and_its_call_not_put_back(
    client, settings, put
):
    await declare(client)
    handle = await client.submit("echo", 1)
    queued = next(iter([r.event async for r in client.events()]))
    done = encode(given.completed(handle.invocation, "here")).replace(b'"here"', UNREADABLE)
    shard = subjects.shard_of("echo", settings.shards)
    await put.store(
        subjects.done(shard, "default", "echo", queued.data.origin, "w1"), done,
        msg_id=subjects.outcome_id(handle.invocation, queued.id),
    )  # fmt: skip
    view = await client.find(handle.invocation)
    assert view.ended
    assert "recursion limit" in view.unreadable
    for ask in (client.outcome, client.cancel):
        with pytest.raises(EventUnreadable, match="outcome that cannot be read"):
            await ask(handle.invocation)
    async with connected(settings) as owner:
        await owner.api(f"STREAM.PURGE.{queue_of('echo', settings)}", {})
        assert await depth(owner, queue_of("echo", settings)) == 0
        scans = [QueueScan(owner, n) for n in range(settings.shards)]
        assert (
            await rescue(owner, scans, timedelta(minutes=2), datetime.now(UTC) + 2 * UNSETTLED) == 0
        )


async def test_a_garbled_chunk_breaks_no_listener(client, put, fleet):
    await serve(client, "speak")
    handle = await client.submit("speak", [1], stream=True)
    for noise in (b"", b"x", b"1 {", b"2 " + b"[" * 100_000):
        await put.publish(subjects.output(handle.invocation, "w9"), noise)
    assert [chunk async for chunk in handle.chunks()][-1:] in (["x"], [])
    assert await handle.output(WAIT) == ["x"]
