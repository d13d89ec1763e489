"""The traps of the cog contract, all of them in one server (tests/models/cog_server.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jetfleet.specs import ContractName, ModelSpec
from jetfleet_agent.contracts import CallCancelled, InvalidOutput, ModelError, ModelExited
from jetfleet_agent.runtimes import StartFailed
from models.serving import (
    Served,
    anyio_backend,  # noqa: F401 - a fixture
    both_loops,
    fake,
    serving,
    started,
)
from waiting import until

pytestmark = pytest.mark.anyio


def cog(*options: str, **fields: Any) -> ModelSpec:
    return fake(ContractName.COG, *options, **fields)


@pytest.fixture
async def model() -> AsyncIterator[Served]:
    async with serving(cog()) as served:
        yield served


@both_loops
async def test_slot_that_becomes_free_after_its_reply_is_waited_for(model: Served) -> None:
    for number in range(30):
        assert await model.call({"text": str(number)}) == [str(number)]
    assert " 409 " in "\n".join(model.instance.tail())


async def test_calls_beyond_the_slots_of_the_server_wait_for_one(model: Served) -> None:
    outputs = await asyncio.gather(*(model.call({"text": str(n), "s": 0.05}) for n in range(6)))
    assert outputs == [[str(n)] for n in range(6)]


async def test_stream_is_what_the_model_gave_piece_by_piece(model: Served) -> None:
    call = asyncio.create_task(model.call({"text": "a b c", "s": 0.1}, stream=True))
    await until(lambda: model.chunks == ["a"], "the first arrives before the last is made")
    assert await call == ["a", "b", "c"]
    assert model.chunks == ["a", "b", "c"]


@pytest.mark.parametrize("option", ["--no-stream", "--old"])
async def test_model_that_does_not_stream_gives_its_result_at_the_end(option: str) -> None:
    async with serving(cog(option)) as model:
        for _ in range(2):
            assert await model.call({"text": "a b"}, stream=True) == ["a", "b"]
        assert model.chunks == []
        refused = [line for line in model.instance.tail() if '" 40' in line and "409" not in line]
        assert len(refused) == 1, "it is asked in vain once only"


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"text": "boom"}, ModelError, "^ValueError: boom$"),
        ({"words": "x"}, ModelError, r"answered 422: input\.text: Field required"),
        ({"text": "setup again"}, ModelError, "answered 503: Setup has not finished yet"),
        (
            {"text": "unfinished"},
            InvalidOutput,
            "no prediction that has ended: status 'processing'",
        ),
        ({"text": "stop early"}, ModelError, "the stream ended before its last event"),
    ],
)
async def test_error_is_told_in_the_words_of_the_server(
    model: Served, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        await model.call(value, stream=value.get("text") == "stop early")
    if value.get("text") == "boom":
        assert caught.value.detail == "before\n", "its logs"
    assert await model.call({"text": "next"}) == ["next"]


async def test_server_whose_model_died_is_ended_so_that_it_starts_again(model: Served) -> None:
    with pytest.raises(ModelExited, match="the model in the server ended"):
        await model.call({"text": "worker dies"})
    assert model.instance.exited.done()


async def test_server_that_is_busy_for_ever_because_its_model_died_is_ended(model: Served) -> None:
    assert await model.call({"text": "last words"}) == "bye"
    with pytest.raises(ModelExited, match=r"ended \(UNHEALTHY\)"):
        await model.call({"text": "next"})
    assert model.instance.exited.done()


async def test_call_whose_connection_breaks_is_tried_twice_however_busy_the_server(
    model: Served,
) -> None:
    with pytest.raises(ModelError, match="the connection to the model's server broke"):
        await model.call({"text": "cut"}, call_id="it")
    assert model.instance.tail().count("running it") == 2


# -- cancelling


def runs(model: Served, call_id: str) -> bool:
    return f"running {call_id}" in model.instance.tail()


@both_loops
@pytest.mark.parametrize("stream", [False, True])
async def test_cancelled_prediction_ends_as_such(model: Served, stream: bool) -> None:
    value = {"text": "word " * 500, "s": 0.02}
    call = asyncio.create_task(model.call(value, call_id="it", stream=stream))
    await until(lambda: runs(model, "it"), "it runs")
    assert await model.session.cancel("it") is True
    with pytest.raises(CallCancelled):
        await call
    assert await model.call({"text": "next"}) == ["next"]
    assert await model.session.cancel("it") is True


async def test_cancellation_that_overtakes_its_call_is_told_again(model: Served) -> None:
    call = asyncio.create_task(model.call({"text": "word " * 500, "s": 0.02}, call_id="it"))
    await asyncio.sleep(0)  # the call is known, and its request not sent
    assert await model.session.cancel("it") is True
    with pytest.raises(CallCancelled):
        await call


async def test_call_that_waits_for_a_slot_is_cancelled_at_once(model: Served) -> None:
    first = asyncio.create_task(model.call({"text": "a b c d", "s": 0.3}, call_id="first"))
    await until(lambda: runs(model, "first"), "the only slot is taken")
    second = asyncio.create_task(model.call({"text": "x"}, call_id="second"))
    await until(lambda: " 409 " in "\n".join(model.instance.tail()), "the second waits")
    await model.session.cancel("second")
    with pytest.raises(CallCancelled, match="before the server had a slot"):
        await second
    assert not first.done()
    assert await first == ["a", "b", "c", "d"]


async def test_cancellation_of_a_model_that_computes_takes_effect_at_its_end() -> None:
    async with serving(cog("--deaf")) as model:
        begun = time.monotonic()
        call = asyncio.create_task(model.call({"text": "a b c", "s": 0.1}, call_id="it"))
        await until(lambda: runs(model, "it"), "it runs")
        assert await model.session.cancel("it") is True
        with pytest.raises(CallCancelled):
            await call
        assert time.monotonic() - begun > 0.25


async def test_abandoned_prediction_is_cancelled(model: Served) -> None:
    call = asyncio.create_task(model.call({"text": "word " * 500, "s": 0.02}, stream=True))
    await until(lambda: bool(model.chunks), "it runs")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(3):  # the only slot is free again
        assert await model.call({"text": "next"}) == ["next"]


async def test_prediction_that_runs_already_is_waited_for_and_asked_again(model: Served) -> None:
    """As when the agent is restarted, and its container and its invocation come back to it."""
    call = asyncio.create_task(model.call({"text": "a b", "s": 0.2}, call_id="it", stream=True))
    await until(lambda: bool(model.chunks), "it runs")
    assert await model.call({"text": "a b"}, call_id="it") == ["a", "b"]
    assert " 202 " in "\n".join(model.instance.tail())
    await call


# -- starting


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--setup-fails", r"the model's setup failed \(SETUP_FAILED\): RuntimeError: no weights"),
        ("--unhealthy", r"the model's setup failed \(UNHEALTHY\)"),
    ],
)
async def test_server_whose_setup_failed_fails_the_start_at_once(option: str, message: str) -> None:
    async with started(cog(option)) as model:
        with pytest.raises(StartFailed, match=message) as caught:
            await model.session.ready()
        assert "loading" in caught.value.log_tail
