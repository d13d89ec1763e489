"""Images of others, unmodified, through run_sync: answers, streams, cancels, failures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from containers.engine import Engine
from containers.images import Images
from containers.serving import open_image, serving
from jetfleet.client import Client
from jetfleet.errors import InvocationFailed
from jetfleet.events import InvocationCancelled
from jetfleet.specs import Resources
from stack import Stack, started

pytestmark = pytest.mark.anyio
WAIT_S = 60.0
CANCELLED_S = 2.0 + 3.0  # what a model may take to obey, and its end
CHAT = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 8}
SLOW_CHAT = {"messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 2000}
TENSOR = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.5, 2.5]}


def oip(**parameters: Any) -> dict[str, Any]:
    return {"inputs": [TENSOR], "parameters": parameters}


@pytest.fixture(scope="module")
async def fleet(
    anyio_backend: str, tmp_path_factory: Any, engine: Engine, images: Images
) -> AsyncIterator[tuple[Stack, Client]]:
    folder = tmp_path_factory.mktemp("contracts") / "stack"
    async with serving(folder, engine) as (running, client):
        big = {"resources": Resources(memory_mib=1024)}
        await open_image(client, "llama", images["llama"], contract="openai", **big)
        await open_image(client, "cog", images["cog"], contract="cog", **big)
        await open_image(client, "sagemaker", images["sagemaker"], contract="sagemaker")
        oip = {"contract": "openinference", "served_name": "doubler"}
        await open_image(client, "oip", images["oip"], **oip)
        function = {"function": "/app/model.py:nap", "concurrency": 2}
        await open_image(client, "function", images["function"], **function)
        yield running, client


@pytest.fixture
def client(fleet: tuple[Stack, Client]) -> Client:
    return fleet[1]


async def test_smollm2_under_llama_cpp_answers_and_streams(client: Client) -> None:
    answer = await client.run("llama", CHAT, wait_s=WAIT_S)
    assert answer["choices"][0]["message"]["content"]
    handle = await client.submit("llama", CHAT, stream=True)
    chunks = [chunk async for chunk in handle.chunks()]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    whole = await handle.output()
    assert len(chunks) > 2
    assert whole["choices"][0]["message"]["content"] == text


async def test_a_model_of_the_unmodified_cog_package_answers(client: Client) -> None:
    assert await client.run("cog", {"text": "ab", "times": 3}, wait_s=WAIT_S) == "ababab"


async def test_a_cog_model_that_yields_streams(client: Client, images: Images) -> None:
    big = {"resources": Resources(memory_mib=1024)}
    await open_image(client, "cog-stream", images["cog-stream"], contract="cog", **big)
    handle = await client.submit("cog-stream", {"text": "one two three"}, stream=True)
    chunks = [chunk async for chunk in handle.chunks()]
    whole = await handle.output()
    assert len(chunks) == 3
    assert "".join(chunks) == ("".join(whole) if isinstance(whole, list) else whole)


async def test_back_to_back_calls_of_cog_are_never_busy(client: Client) -> None:
    calls = [client.run("cog", {"text": str(n)}, wait_s=WAIT_S) for n in range(50)]
    assert await asyncio.gather(*calls) == [str(n) for n in range(50)]


async def test_a_sagemaker_model_answers(client: Client) -> None:
    assert await client.run("sagemaker", {"a": [1]}, wait_s=WAIT_S) == {"a": [1]}


async def test_an_open_inference_model_answers(client: Client) -> None:
    answer = await client.run("oip", {"inputs": [TENSOR]}, wait_s=WAIT_S)
    assert answer["outputs"][0]["data"] == [3.0, 5.0]


async def test_the_function_host_answers(client: Client) -> None:
    assert await client.run("function", 0, wait_s=WAIT_S) == 0


@pytest.mark.parametrize(
    ("job", "value"),
    [
        ("llama", SLOW_CHAT),
        ("cog", {"text": "a", "sleep_s": 30}),
        ("sagemaker", {"sleep_s": 30}),
        ("oip", oip(sleep_s=30)),
        ("function", 30),
    ],
)
async def test_a_call_is_cancelled_in_the_middle_and_the_next_one_works(
    client: Client, job: str, value: Any
) -> None:
    handle = await client.submit(job, value, stream=job == "llama")
    await started(client, handle.invocation)
    began = time.monotonic()
    await client.cancel(handle.invocation)
    assert isinstance(await handle.outcome(WAIT_S), InvocationCancelled)
    assert time.monotonic() - began < CANCELLED_S
    again = {"llama": CHAT, "cog": {"text": "b"}, "sagemaker": 1, "oip": {"inputs": [TENSOR]},
             "function": 0}  # fmt: skip
    assert await client.run(job, again[job], wait_s=WAIT_S) is not None


@pytest.mark.parametrize(
    ("job", "value", "code", "words"),
    [
        ("llama", {"messages": "no list"}, "model_error", "40"),
        ("cog", {"text": "x", "fail": True}, "model_error", "no good: x"),
        ("cog", {"times": 2}, "model_error", "NoneType"),
        ("sagemaker", {"status": 500}, "model_error", "no good"),
        ("sagemaker", {"leave": True}, "model_exited", "status 3"),
        ("oip", oip(fail=True), "model_error", ""),
        ("function", "no number", "model_error", "ValueError"),
    ],
)
async def test_failures_are_typed(
    client: Client, job: str, value: Any, code: str, words: str
) -> None:
    with pytest.raises(InvocationFailed) as caught:
        await client.run(job, value, wait_s=WAIT_S)
    error = caught.value.outcome.data.error
    assert (error.code, words in f"{error.message}\n{error.detail}") == (code, True), error


async def test_a_call_that_takes_too_long_is_ended(client: Client) -> None:
    began = time.monotonic()
    with pytest.raises(InvocationFailed) as caught:
        await client.run("sagemaker", {"sleep_s": 30}, timeout_s=1, wait_s=WAIT_S)
    assert caught.value.outcome.data.error.code == "timeout"
    assert time.monotonic() - began < 1 + CANCELLED_S
