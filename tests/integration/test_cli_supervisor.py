"""The supervisor with real processes: order, restarts, ends, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models.serving import lives
from waiting import eventually

# Runs three programs under guard and supervisor. Each writes "<name> <pid>" to the folder's
# `started`, and its name to `stopped` when it gets SIGTERM. The middle one has a child of its own
# in another session, as an agent's model has.
HARNESS = """
import anyio, sys
from jetfleet import processes, supervisor
from jetfleet.errors import StartupError
from jetfleet.supervisor import Journal, Program, Supervisor

folder, middle = sys.argv[1:3]
def program(name, behaviour="plain", **more):
    return Program(name, [sys.executable, folder + "/program.py", folder, name, behaviour], **more)

processes.guard(3.0)
fleet = Supervisor([
    program("first", gate=True, ready=lambda: anyio.Path(folder, "started").exists()),
    program("middle", middle, grace_s=0.5),
    program("last"),
], Journal())

async def ready():
    print("READY", processes.os.getpid(), flush=True)

try:
    anyio.run(fleet.run, ready)
except StartupError as error:
    sys.exit(f"refused: {error}")
"""

PROGRAM = """
import os, signal, subprocess, sys, time
folder, name, behaviour = sys.argv[1:4]
def record(file, text):
    with open(f"{folder}/{file}", "a") as out:
        out.write(text + "\\n")
def stop(*_):
    record("stopped", name)
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "deaf" else stop)
record("started", f"{name} {os.getpid()}")
if behaviour == "broken":
    sys.exit("the reason why")
if behaviour == "parent":
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    record("started", f"model {child.pid}")
print("hello from", name, "\\x1b[2Jtricks", flush=True)
while True:
    time.sleep(1000)
"""


class Fleet:
    """A running harness."""

    def __init__(self, folder: Path, middle: str) -> None:
        self.folder = folder
        (folder / "harness.py").write_text(textwrap.dedent(HARNESS))
        (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(folder / "harness.py"), str(folder), middle],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def wait_ready(self) -> int:
        """The pid of the supervisor inside the guard."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("READY"), self.log.read_text()
        return int(line.split()[1])

    def started(self, name: str) -> list[int]:
        """Pids of every start of a program so far."""
        text = (self.folder / "started").read_text() if (self.folder / "started").exists() else ""
        return [int(line.split()[1]) for line in text.splitlines() if line.split()[0] == name]

    def everything(self) -> list[int]:
        return [pid for name in ("first", "middle", "last", "model") for pid in self.started(name)]

    def stopped(self) -> list[str]:
        return (self.folder / "stopped").read_text().split()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Fleet]]:
    fleets: list[Fleet] = []

    def make(middle: str = "plain") -> Fleet:
        fleets.append(Fleet(tmp_path, middle))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.process.kill()
        fleet.process.wait()
        assert fleet.process.stdout is not None
        fleet.process.stdout.close()


def test_programs_start_in_order_and_stop_in_the_opposite_one(
    start: Callable[..., Fleet],
) -> None:
    fleet = start()
    fleet.wait_ready()
    eventually(lambda: len(fleet.everything()) == 3)
    eventually(lambda: fleet.log.read_text().count("hello") == 3)
    fleet.process.send_signal(signal.SIGINT)
    assert fleet.process.wait(10) == 0
    assert fleet.stopped() == ["last", "middle", "first"]
    assert not [pid for pid in fleet.everything() if lives(pid)]


def test_the_merged_log_names_the_program_and_is_free_of_control_characters(
    start: Callable[..., Fleet],
) -> None:
    fleet = start()
    fleet.wait_ready()
    eventually(lambda: "hello from middle" in fleet.log.read_text())
    assert re.search(
        r"^\d\d:\d\d:\d\d\.\d{3} middle │ hello from middle tricks$",
        fleet.log.read_text(),
        re.MULTILINE,
    )


def test_a_program_that_is_killed_is_started_again_and_its_orphans_are_ended(
    start: Callable[..., Fleet],
) -> None:
    fleet = start("parent")
    fleet.wait_ready()
    eventually(lambda: len(fleet.started("model")) == 1)
    [model] = fleet.started("model")
    os.kill(fleet.started("middle")[0], signal.SIGKILL)
    eventually(lambda: len(fleet.started("model")) == 2)
    assert not lives(model)
    assert len(fleet.started("first")) == len(fleet.started("last")) == 1
    assert "killed by SIGKILL after" in fleet.log.read_text()
    assert "starting again in 0.2 s" in fleet.log.read_text()


def test_a_program_deaf_to_sigterm_is_killed_after_its_grace(start: Callable[..., Fleet]) -> None:
    fleet = start("deaf")
    fleet.wait_ready()
    eventually(lambda: len(fleet.everything()) == 3)
    fleet.process.terminate()
    assert fleet.process.wait(10) == 0
    assert "did not stop within" in fleet.log.read_text()
    assert fleet.stopped() == ["last", "first"]


def test_a_second_signal_kills_what_is_left(start: Callable[..., Fleet]) -> None:
    fleet = start("deaf")
    inner = fleet.wait_ready()
    eventually(lambda: len(fleet.everything()) == 3)
    os.kill(inner, signal.SIGTERM)
    eventually(lambda: "once more to kill" in fleet.log.read_text())
    os.kill(inner, signal.SIGTERM)
    assert fleet.process.wait(10) == 0
    assert not [pid for pid in fleet.everything() if lives(pid)]


def test_a_program_that_cannot_start_stops_everything_and_says_why(
    start: Callable[..., Fleet],
) -> None:
    fleet = start("broken")
    assert fleet.process.wait(15) == 1
    assert len(fleet.started("middle")) == 3
    assert (
        "refused: middle cannot start (3 times: exited with status 1); "
        "its last line: the reason why" in fleet.log.read_text()
    )
    assert not [pid for pid in fleet.everything() if lives(pid)]


@pytest.mark.parametrize("who", ["guard", "supervisor", "both"])
def test_nothing_is_left_behind_when_the_one_who_runs_it_is_killed(
    start: Callable[..., Fleet], who: str
) -> None:
    fleet = start("plain" if who == "both" else "parent")
    inner = fleet.wait_ready()
    eventually(lambda: len(fleet.everything()) == (3 if who == "both" else 4))
    victims = {"guard": [fleet.process.pid], "supervisor": [inner]}
    for pid in victims.get(who, [fleet.process.pid, inner]):
        os.kill(pid, signal.SIGKILL)
    fleet.process.wait(15)
    eventually(lambda: not [pid for pid in (inner, *fleet.everything()) if lives(pid)])
