"""The function contract with real host processes: calls and what can be wrong with them."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from jetfleet_agent.contracts import (
    Call,
    CallCancelled,
    InvalidOutput,
    ModelError,
    ModelExited,
)
from models.serving import (
    MODELS,
    anyio_backend,  # noqa: F401 - a fixture
    both_loops,
    function,
    serving,
)
from waiting import until

pytestmark = pytest.mark.anyio


# -- calls


@both_loops
async def test_function_gets_the_input_and_its_return_value_is_the_output() -> None:
    async with serving(function("echo")) as model:
        for value in ({"a": [1, 2.5, None, True, "ü€😀"]}, "text", 0, None, [], 2**70):
            assert await model.call(value) == value


async def test_raw_json_text_of_the_output_is_compact_and_in_utf_8() -> None:
    async with serving(function("echo")) as model:
        output = await model.session.invoke(Call("1", b' { "\\u00fc" : [ 1 , 2 ] } '))
    assert output == '{"ü":[1,2]}'.encode()


async def test_function_runs_at_home_with_its_own_name_and_without_our_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JETFLEET_CREDENTIALS", "secret")
    async with serving(function("about", env={"GREETING": "hello"})) as model:
        about = await model.call(None)
    file = MODELS / "behaviours.py"
    assert about == {
        "name": "behaviours",
        "file": str(file),
        "argv": [str(file)],
        "cwd": str(MODELS),
        "first_path": str(MODELS),
        "thread": True,
        "stdlib_json": True,
        "settings": [],
        "greeting": "hello",
        "pid": model.instance.pid,
    }


async def test_relative_file_is_found_from_the_directory_of_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(MODELS.parent)
    relative = function("echo").model_copy(update={"function": "models/behaviours.py:echo"})
    async with serving(relative) as model:
        assert await model.call(1) == 1


async def test_file_named_like_a_standard_module_breaks_nothing() -> None:
    async with serving(function("echo", "shadowing/struct.py")) as model:
        assert await model.call(1) == {"echo": 1}


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("wrapped", 5),
        ("instance", {"from": "object", "value": 5}),
        ("method", {"from": "method", "value": 5}),
        ("partial", ["p", 5]),
    ],
)
async def test_any_callable_can_be_served(name: str, output: Any) -> None:
    async with serving(function(name)) as model:
        assert await model.call(5) == output


@both_loops
@pytest.mark.parametrize("name", ["echo", "wrapped"])
async def test_tens_of_megabytes_pass_in_both_directions(name: str) -> None:
    async with serving(function(name), concurrency=2) as model:
        value = "x" * 30_000_000
        assert await asyncio.gather(model.call(value), model.call("small")) == [value, "small"]


@both_loops
async def test_many_large_calls_at_once_do_not_block_each_other() -> None:
    async with serving(function("echo"), concurrency=4) as model:
        values = [[n] * 500_000 for n in range(8)]
        assert await asyncio.gather(*map(model.call, values)) == values


# -- errors of the model


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_exception_is_a_model_error_with_the_traceback_of_the_model_only(
    concurrency: int,
) -> None:
    async with serving(function("act"), concurrency=concurrency) as model:
        with pytest.raises(ModelError) as caught:
            await model.call("raise")
        assert caught.value.code == "model_error"
        assert caught.value.message == "KeyError: 'missing'"
        assert 'behaviours.py", line' in caught.value.detail
        assert 'return {}["missing"]' in caught.value.detail
        assert "host_calls" not in caught.value.detail
        assert await model.call("next") == "next"


async def test_exception_of_a_coroutine_is_a_model_error() -> None:
    async with serving(function("aact")) as model:
        for value, message in (
            ("raise", "ValueError: async trouble"),
            ("exit", "SystemExit: 3"),
            ("cancelled", "CancelledError"),
        ):
            with pytest.raises(ModelError) as caught:
                await model.call(value)
            assert caught.value.message == message
            assert not isinstance(caught.value, CallCancelled)
        assert await model.call("next") == "next"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("exit", "SystemExit: 3"),
        ("interrupt", "KeyboardInterrupt"),
        ("raise unprintable", "Unprintable: (its message cannot be read)"),
    ],
)
async def test_attempts_to_exit_are_errors_that_the_process_survives(
    value: str, message: str
) -> None:
    async with serving(function("act")) as model:
        with pytest.raises(ModelError) as caught:
            await model.call(value)
        assert caught.value.message == message
        assert await model.call("next") == "next"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("nan", "Out of range float values"),
        ("infinity", "Out of range float values"),
        ("bytes", "bytes is not JSON serializable"),
        ("object", "object is not JSON serializable"),
        ("tuple keys", "keys must be str"),
        ("surrogate", "surrogates not allowed"),
        ("circular", "Circular reference"),
        ("deep", "RecursionError"),
        ("hostile", "not for you"),
    ],
)
async def test_what_is_not_json_is_an_invalid_output_that_the_process_survives(
    value: str, reason: str
) -> None:
    async with serving(function("act")) as model:
        with pytest.raises(InvalidOutput) as caught:
            await model.call(value)
        assert caught.value.code == "invalid_output"
        assert reason in caught.value.message
        assert await model.call("next") == "next"


@pytest.mark.parametrize("name", ["big", "count"])
async def test_output_over_the_limit_is_an_invalid_output(name: str) -> None:
    async with serving(function(name), max_output_bytes=1000) as model:
        value: Any = 2000 if name == "big" else {"to": 10**9}
        with pytest.raises(InvalidOutput, match="1000 is the most"):
            await model.call(value)
        assert await model.call(1 if name == "big" else {"to": 1}) in ("a", [0])


@both_loops
async def test_hard_exit_during_a_call_tells_the_status_and_the_last_words() -> None:
    async with serving(function("act")) as model:
        with pytest.raises(ModelExited) as caught:
            await model.call("os._exit")
        assert caught.value.code == "model_exited"
        assert caught.value.message == "the process exited with status 7"
        assert "last words" in caught.value.detail
        with pytest.raises(ModelExited):
            await model.call("next")


@both_loops
async def test_segfault_during_a_call_ends_all_calls_and_shows_where_it_was() -> None:
    async with serving(function("act"), concurrency=3) as model:
        hanging = [asyncio.create_task(model.call("hang")) for _ in range(2)]
        await until(lambda: model.instance.tail().count("hanging") == 2, "both calls run")
        with pytest.raises(ModelExited, match="was killed by SIGSEGV") as caught:
            await model.call("segfault")
        assert "behaviours.py" in caught.value.detail  # by faulthandler
        for task in hanging:
            with pytest.raises(ModelExited):
                await task
        assert model.instance.exited.result() == -signal.SIGSEGV


@both_loops
async def test_hanging_call_ends_when_its_process_is_stopped() -> None:
    async with serving(function("act")) as model:
        call = asyncio.create_task(model.call("hang", call_id="stuck"))
        await until(lambda: "hanging" in model.instance.tail(), "the call runs")
        assert await model.session.cancel("stuck") is False
        await model.instance.stop(0.1)
        with pytest.raises(ModelExited):
            await call


async def test_megabytes_of_prints_neither_block_the_model_nor_fill_memory() -> None:
    async with serving(function("chatter")) as model:
        assert await model.call(20) == "said"
        await until(lambda: model.instance.tail()[-1] == "the end", "all output was read")
        tail = model.instance.tail()
        assert len(tail) == 50
        assert tail[-2].endswith("... (1000000 bytes)")
        assert sum(map(len, tail)) < 50 * 4200
