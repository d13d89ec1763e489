"""What the contracts over HTTP share, against a small real server of each kind (tests/models)."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from jetfleet.specs import ContractName, ModelSpec
from jetfleet_agent.contracts import InvalidOutput, ModelError, ModelExited
from jetfleet_agent.contracts import http as http_module
from jetfleet_agent.runtimes import StartFailed
from models.serving import (
    Served,
    anyio_backend,  # noqa: F401 - a fixture
    both_loops,
    descriptors,
    fake,
    lives,
    serving,
    started,
)
from waiting import until

pytestmark = pytest.mark.anyio


class Kind(NamedTuple):
    """A contract: how a fake of it is asked, and where it is asked whether it is ready."""

    contract: ContractName
    page: str

    def asked(self, text: str) -> dict[str, Any]:
        if self.contract is ContractName.OPENAI:
            return {"messages": [{"role": "user", "content": text}]}
        if self.contract is not ContractName.OPENINFERENCE:
            return {"text": text}
        tensor = {"name": "x", "shape": [1], "datatype": "INT64", "data": [len(text)]}
        return {"inputs": [tensor], "parameters": {"do": text}}

    def answered(self, output: Any, text: str) -> bool:
        if self.contract is ContractName.OPENAI:
            return bool(output["choices"][0]["message"]["content"].rstrip() == text)
        if self.contract is ContractName.COG:
            return bool(output == text.split(" "))
        if self.contract is ContractName.SAGEMAKER:
            return bool(output == {"text": {"text": text}})
        return bool(output["outputs"][0]["data"] == [2 * len(text)])


KINDS = [
    Kind(ContractName.OPENAI, "/health"),
    Kind(ContractName.COG, "/health-check"),
    Kind(ContractName.SAGEMAKER, "/ping"),
    Kind(ContractName.OPENINFERENCE, "/v2/health/ready"),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.contract.value)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
async def model(kind: Kind, tmp_path: Path) -> AsyncIterator[Served]:
    spec = fake(kind.contract, env={"NOTE": str(tmp_path / "note")})
    async with serving(spec, concurrency=4, max_output_bytes=1_000_000) as served:
        yield served


# -- calls


@both_loops
@pytest.mark.parametrize("stream", [False, True])
async def test_call_is_answered(kind: Kind, model: Served, stream: bool) -> None:
    for text in ("good morning", "x" * 200_000):
        output = await model.call(kind.asked(text), stream=stream)
        assert kind.answered(output, text)


@pytest.mark.parametrize("value", ["text", None, 3])
async def test_input_that_is_no_object_is_a_model_error_that_says_what_is(
    kind: Kind, model: Served, value: Any
) -> None:
    if kind.contract is ContractName.SAGEMAKER:  # takes any body
        assert await model.call(value) == {"text": value}
        return
    said = f"the {kind.contract} contract is an"
    if kind.contract is ContractName.OPENAI:
        said = "'messages'"  # there are several kinds of input
    with pytest.raises(ModelError, match=said):
        await model.call(value)


# -- errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("error", ModelError, "answered 500: a stack trace"),
        ("cut", ModelError, "the connection to the model's server broke"),
        ("not json", InvalidOutput, "not JSON"),
        ("flood", InvalidOutput, "over 1000000 bytes"),
    ],
)
async def test_trouble_with_one_call_is_its_own_error(
    kind: Kind, model: Served, text: str, error: type[Exception], message: str, stream: bool
) -> None:
    with pytest.raises(error, match=message):
        await model.call(kind.asked(text), stream=stream)
    assert kind.answered(await model.call(kind.asked("next")), "next")


@both_loops
@pytest.mark.parametrize(
    ("text", "message"), [("crash", "was killed by SIGSEGV"), ("exit", "exited with status 5")]
)
async def test_server_that_ends_during_a_call_is_an_exit(
    kind: Kind, model: Served, text: str, message: str
) -> None:
    with pytest.raises(ModelExited, match=message) as caught:
        await model.call(kind.asked(text))
    if text == "crash":
        assert "crashing now" in caught.value.detail
    with pytest.raises(ModelExited):
        await model.call(kind.asked("next"))


async def test_stopping_a_hanging_server_ends_its_calls_as_exits(
    kind: Kind, model: Served, tmp_path: Path
) -> None:
    call = asyncio.create_task(model.call(kind.asked("hang"), call_id="it"))
    await until((tmp_path / "note").exists, "it hangs")
    if kind.contract in (ContractName.SAGEMAKER, ContractName.OPENINFERENCE):
        assert await model.session.cancel("it") is False, "only its end ends the call"
    await model.instance.stop(1)
    with pytest.raises(ModelExited, match="SIGTERM"):
        await call
    assert await model.session.cancel("it") is True


async def test_a_server_whose_end_is_told_late_has_ended_all_the_same(
    kind: Kind, model: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is restarted tells of its containers' ends when it is back."""
    monkeypatch.setattr(http_module, "EXIT_WAIT_S", 0.05)
    told = asyncio.get_running_loop().create_future()
    model.session._instance = SimpleNamespace(exited=told, tail=model.instance.tail)
    call = asyncio.create_task(model.call(kind.asked("hang")))
    await until((tmp_path / "note").exists, "it hangs")
    os.kill(model.instance.pid or 0, signal.SIGKILL)
    await asyncio.wait((model.instance.exited,))
    await asyncio.wait((call,), timeout=0.5)
    assert not call.done()
    told.set_result(-signal.SIGKILL)
    with pytest.raises(ModelExited, match="SIGKILL"):
        await call


