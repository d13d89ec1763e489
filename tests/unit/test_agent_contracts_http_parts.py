"""The parts of the contracts over HTTP that need no model: launches, words, JSON, sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet.specs import ModelSpec
from jetfleet_agent.contracts import Call, InvalidOutput, ModelError, ModelExited, contract_of
from jetfleet_agent.contracts.cog import CogContract
from jetfleet_agent.contracts.http import dump, free_port, parse, words
from jetfleet_agent.contracts.openai import OpenAIContract
from jetfleet_agent.contracts.openinference import OpenInferenceContract, request_of
from jetfleet_agent.contracts.sagemaker import SageMakerContract
from jetfleet_agent.runtimes import Launch, StartFailed

CONTRACTS = {
    "openai": (OpenAIContract, 8000, ()),
    "cog": (CogContract, 5000, ()),
    "sagemaker": (SageMakerContract, 8080, ("serve",)),
    "openinference": (OpenInferenceContract, 8080, ()),
}


def spec(contract: str, **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": "m", "contract": contract, **fields})


def in_container(contract: str, **fields: Any) -> ModelSpec:
    return spec(contract, runtime="docker", image="some/image:1", **fields)


def launched(model: ModelSpec) -> Launch:
    return contract_of(model.contract).launch(model, 1, Path("unused"))


# -- launches


@pytest.mark.parametrize("name", CONTRACTS)
def test_contracts_are_found_by_name(name: str) -> None:
    kind, _, _ = CONTRACTS[name]
    assert type(contract_of(spec(name, command=("x",)).contract)) is kind


@pytest.mark.parametrize("name", CONTRACTS)
def test_process_gets_a_free_port_of_its_own(name: str) -> None:
    model = spec(name, command=("serve", "--port={port}"), env={"A": "b"})
    first, second = launched(model), launched(model)
    assert first.port is not None
    assert first.port != second.port
    env = {"A": "b", "PORT": str(first.port)}
    assert first == Launch(("serve", f"--port={first.port}"), env, port=first.port)


@pytest.mark.parametrize("name", CONTRACTS)
def test_container_gets_the_usual_port_and_arguments_of_its_contract(name: str) -> None:
    _, port, argv = CONTRACTS[name]
    assert launched(in_container(name)) == Launch(argv, {"PORT": str(port)}, port=port)


@pytest.mark.parametrize("name", CONTRACTS)
def test_container_may_say_another_port_and_another_command(name: str) -> None:
    model = in_container(name, command=("run", "{port}"), container={"port": 1234})
    assert launched(model) == Launch(("run", "1234"), {"PORT": "1234"}, port=1234)


def test_free_port_is_one_of_loopback() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


# -- words


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("plain", "plain"),
        ({"error": "text"}, "text"),
        ({"error": {"message": "deep", "code": 3}}, "deep"),
        ({"detail": [{"loc": ["body", "input", "s"], "msg": "no number"}]}, "input.s: no number"),
        ({"detail": [{"loc": ["body"], "msg": "a"}, {"loc": ["x", 0], "msg": "b"}]},
         "the body: a; x.0: b"),
        ({"detail": [{"loc": 3}]}, '[{"loc": 3}]'),
        ({"error": None, "code": 7}, '{"error": null, "code": 7}'),
        ([], "[]"),
    ],
)  # fmt: skip
def test_words_are_found_wherever_a_server_puts_them(error: Any, expected: str) -> None:
    assert words(error) == expected


# -- JSON


def test_halves_of_a_pair_are_joined_and_a_lone_half_is_replaced() -> None:
    assert dump("\ud83d" + "\ude00") == '"😀"'.encode()
    assert dump({"a": "\ud83d."}) == '{"a":"\ufffd."}'.encode()


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_what_is_dumped_is_parsed_again(value: Any) -> None:
    assert parse(dump(value)) == value


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_an_invalid_output(text: bytes) -> None:
    with pytest.raises(InvalidOutput, match="not JSON"):
        parse(text)


# -- openinference


def test_request_is_sent_as_it_came_when_it_has_an_id() -> None:
    text = b'{ "id": "mine", "inputs": [] }'
    assert request_of(Call("it", text)) == text
    assert json.loads(request_of(Call("it", b'{"inputs": []}'))) == {"id": "it", "inputs": []}


@pytest.mark.parametrize("value", [None, [], {}, {"inputs": None}, {"inputs": {"x": 1}}])
def test_input_without_inputs_is_refused(value: Any) -> None:
    with pytest.raises(ModelError, match="inference request"):
        request_of(Call("it", json.dumps(value).encode()))


# -- sockets


class FakeInstance:
    """One whose server is reached at an address of its own, through sockets of its own."""

    host = "127.0.0.1"

    def __init__(self, fails: bool = False) -> None:
        self.made = 0
        self.fails = fails
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def socket_factory(self, address: tuple[Any, ...]) -> socket.socket:
        if self.fails:
            raise FileNotFoundError(2, "the namespace is gone")
        self.made += 1
        made = socket.socket(address[0], socket.SOCK_STREAM)
        made.setblocking(False)
        return made

    def tail(self) -> tuple[str, ...]:
        return ("last line",)


@pytest.mark.anyio
async def test_server_is_reached_through_the_sockets_of_its_instance() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        model = in_container("sagemaker", container={"port": port})
        instance: Any = FakeInstance()
        session = contract_of(model.contract).session(model, instance, launched(model), 1)
        await session.ready()
        await session.close()
    assert instance.made == 1


@pytest.mark.anyio
@pytest.mark.parametrize("name", CONTRACTS)
async def test_redirect_is_not_followed_out_of_the_container(name: str) -> None:
    asked: list[str] = []

    async def lead_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(request.partition("\r\n")[0])
        body = '{"status": "READY"}'
        writer.write(
            b"HTTP/1.1 307 Elsewhere\r\nLocation: /outside\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body.encode())
            if "/outside" not in request
            else b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        writer.close()

    async with await asyncio.start_server(lead_out, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        model = in_container(name, container={"port": port}, startup_timeout_s=0.2)
        instance: Any = FakeInstance()
        session = contract_of(model.contract).session(model, instance, launched(model), 1)
        with contextlib.suppress(StartFailed):
            await session.ready()
        await session.close()
    assert asked
    assert not [line for line in asked if "/outside" in line]


@pytest.mark.anyio
async def test_instance_that_is_gone_is_an_exit_and_not_a_crash_of_ours() -> None:
    model = in_container("sagemaker", startup_timeout_s=0.1)
    instance: Any = FakeInstance(fails=True)
    session = contract_of(model.contract).session(model, instance, launched(model), 1)
    try:
        with pytest.raises(StartFailed, match=r"gone.*port 8080 of its container") as caught:
            await session.ready()
        assert caught.value.log_tail == ("last line",)
        with pytest.raises(ModelError, match="the connection to the model's server broke"):
            await session.invoke(Call("it", b"1"))
        instance.exited.set_result(-9)
        with pytest.raises(StartFailed, match="was killed by SIGKILL before it was ready"):
            await session.ready()
        with pytest.raises(ModelExited, match="was killed by SIGKILL"):
            await session.invoke(Call("it", b"1"))
    finally:
        await session.close()


@pytest.mark.anyio
@pytest.mark.parametrize("name", CONTRACTS)
async def test_launch_of_another_kind_is_refused(name: str) -> None:
    model = spec(name, command=("x",))
    instance: Any = FakeInstance()
    with pytest.raises(ValueError, match="it has no port"):
        contract_of(model.contract).session(model, instance, Launch((), {}), 1)
