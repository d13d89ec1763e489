"""`jetfleet up`: starts, heals, stops, and leaves nothing behind."""

from __future__ import annotations

import http.client
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from up_process import PROGRAMS, Up, free_port_options, processes_of
from waiting import eventually

MODEL = "def shout(value):\n    return value.upper()\n"
FLEET = """\
{kind: model, name: shout, function: shout.py:shout}
---
{kind: job, name: shout, model: shout, ack_wait_s: 2}
"""


def apply(up: Up, folder: Path) -> None:
    (folder / "shout.py").write_text(MODEL)
    (folder / "fleet.yaml").write_text(FLEET)
    applied = up.cli("apply", str(folder / "fleet.yaml"))
    assert applied.returncode == 0, applied.stderr


def shout(up: Up, word: str) -> str:
    result = up.cli("run", "shout", "--input", f'"{word}"')
    assert result.returncode == 0, result.stderr + up.log.read_text()
    return result.stdout.strip()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One for the tests that do not stop it."""
    folder = tmp_path_factory.mktemp("up")
    running = Up.start(folder)
    try:
        apply(running.wait_ready(), folder)
        yield running
    finally:
        running.close()


def test_ready_means_that_every_program_runs_and_http_answers(up: Up) -> None:
    assert sorted(up.pids()) == sorted(PROGRAMS)
    host = up.endpoints["http_url"].removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=5)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()


def test_ready_says_where_things_are_and_which_promise_holds(up: Up) -> None:
    assert Path(up.endpoints["credentials"], "operator.creds").stat().st_mode & 0o777 == 0o600
    assert "synced to disk every second" in up.endpoints["durability"]
    assert up.endpoints["pid"] == up.process.pid


def test_a_second_one_on_the_same_folder_says_so_and_ends(up: Up) -> None:
    second = up.cli("up", *free_port_options())
    assert second.returncode == 1
    assert "jetfleet is already running on" in second.stderr
    assert second.stderr.startswith("error: ")
    assert sorted(up.pids()) == sorted(PROGRAMS)


def test_a_taken_port_is_named_with_the_option_that_chooses_another(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        third = Up.start(tmp_path, "--ws-port", port)
        assert third.process.wait(30) == 1
        third.close()
    assert f"port {port} on 127.0.0.1 is taken" in third.log.read_text()
    assert "--ws-port" in third.log.read_text()
    assert not processes_of(tmp_path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_is_killed_comes_back_and_work_goes_on(up: Up, program: str) -> None:
    assert shout(up, "before") == "BEFORE"
    old = eventually(lambda: up.pids().get(program))
    os.kill(old, signal.SIGKILL)
    eventually(lambda: up.pids().get(program, old) != old)
    assert shout(up, f"after {program}") == f"AFTER {program.upper()}"
    assert up.process.poll() is None


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_in_order_and_what_was_declared_is_there_again(
    tmp_path: Path, signum: signal.Signals
) -> None:
    first = Up.start(tmp_path)
    try:
        apply(first.wait_ready(), tmp_path)
        assert shout(first, "one") == "ONE"
        assert first.stop(signum) == 0
    finally:
        first.close()
    assert "!" not in first.log.read_text()  # nothing ended unasked, nothing had to be killed
    assert not processes_of(tmp_path)
    assert not (first.data_dir / "up.json").exists()
    if signum is signal.SIGTERM:
        return  # once is enough to see it come back
    second = Up.start(tmp_path)
    try:
        second.wait_ready()
        assert shout(second, "two") == "TWO"
    finally:
        second.close()


def test_nothing_is_left_when_up_itself_is_killed(tmp_path: Path) -> None:
    up = Up.start(tmp_path)
    try:
        apply(up.wait_ready(), tmp_path)
        assert shout(up, "word") == "WORD"
        assert len(processes_of(tmp_path)) > len(PROGRAMS)  # a replica of its own runs
        up.process.kill()
        up.process.wait()
        eventually(lambda: not processes_of(tmp_path), within_s=60)
    finally:
        up.close()
