"""What the openai contract has of its own, against a small real server (tests/models)."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jetfleet.specs import ContractName, ModelSpec
from jetfleet_agent.contracts import CallCancelled, InvalidOutput, ModelError, ModelExited
from models.serving import (
    MODELS,
    Served,
    anyio_backend,  # noqa: F401 - a fixture
    both_loops,
    fake,
    lives,
    serving,
)
from waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def model() -> AsyncIterator[Served]:
    async with serving(server(), concurrency=4, max_output_bytes=1_000_000) as served:
        yield served


def server(*options: str, **fields: Any) -> ModelSpec:
    return fake(ContractName.OPENAI, *options, **fields)


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


# -- calls


@both_loops
async def test_chat_is_answered_with_the_servers_own_object(model: Served) -> None:
    output = await model.call(chat("good morning"))
    assert output["choices"][0]["message"]["content"] == "good morning"
    assert output["model"] == "toy-model", "the name the server lists, as the caller gave none"
    assert (await model.call(chat("hi", model="mine")))["model"] == "mine"
    assert model.chunks == []


@both_loops
async def test_stream_is_chunks_and_an_assembled_object(model: Served) -> None:
    output = await model.call(chat("one two three"), stream=True)
    words = [c["choices"][0]["delta"].get("content") for c in model.chunks if c["choices"]]
    assert words == ["one ", "two ", "three ", None]
    message = {"role": "assistant", "content": "one two three "}
    assert output == {
        "object": "chat.completion",
        "id": "c-1",
        "created": 1,
        "model": "toy-model",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 3},
    }


async def test_input_that_asks_for_a_stream_gets_one(model: Served) -> None:
    output = await model.call(chat("a b", stream=True))
    assert output["choices"][0]["message"]["content"] == "a b "
    assert len(model.chunks) == 4


async def test_prompt_is_a_completion_whole_or_streamed(model: Served) -> None:
    whole = await model.call({"prompt": "a b"})
    assert whole["choices"][0]["text"] == "a b"
    streamed = await model.call({"prompt": "a b"}, stream=True)
    assert streamed["object"] == "text_completion"
    assert streamed["choices"] == [{"index": 0, "text": "a b ", "finish_reason": "stop"}]


async def test_input_without_messages_is_an_embedding(model: Served) -> None:
    output = await model.call({"input": "four"}, stream=True)
    assert output["data"][0]["embedding"] == [4, 0.5]


@pytest.mark.parametrize("value", ["text", None, [], {}, {"question": "?"}])
async def test_input_for_no_endpoint_is_a_model_error_that_says_what_is(
    model: Served, value: Any
) -> None:
    with pytest.raises(ModelError, match="'messages'"):
        await model.call(value)


async def test_tool_calls_are_put_together(model: Served) -> None:
    output = await model.call(chat("tools"), stream=True)
    assert output["choices"][0]["finish_reason"] == "tool_calls"
    assert output["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call-1",
                "type": "function",
                "function": {"name": "look", "arguments": '{"at": "sky"}'},
            }
        ],
    }


@both_loops
async def test_chunks_arrive_as_the_server_sends_them() -> None:
    async with serving(server("--token-s", "0.05")) as model:
        call = asyncio.create_task(model.call(chat("a b c d e f g h"), stream=True))
        await until(lambda: len(model.chunks) >= 2, "chunks arrive")
        assert not call.done()
        await call


async def test_large_bodies_pass(model: Served) -> None:
    text = "x" * 900_000
    assert (await model.call({"prompt": text}))["choices"][0]["text"] == text


async def test_calls_run_at_the_same_time() -> None:
    async with serving(server("--token-s", "0.1"), concurrency=8) as model:
        begun = time.monotonic()
        await asyncio.gather(*(model.call(chat("a b c"), stream=True) for _ in range(8)))
        assert time.monotonic() - begun < 2


# -- errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("refuse", "answered 400: context is too long"),
        ("error with 200", "reports: not today"),
        ("error in stream", "reports: out of cache"),
        ("error field", "reports: llama is tired"),
        ("stop early", "the stream ended before its last chunk"),
        ("cut in stream", "broke"),
    ],
)
async def test_error_of_the_server_is_a_model_error_in_its_words(
    model: Served, text: str, message: str, stream: bool
) -> None:
    with pytest.raises(ModelError, match=message):
        await model.call(chat(text), stream=stream)
    assert (await model.call({"prompt": "next"}))["choices"][0]["text"] == "next"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json number", "NaN is not JSON"),
        ("not json in stream", "not JSON"),
        ("flood in stream", "over 1000000 bytes"),
        ("flood without end", "over 1000000 bytes"),
    ],
)
async def test_what_is_not_json_or_too_large_is_an_invalid_output(
    model: Served, text: str, message: str
) -> None:
    with pytest.raises(InvalidOutput, match=message):
        await model.call(chat(text))
    assert (await model.call({"prompt": "next"}))["choices"][0]["text"] == "next"


@both_loops
async def test_server_that_ends_during_a_stream_is_an_exit(model: Served) -> None:
    with pytest.raises(ModelExited, match="exited with status 5"):
        await model.call(chat("crash in stream"))
    with pytest.raises(ModelExited):
        await model.call(chat("next"))


async def test_connection_that_the_server_closed_while_idle_is_replaced() -> None:
    async with serving(server("--idle-s", "0.2")) as model:

        def closed() -> int:
            return sum("timed out" in line for line in model.instance.tail())

        for n in range(3):
            before = closed()
            assert (await model.call({"prompt": str(n)}))["choices"][0]["text"] == str(n)
            await until(lambda before=before: closed() > before, "the server closes it")


# -- cancelling


@both_loops
async def test_cancelling_closes_the_connection_which_stops_the_server(tmp_path: Path) -> None:
    note = tmp_path / "note"
    async with serving(server("--token-s", "0.02", env={"NOTE": str(note)})) as model:
        call = asyncio.create_task(model.call(chat("word " * 5000), call_id="it", stream=True))
        await until(lambda: bool(model.chunks), "it streams")
        assert await model.session.cancel("it") is True
        with pytest.raises(CallCancelled):
            await call
        await until(note.exists, "the server noticed")
        assert (await model.call({"prompt": "next"}))["choices"][0]["text"] == "next"
        assert await model.session.cancel("it") is True


# -- starting and ending


async def test_server_without_a_health_page_is_ready_when_it_lists_models() -> None:
    async with serving(server("--no-health", "--load-s", "0.3")) as model:
        assert (await model.call({"prompt": "a"}))["model"] == "toy-model"


async def test_port_is_in_the_environment_too() -> None:
    command = (sys.executable, str(MODELS / "openai_server.py"))
    spec = ModelSpec(name="m", contract=ContractName.OPENAI, command=command)
    async with serving(spec) as model:
        assert await model.call({"prompt": "a"})


async def test_replicas_get_different_ports() -> None:
    async with serving(server()) as first, serving(server()) as second:
        assert await first.call({"prompt": "a"})
        await first.instance.stop(1)
        assert await second.call({"prompt": "b"})


AGENT = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from models.serving import *

async def main():
    async with serving(fake(ContractName.OPENAI, "--fork")) as model:
        helper = next(line for line in model.instance.tail() if line.startswith("helper"))
        print(model.instance.pid, helper.split()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until the test ends

asyncio.run(main())
"""


async def test_killed_agent_leaves_neither_the_server_nor_its_helpers() -> None:
    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        AGENT.format(tests=str(MODELS.parent)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert agent.stdout is not None
    pids = [int(pid) for pid in (await agent.stdout.readline()).split()]
    assert len(pids) == 2
    assert all(map(lives, pids))
    os.kill(agent.pid, signal.SIGKILL)
    await agent.wait()
    await until(lambda: not any(map(lives, pids)), "all are gone", 2)
    await agent.stdout.read()
