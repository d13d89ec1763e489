"""The process runtime, with real processes."""

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

from jetfleet.specs import RuntimeName
from jetfleet_agent.runtimes import CHANNEL_ENV, Launch, StartFailed, runtime_of
from jetfleet_agent.runtimes.guard import Guard
from jetfleet_agent.runtimes.process import ProcessInstance, ProcessRuntime
from models.serving import descriptors, lives
from up_process import processes_of
from waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


_started: list[ProcessInstance] = []


@pytest.fixture(autouse=True)
async def leave_nothing() -> AsyncIterator[None]:
    """A test that fails leaves no process either."""
    yield
    while _started:
        await _started.pop().stop(0)


async def start(*argv: str, **fields: Any) -> ProcessInstance:
    runtime = runtime_of(RuntimeName.PROCESS)
    assert isinstance(runtime, ProcessRuntime)
    instance = await runtime.start(Launch(argv, fields.pop("env", {}), **fields))
    _started.append(instance)
    return instance


async def python(program: str, **fields: Any) -> ProcessInstance:
    return await start(sys.executable, "-c", program, **fields)


async def status_of(instance: ProcessInstance) -> int:
    return await asyncio.wait_for(asyncio.shield(instance.exited), 10)


async def test_exit_status_comes_after_the_last_output() -> None:
    instance = await python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(4)")
    assert await status_of(instance) == 4
    assert instance.tail() == ("out", "err")
    await instance.stop(1)


async def test_signal_is_a_negative_status() -> None:
    instance = await python("import os; os.kill(os.getpid(), 9)")
    assert await status_of(instance) == -signal.SIGKILL
    await instance.stop(1)


async def test_stop_lets_a_process_end_in_its_own_way() -> None:
    instance = await python(
        "import os, signal, sys, time\n"
        "def end(*_): print('tidied up'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); os.write(1, b'up\\n'); time.sleep(60)"
    )
    await until(lambda: instance.tail() == ("up",), "it runs")
    await instance.stop(10)
    assert instance.exited.result() == 0
    assert instance.tail() == ("up", "tidied up")


async def test_stop_kills_what_ignores_it_after_the_grace() -> None:
    instance = await python(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"
    )
    await until(lambda: instance.tail() == ("up",), "it runs")
    begun = time.monotonic()
    await instance.stop(0.3)
    assert 0.3 <= time.monotonic() - begun < 3
    assert instance.exited.result() == -signal.SIGKILL


async def test_cancelled_stop_kills_at_once() -> None:
    instance = await python(
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'deaf\\n'))\n"
        "os.write(1, b'up\\n'); time.sleep(60)"
    )
    await until(lambda: instance.tail() == ("up",), "it runs")
    stopping = asyncio.create_task(instance.stop(60))
    await until(lambda: "deaf" in instance.tail(), "it was told to end")
    stopping.cancel()
    assert await status_of(instance) == -signal.SIGKILL
    await instance.stop(1)


async def test_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    starting = asyncio.create_task(python(f"import time; time.sleep(60)  # {tmp_path}"))
    await asyncio.sleep(0)  # it is started, and waits for its output to be connected
    assert processes_of(tmp_path)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: not processes_of(tmp_path), "it is gone")


async def test_stop_ends_children_too_and_gives_them_the_same_grace(tmp_path: Path) -> None:
    note = tmp_path / "note"
    child = (
        "import os, signal, sys, time, pathlib\n"
        "def end(*_): time.sleep(0.2); pathlib.Path(sys.argv[1]).write_text('saved'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); os.write(1, b'up\\n'); time.sleep(60)"
    )
    instance = await python(
        "import subprocess, sys, time\n"
        f"c = subprocess.Popen([sys.executable, '-c', {child!r}, {str(note)!r}])\n"
        "print(c.pid); time.sleep(60)"
    )
    await until(lambda: "up" in (said := "".join(instance.tail())) and said != "up", "both run")
    pid = int("".join(filter(str.isdecimal, "".join(instance.tail()))))
    await instance.stop(10)
    assert note.read_text() == "saved"
    assert not lives(pid)


