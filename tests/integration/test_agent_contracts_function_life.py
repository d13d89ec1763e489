"""The function contract over time: chunks, concurrency, cancelling, starting, ending."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from jetfleet_agent.contracts import (
    Call,
    CallCancelled,
    InvalidOutput,
    ModelError,
    ModelExited,
)
from jetfleet_agent.runtimes import StartFailed
from models.serving import (
    MODELS,
    anyio_backend,  # noqa: F401 - a fixture
    both_loops,
    descriptors,
    function,
    lives,
    serving,
    started,
)
from waiting import until

pytestmark = pytest.mark.anyio


# -- generators


@both_loops
@pytest.mark.parametrize("name", ["count", "acount"])
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_yielded_values_are_chunks_and_their_list_is_the_output(
    name: str, concurrency: int
) -> None:
    async with serving(function(name), concurrency=concurrency) as model:
        assert await model.call({"to": 3}, stream=True) == [0, 1, 2]
        assert model.chunks == [0, 1, 2]
        assert await model.call({"to": 2}) == [0, 1]
        assert model.chunks == [0, 1, 2], "no chunks unless asked for"
        assert await model.call({"to": 0}, stream=True) == []


@both_loops
@pytest.mark.parametrize("name", ["count", "acount"])
async def test_chunks_arrive_while_the_generator_still_runs(name: str, tmp_path: Path) -> None:
    async with serving(function(name)) as model:
        closed = tmp_path / "closed"
        call = asyncio.create_task(
            model.call({"to": 10**6, "pause": 0.02, "closed": str(closed)}, stream=True)
        )
        await until(lambda: len(model.chunks) >= 2, "chunks arrive")
        assert not call.done()
        call.cancel()
        await until(closed.exists, "the generator was closed")


async def test_error_after_some_chunks_is_an_error_of_the_call() -> None:
    async with serving(function("count")) as model:
        with pytest.raises(ModelError, match="ValueError: enough"):
            await model.call({"to": 9, "raise_at": 1}, stream=True)
        assert model.chunks == [0, 1]
        with pytest.raises(InvalidOutput, match="yielded what is not JSON"):
            await model.call({"to": 9, "bad_at": 0}, stream=True)
        assert await model.call({"to": 1}) == [0]


# -- concurrency


async def test_calls_run_in_as_many_threads_as_the_concurrency_says() -> None:
    async with serving(function("together"), concurrency=3) as model:
        most = await asyncio.gather(*(model.call(0.2) for _ in range(6)))
    assert max(most) == 3


async def test_with_concurrency_one_calls_follow_each_other() -> None:
    async with serving(function("together")) as model:
        assert await asyncio.gather(*(model.call(0.02) for _ in range(4))) == [1] * 4


async def test_coroutines_run_together_and_answer_in_their_own_time() -> None:
    async with serving(function("aact"), concurrency=64) as model:
        begun = time.monotonic()
        pauses = [0.3 - 0.004 * n for n in range(64)]
        assert await asyncio.gather(*map(model.call, pauses)) == pauses
        assert time.monotonic() - begun < 2


# -- cancelling


@both_loops
@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("name", ["count", "acount"])
async def test_cancelling_a_generator_closes_it_and_ends_its_call(
    name: str, concurrency: int, tmp_path: Path
) -> None:
    async with serving(function(name), concurrency=concurrency) as model:
        closed = tmp_path / "closed"
        value = {"to": 10**6, "pause": 0.02, "closed": str(closed)}
        call = asyncio.create_task(model.call(value, call_id="it", stream=True))
        await until(lambda: bool(model.chunks), "the generator runs")
        assert await model.session.cancel("it") is True
        with pytest.raises(CallCancelled):
            await call
        assert closed.exists()
        assert await model.call({"to": 1}) == [0]


async def test_cancelling_an_async_generator_that_never_waits_stops_it() -> None:
    async with serving(function("acount")) as model:
        call = asyncio.create_task(model.call({"to": 10**9}, call_id="it", stream=True))
        await until(lambda: bool(model.chunks), "the generator runs")
        await model.session.cancel("it")
        with pytest.raises(CallCancelled):
            await call


@both_loops
async def test_cancelling_a_coroutine_interrupts_where_it_waits() -> None:
    async with serving(function("aact"), concurrency=2) as model:
        call = asyncio.create_task(model.call(60, call_id="it"))
        assert await model.call(0.1) == 0.1  # by then the other one waits
        assert await model.session.cancel("it") is True
        with pytest.raises(CallCancelled):
            await call


async def test_cancelling_right_after_the_call_still_gets_an_answer() -> None:
    async with serving(function("aact"), concurrency=2) as model:
        call = asyncio.create_task(model.call(60, call_id="it"))
        await asyncio.sleep(0)
        assert await model.session.cancel("it") is True
        with pytest.raises(CallCancelled):
            await call


async def test_cancelling_a_call_that_waits_for_its_turn_keeps_it_from_starting() -> None:
    async with serving(function("count")) as model:
        running = asyncio.create_task(model.call({"to": 20, "pause": 0.02}, stream=True))
        waiting = asyncio.create_task(model.call({"to": 10**6, "pause": 1}, call_id="it"))
        await until(lambda: bool(model.chunks), "the first runs, and the second was sent behind it")
        await model.session.cancel("it")
        with pytest.raises(CallCancelled):
            await waiting
        assert len(await running) == 20


async def test_cancelling_what_has_ended_is_no_error() -> None:
    async with serving(function("echo")) as model:
        await model.call(1, call_id="it")
        assert await model.session.cancel("it") is True
        assert await model.session.cancel("never was") is True


@both_loops
async def test_abandoned_calls_do_not_confuse_later_ones() -> None:
    async with serving(function("aact"), concurrency=4) as model:
        for n in range(50):
            call = asyncio.create_task(model.call(0.001 * (n % 3), call_id="same"))
            await asyncio.sleep(0.0005 * (n % 5))
            call.cancel()
            assert await model.call(f"after {n}", call_id="same") == f"after {n}"


async def test_reply_to_an_abandoned_plain_call_goes_nowhere() -> None:
    async with serving(function("together")) as model:
        call = asyncio.create_task(model.call(0.2))
        await until(lambda: "inside" in model.instance.tail(), "it runs")
        call.cancel()
        assert await model.call(0) == 1  # after the first has ended
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_error_of_the_chunk_callback_ends_its_call_only() -> None:
    def on_chunk(chunk: bytes) -> None:
        raise ConnectionError("the broker is away")

    async with serving(function("count")) as model:
        with pytest.raises(ConnectionError, match="broker"):
            await model.session.invoke(Call("1", b'{"to": 3}', stream=True, on_chunk=on_chunk))
        assert await model.call({"to": 1}) == [0]


# -- starting and ending


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("echo", "import_fails.py", "RuntimeError: no weights here"),
        ("echo", "import_sys_exits.py", "SystemExit: configuration missing"),
        ("nothing", "behaviours.py", "behaviours.py has no function 'nothing'; it has: echo,"),
        ("echo", "missing.py", "there is no Python file"),
    ],
)
async def test_function_that_cannot_be_loaded_fails_the_start_and_says_why(
    name: str, file: str, reason: str
) -> None:
    async with started(function(name, file)) as model:
        with pytest.raises(StartFailed) as caught:
            await model.session.ready()
        assert caught.value.reason.startswith("cannot load ")
        assert reason in caught.value.reason
        assert await asyncio.wait_for(asyncio.shield(model.instance.exited), 5) == 1


async def test_traceback_and_output_of_a_failed_import_are_in_the_log_tail() -> None:
    async with started(function("echo", "import_fails.py")) as model:
        with pytest.raises(StartFailed) as caught:
            await model.session.ready()
        tail = "\n".join(caught.value.log_tail)
        assert 'raise RuntimeError("no weights here")' in tail
        assert "function_host" not in tail


@both_loops
async def test_process_that_ends_while_importing_fails_the_start() -> None:
    async with started(function("echo", "import_exits.py")) as model:
        with pytest.raises(StartFailed, match="exited with status 9 before it was ready") as caught:
            await model.session.ready()
        assert caught.value.log_tail == ("about to go",)


@both_loops
async def test_start_that_takes_too_long_fails() -> None:
    async with started(function("echo", "import_slow.py", startup_timeout_s=0.5)) as model:
        with pytest.raises(StartFailed, match=r"was not loaded within 0\.5 s"):
            await model.session.ready()


async def test_directory_that_is_not_there_fails_the_start() -> None:
    with pytest.raises(StartFailed, match="there is no directory"):
        async with started(function("echo", "no/where.py")):
            raise AssertionError("started")


@both_loops
async def test_closed_session_ends_calls_and_its_process() -> None:
    async with serving(function("aact"), concurrency=2) as model:
        call = asyncio.create_task(model.call(60))
        assert await model.call(0) == 0  # by then the other one runs
        await model.session.close()
        with pytest.raises(ModelExited, match="the session was closed"):
            await call
        with pytest.raises(ModelExited, match="the session was closed"):
            await model.call(1)
        assert await asyncio.wait_for(asyncio.shield(model.instance.exited), 5) == 0


@both_loops
async def test_process_that_loses_its_channel_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "closer.py"
    file.write_text(
        "import os, time\ndef close(_):\n    os.closerange(3, 100)\n    time.sleep(60)\n"
    )
    async with serving(function("close", str(file))) as model:
        with pytest.raises(ModelExited, match="closed its channel"):
            await model.call(1)
        assert await asyncio.wait_for(asyncio.shield(model.instance.exited), 5) < 0


@both_loops
async def test_nothing_stays_open_after_many_starts_and_stops() -> None:
    async with serving(function("echo")):
        pass  # what is opened once for all is open now
    before = descriptors()
    for _ in range(3):
        async with serving(function("echo")) as model:
            await model.call(1)
        assert not lives(model.instance.pid or 0)
    assert descriptors() == before


AGENT = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from models.serving import *
from waiting import until

async def main():
    async with serving(function({name!r}), concurrency={concurrency}) as model:
        task = asyncio.create_task(model.call("hang"))

        def said():
            return [line for line in model.instance.tail() if line.startswith("hanging")]

        (line,) = await until(said, "the call runs")
        print(model.instance.pid, line.removeprefix("hanging") or 0, flush=True)
        await task

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("name", "concurrency"), [("act", 1), ("act", 2), ("aact", 1), ("spawn", 1)]
)
async def test_killed_agent_leaves_no_orphan(name: str, concurrency: int) -> None:
    program = AGENT.format(tests=str(MODELS.parent), name=name, concurrency=concurrency)
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout is not None
    pid, other = map(int, (await agent.stdout.readline()).split())
    assert lives(pid)
    os.kill(agent.pid, signal.SIGKILL)
    await agent.wait()
    await until(lambda: not lives(pid), "the host process is gone", 2)
    await until(lambda: not other or not lives(other), "what it started is gone", 2)
    await agent.stdout.read()
