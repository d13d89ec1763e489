"""The openai contract, against a small real server process (tests/models/openai_server.py)."""

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
from jetfleet_agent.runtimes import StartFailed
from models.serving import (
    MODELS,
    Served,
    both_loops,
    descriptors,
    lives,
    server,
    serving,
    started,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The agent in production runs on uvloop; what depends on the loop is tested on both."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def model() -> AsyncIterator[Served]:
    async with serving(server(), concurrency=4, max_output_bytes=1_000_000) as served:
        yield served


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
        ("refuse plainly", "answered 500: a stack trace"),
        ("error with 200", "reports: not today"),
        ("error in stream", "reports: out of cache"),
        ("error field", "reports: llama is tired"),
        ("stop early", "the stream ended before its last chunk"),
        ("cut", "broke"),
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
        ("not json", "not JSON"),
        ("not json number", "NaN is not JSON"),
        ("not json in stream", "not JSON"),
        ("flood", "over 1000000 bytes"),
        ("flood in stream", "over 1000000 bytes"),
    ],
)
async def test_what_is_not_json_or_too_large_is_an_invalid_output(
    model: Served, text: str, message: str
) -> None:
    with pytest.raises(InvalidOutput, match=message):
        await model.call(chat(text))
    assert (await model.call({"prompt": "next"}))["choices"][0]["text"] == "next"


@both_loops
@pytest.mark.parametrize(
    ("text", "message"),
    [("crash", "was killed by SIGSEGV"), ("crash in stream", "exited with status 5")],
)
async def test_server_that_ends_during_a_call_is_an_exit(
    model: Served, text: str, message: str
) -> None:
    with pytest.raises(ModelExited, match=message) as caught:
        await model.call(chat(text))
    if text == "crash":
        assert "crashing now" in caught.value.detail
    with pytest.raises(ModelExited):
        await model.call(chat("next"))


async def test_connection_that_the_server_closed_while_idle_is_replaced() -> None:
    async with serving(server("--idle-s", "0.2")) as model:
        for n in range(3):
            assert (await model.call({"prompt": str(n)}))["choices"][0]["text"] == str(n)
            await asyncio.sleep(0.3)


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


@both_loops
async def test_abandoned_call_closes_the_connection_too(tmp_path: Path) -> None:
    note = tmp_path / "note"
    async with serving(server(env={"NOTE": str(note)})) as model:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await model.call(chat("hang"))
        await until(note.exists, "the server noticed")
        assert note.read_text() == "caller left"
        assert (await model.call({"prompt": "next"}))["choices"][0]["text"] == "next"


async def test_stopping_a_hanging_server_ends_its_calls_as_exits(tmp_path: Path) -> None:
    async with serving(server(env={"NOTE": str(tmp_path / "note")})) as model:
        call = asyncio.create_task(model.call(chat("hang")))
        await asyncio.sleep(0.2)
        await model.instance.stop(1)
        with pytest.raises(ModelExited, match="SIGTERM"):
            await call


async def test_closed_session_ends_calls(tmp_path: Path) -> None:
    async with serving(server(env={"NOTE": str(tmp_path / "note")})) as model:
        call = asyncio.create_task(model.call(chat("hang")))
        await asyncio.sleep(0.1)
        await model.session.close()
        for ended in (call, model.call(chat("next"))):
            with pytest.raises(ModelExited, match="the session was closed"):
                await ended


# -- starting and ending


async def test_ready_waits_until_the_server_has_loaded() -> None:
    async with started(server("--load-s", "0.5")) as model:
        begun = time.monotonic()
        await model.session.ready()
        assert time.monotonic() - begun > 0.3
        assert "503" in "\n".join(model.instance.tail())


async def test_server_without_a_health_page_is_ready_when_it_lists_models() -> None:
    async with serving(server("--no-health", "--load-s", "0.3")) as model:
        assert (await model.call({"prompt": "a"}))["model"] == "toy-model"


async def test_port_is_in_the_environment_too() -> None:
    command = (sys.executable, str(MODELS / "openai_server.py"))
    spec = ModelSpec(name="m", contract=ContractName.OPENAI, command=command)
    async with serving(spec) as model:
        assert await model.call({"prompt": "a"})


async def test_server_that_never_gets_ready_fails_the_start_in_time() -> None:
    async with started(server("--never", startup_timeout_s=0.6)) as model:
        with pytest.raises(StartFailed, match=r"not ready within 0\.6 s \(GET /health: 503\)"):
            await model.session.ready()


async def test_server_that_never_listens_fails_the_start_in_time() -> None:
    spec = ModelSpec(
        name="m", contract=ContractName.OPENAI, command=("sleep", "60"), startup_timeout_s=0.3
    )
    async with started(spec) as model:
        with pytest.raises(StartFailed, match="Connect call failed"):
            await model.session.ready()


async def test_server_that_ends_before_it_is_ready_fails_the_start_at_once() -> None:
    async with started(server("--unknown-option")) as model:
        with pytest.raises(StartFailed, match="exited with status 2 before it was ready") as caught:
            await model.session.ready()
        assert "unrecognized arguments: --unknown-option" in caught.value.log_tail[-1]


async def test_replicas_get_different_ports() -> None:
    async with serving(server()) as first, serving(server()) as second:
        assert await first.call({"prompt": "a"})
        await first.instance.stop(1)
        assert await second.call({"prompt": "b"})


async def test_nothing_stays_open_after_many_starts_and_stops() -> None:
    async with serving(server()):
        pass  # what is opened once for all is open now
    before = descriptors()
    for _ in range(2):
        async with serving(server()) as model:
            await model.call({"prompt": "a"})
        assert not lives(model.instance.pid or 0)
    assert descriptors() == before


AGENT = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from models.serving import *

async def main():
    async with serving(server("--fork")) as model:
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