@both_loops
async def test_abandoned_call_closes_its_connection(
    kind: Kind, model: Served, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    call = asyncio.create_task(model.call(kind.asked("hang")))
    await until(note.exists, "it hangs")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    if kind.contract is not ContractName.COG:  # its model would not see it
        await until(lambda: note.read_text() == "caller left", "the server noticed")


async def test_closed_session_ends_calls(kind: Kind, model: Served, tmp_path: Path) -> None:
    call = asyncio.create_task(model.call(kind.asked("hang")))
    await until((tmp_path / "note").exists, "it hangs")
    await model.session.close()
    for ended in (call, model.call(kind.asked("next"))):
        with pytest.raises(ModelExited, match="the session was closed"):
            await ended


# -- starting and ending


async def test_ready_waits_until_the_server_has_loaded(kind: Kind) -> None:
    async with started(fake(kind.contract, "--load-s", "0.5")) as model:
        begun = time.monotonic()
        await model.session.ready()
        assert time.monotonic() - begun > 0.3
        if kind.contract is ContractName.OPENAI:  # the others' fakes say nothing of it
            assert "503" in "\n".join(model.instance.tail())
        assert kind.answered(await model.call(kind.asked("a")), "a")


async def test_server_that_never_gets_ready_fails_the_start_in_time(kind: Kind) -> None:
    async with started(fake(kind.contract, "--never", startup_timeout_s=0.8)) as model:
        with pytest.raises(StartFailed, match=rf"not ready within 0\.8 s \(GET {kind.page}: "):
            await model.session.ready()


async def test_server_that_never_listens_fails_the_start_in_time(kind: Kind) -> None:
    spec = ModelSpec(
        name="m", contract=kind.contract, command=("sleep", "60"), startup_timeout_s=0.3
    )
    async with started(spec) as model:
        with pytest.raises(StartFailed, match=r"Connect call failed.*does it listen on the port"):
            await model.session.ready()


async def test_server_that_ends_before_it_is_ready_fails_the_start_at_once(kind: Kind) -> None:
    async with started(fake(kind.contract, "--unknown-option")) as model:
        with pytest.raises(StartFailed, match="exited with status 2 before it was ready") as caught:
            await model.session.ready()
        assert "unrecognized arguments: --unknown-option" in caught.value.log_tail[-1]


async def test_nothing_stays_open_after_many_starts_and_stops(kind: Kind) -> None:
    async with serving(fake(kind.contract)):
        pass  # what is opened once for all is open now
    before = descriptors()
    for _ in range(2):
        async with serving(fake(kind.contract)) as model:
            await model.call(kind.asked("a"))
        assert not lives(model.instance.pid or 0)
    assert descriptors() == before