async def test_children_of_a_process_that_died_are_killed() -> None:
    instance = await python(
        "import os, subprocess\n"
        "print(subprocess.Popen(['sleep', '60']).pid, flush=True); os._exit(1)"
    )
    assert await status_of(instance) == 1
    (pid,) = map(int, instance.tail())
    await instance.stop(1)
    assert not lives(pid)


async def test_stop_of_what_has_ended_returns_and_can_be_repeated() -> None:
    instance = await python("pass")
    await status_of(instance)
    await instance.stop(1)
    await instance.stop(1)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("no-such-program",), "cannot run no-such-program: No such file"),
        (("/etc/passwd",), "cannot run /etc/passwd: Permission denied"),
    ],
)
async def test_program_that_cannot_run_fails_the_start(argv: tuple[str, ...], reason: str) -> None:
    before = descriptors()
    with pytest.raises(StartFailed) as caught:
        await start(*argv, channel=True)
    assert caught.value.reason.startswith(reason)
    assert descriptors() - before <= 1, "the channel was closed (the guard's pipe may be new)"


async def test_environment_is_ours_without_settings_and_with_the_models_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JETFLEET_NATS_URL", "nats://secret")
    monkeypatch.setenv("HF_HOME", "/models")
    instance = await python(
        "import os, shutil; e = os.environ\n"
        "print(e.get('JETFLEET_NATS_URL'), e['HF_HOME'], e['MINE'], shutil.which('python'))",
        env={"MINE": "yes"},
    )
    await status_of(instance)
    python_beside = Path(sys.executable).with_name("python")
    assert instance.tail() == (f"None /models yes {python_beside}",)
    await instance.stop(1)


async def test_channel_is_the_only_file_that_a_process_inherits() -> None:
    instance = await python(
        "import os, socket\n"
        "print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])\n"
        f"s = socket.socket(fileno=int(os.environ['{CHANNEL_ENV}']))\n"
        "s.sendall(s.recv(10))",
        channel=True,
    )
    channel = instance.channel
    assert channel is not None
    channel.sendall(b"ping")
    assert channel.recv(10) == b"ping"
    await status_of(instance)
    assert instance.tail()[0].count(",") == 3, "stdin, stdout, stderr, channel"
    await instance.stop(1)
    assert channel.fileno() == -1, "closed with the process"


async def test_process_has_no_core_dumps_and_goes_before_the_agent_when_memory_is_short() -> None:
    instance = await python(
        "import resource; print(resource.getrlimit(resource.RLIMIT_CORE)[0],"
        " open('/proc/self/oom_score_adj').read().strip())"
    )
    await status_of(instance)
    assert instance.tail() == ("0 500",)
    await instance.stop(1)


async def test_output_without_line_ends_takes_bounded_memory() -> None:
    instance = await python("import sys; [sys.stdout.write('z' * 100_000) for _ in range(200)]")
    assert await status_of(instance) == 0
    (line,) = instance.tail()
    assert line == "z" * 4096 + " ... (20000000 bytes)"
    await instance.stop(1)


async def test_process_that_left_the_group_delays_nothing() -> None:
    instance = await python(
        "import subprocess\nprint(subprocess.Popen(['sleep', '60'], start_new_session=True).pid)"
    )
    begun = time.monotonic()
    assert await status_of(instance) == 0
    await instance.stop(1)
    assert time.monotonic() - begun < 5
    os.kill(int(instance.tail()[0]), signal.SIGKILL)  # it had escaped; tests leave nothing


async def test_guard_that_was_killed_is_started_again_and_still_guards() -> None:
    guard = Guard()
    victim = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    other = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    guard.watch(victim.pid)
    first = guard.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: not lives(first), "the guard is gone")
    guard.watch(other.pid)
    assert guard.pid != first
    guard.forget(other.pid)
    guard.close()  # as the end of the agent does
    assert await asyncio.wait_for(victim.wait(), 5) == -signal.SIGKILL
    assert other.returncode is None
    other.kill()
    await other.wait()
