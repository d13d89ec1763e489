"""The pure parts of the contracts: frames, server-sent events, assembly, kinds of functions."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet.specs import ContractName
from jetfleet_agent.contracts import ModelError, contract_of
from jetfleet_agent.contracts.assembly import Assembly, Misfit
from jetfleet_agent.contracts.function import FunctionContract
from jetfleet_agent.contracts.host_calls import (
    ASYNC_GENERATOR,
    COROUTINE,
    GENERATOR,
    flags_of,
)
from jetfleet_agent.contracts.openai import OpenAIContract, path_of
from jetfleet_agent.contracts.sse import EventReader, EventTooLarge
from jetfleet_agent.contracts.wire import CALL, RESULT, FrameReader, WireError, frame

# -- frames


@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(1, 60), max_size=40))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    payloads: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(frame(RESULT, n, payload) for n, payload in enumerate(payloads))
    reader = FrameReader()
    frames = []
    for cut in cuts:
        frames += reader.feed(stream[:cut])
        stream = stream[cut:]
    frames += reader.feed(stream)
    assert frames == [(RESULT, n, payload) for n, payload in enumerate(payloads)]


def test_frame_is_as_documented() -> None:
    assert frame(CALL, 7, b"ab") == b"\x02\0\0\0" + b"\x01" + b"\x07\0\0\0\0\0\0\0" + b"ab"


def test_frame_over_the_limit_is_refused_before_it_arrives() -> None:
    with pytest.raises(WireError, match="1001 bytes"):
        FrameReader(1000).feed(frame(RESULT, 1, b"x" * 1001)[:20])


# -- server-sent events


def events(*pieces: bytes) -> list[tuple[str, bytes]]:
    reader = EventReader(1000)
    return [event for piece in pieces for event in reader.feed(piece)]


def test_events_are_read_however_they_are_cut_and_whatever_ends_their_lines() -> None:
    stream = (
        b': hi\r\ndata: {"a":\r\ndata: 1}\r\n\r\nevent: error\ndata:x\n\nid: 3\n\ndata: [DONE]\n\n'
    )
    expected = [("", b'{"a":\n1}'), ("error", b"x"), ("", b"[DONE]")]
    assert events(stream) == expected
    assert events(*(bytes([byte]) for byte in stream)) == expected


def test_error_field_of_llama_cpp_is_an_error_event() -> None:
    assert events(b'error: {"code":500}\n\n') == [("error", b'{"code":500}')]


def test_event_without_its_empty_line_counts_when_the_stream_ends() -> None:
    reader = EventReader(1000)
    assert reader.feed(b"data: 1") == []
    assert reader.close() == [("", b"1")]


def test_event_that_does_not_end_is_refused_but_many_small_ones_are_not() -> None:
    reader = EventReader(1000)
    for _ in range(100):
        assert len(reader.feed(b"data: 0123456789\n\n")) == 1
    with pytest.raises(EventTooLarge):
        for _ in range(100):
            reader.feed(b"data: 0123456789\n")


# -- assembly


def assembled(*chunks: dict[str, Any], chat: bool = True) -> dict[str, Any]:
    assembly = Assembly(chat)
    for chunk in chunks:
        assembly.add(chunk)
    return assembly.whole()


def delta(index: int = 0, *, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": fields, "finish_reason": finish}]}


def test_choices_are_assembled_each_for_itself_in_order() -> None:
    whole = assembled(
        {"id": "1", "object": "chat.completion.chunk", "model": "m", "choices": []},
        delta(1, role="assistant", content="b"),
        delta(0, role="assistant", content="a"),
        delta(1, content="B"),
        delta(0, content="A", finish="stop"),
        delta(1, finish="length"),
        {"id": "2", "choices": [], "usage": {"total_tokens": 4}},
    )
    assert whole["object"] == "chat.completion"
    assert whole["id"] == "1"
    assert whole["usage"] == {"total_tokens": 4}
    said = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in whole["choices"]]
    assert said == [(0, "aA", "stop"), (1, "bB", "length")]


def test_parallel_tool_calls_reasoning_and_refusals_are_merged() -> None:
    def tool(index: int, **function: Any) -> dict[str, Any]:
        return delta(tool_calls=[{"index": index, "function": function}])

    message = assembled(
        delta(reasoning_content="hm"),
        delta(reasoning_content="m", content=None),
        tool(0, name="f", arguments="{"),
        tool(1, name="g", arguments="["),
        tool(0, arguments="}"),
        tool(1, arguments="]"),
        delta(refusal="no", function_call={"name": "h", "arguments": "1"}),
        delta(function_call={"arguments": "2"}),
    )["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hmm",
        "refusal": "no",
        "function_call": {"name": "h", "arguments": "12"},
        "tool_calls": [
            {"function": {"name": "f", "arguments": "{}"}},
            {"function": {"name": "g", "arguments": "[]"}},
        ],
    }


def test_log_probabilities_are_joined() -> None:
    def part(token: str) -> dict[str, Any]:
        logprobs = {"content": [{"token": token}]}
        return {"choices": [{"index": 0, "delta": {"content": token}, "logprobs": logprobs}]}

    choice = assembled(part("a"), part("b"))["choices"][0]
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_assembly_is_finished_when_every_choice_is() -> None:
    assembly = Assembly(chat=True)
    assert not assembly.finished
    assembly.add(delta(0, finish="stop"))
    assembly.add(delta(1, content="x"))
    assert not assembly.finished
    assembly.add(delta(1, finish="stop"))
    assert assembly.finished


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"choices": None},
        {"choices": "x"},
        {"choices": [None, 3]},
        {"choices": [{"delta": None}]},
        {"choices": [{"delta": {"tool_calls": [None, "x", {}]}}]},
    ],
)
def test_strange_chunks_do_no_harm(chunk: dict[str, Any]) -> None:
    whole = assembled(delta(content="a"), chunk)
    assert whole["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize(
    "chunk",
    [
        delta(content={"a": 1}),
        delta(content=["a"]),
        {"choices": [{"index": [1]}]},
        {"choices": [{"index": "1"}]},
        {"choices": [{"text": "b"}]},
    ],
)
def test_chunk_that_does_not_fit_is_told_apart_from_a_defect_of_ours(chunk: dict[str, Any]) -> None:
    with pytest.raises(Misfit):
        assembled(delta(content="a"), chunk)


def test_message_in_a_chunk_does_no_harm() -> None:
    whole = assembled(delta(content="a"), {"choices": [{"message": "b"}]})
    assert whole["choices"][0]["message"]["content"] == "a"


def test_completion_texts_are_joined() -> None:
    whole = assembled(
        {"choices": [{"index": 0, "text": "a"}]},
        {"choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]},
        chat=False,
    )
    choice = {"index": 0, "text": "ab", "finish_reason": "stop"}
    assert whole == {"object": "text_completion", "choices": [choice]}


# -- choosing


def test_contracts_are_found_by_name() -> None:
    assert isinstance(contract_of(ContractName.FUNCTION), FunctionContract)
    assert isinstance(contract_of(ContractName.OPENAI), OpenAIContract)


def test_endpoint_follows_from_the_input() -> None:
    assert path_of({"messages": [], "input": 1}) == "/v1/chat/completions"
    assert path_of({"prompt": ""}) == "/v1/completions"
    assert path_of({"input": []}) == "/v1/embeddings"
    with pytest.raises(ModelError):
        path_of("hello")


def plain(value: Any) -> Any:
    return value


def generator(value: Any) -> Any:
    yield value


async def coroutine(value: Any) -> Any:
    return value


async def asynchronous_generator(value: Any) -> Any:
    yield value


@functools.wraps(coroutine)
def wrapper(value: Any) -> Any:
    return coroutine(value)


class Model:
    def __call__(self, value: Any) -> Any:
        yield value

    async def method(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (plain, 0),
        (len, 0),
        (Model, 0),
        (generator, GENERATOR),
        (coroutine, COROUTINE),
        (asynchronous_generator, ASYNC_GENERATOR),
        (wrapper, COROUTINE),
        (Model(), GENERATOR),
        (Model().method, COROUTINE),
        (functools.partial(functools.partial(generator), 1), GENERATOR),
    ],
)
def test_kind_of_a_function_is_seen_through_wrappers(
    function: Callable[..., Any], kind: int
) -> None:
    assert flags_of(function) & (GENERATOR | COROUTINE | ASYNC_GENERATOR) == kind


def test_host_of_a_plain_function_imports_nothing_heavy() -> None:
    program = (
        "import sys, jetfleet_agent.contracts.function_host;"
        "print([m for m in ('asyncio', 'pydantic', 'nats', 'aiohttp', 'jetfleet', 'inspect')"
        " if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
