"""`jetfleet up` as tests run it: a real process on free ports, its programs found in /proc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READY_WITHIN_S = 60.0
PROGRAMS = ("broker", "projector", "conductor", "gateway", "agent")


@dataclass
class Up:
    """One `jetfleet up`, and the command line pointed at it."""

    data_dir: Path
    log: Path
    process: subprocess.Popen[str]
    endpoints: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(cls, folder: Path, *options: str) -> Up:
        """Start it; ``wait_ready`` says when it serves."""
        log = folder / "up.log"
        command = [sys.executable, "-m", "jetfleet", "--json", "up", *free_port_options()]
        with log.open("a") as out:
            process = subprocess.Popen(
                [*command, "--data-dir", str(folder / "data"), *options],
                stdout=subprocess.PIPE,
                stderr=out,
                text=True,
                start_new_session=True,
            )
        return cls(folder / "data", log, process)

    def wait_ready(self) -> Up:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # up gives up by itself after a minute
        assert line, self.log.read_text()
        self.endpoints = json.loads(line)
        return self

    def cli(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command against it, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "jetfleet", *arguments, "--data-dir", str(self.data_dir)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def pids(self) -> dict[str, int]:
        """Process ids of its programs that live now."""
        found = {}
        for pid, argv in processes_of(self.data_dir).items():
            if argv[0].endswith("nats-server"):
                found["broker"] = pid
            elif argv[1:3] == ["-m", "jetfleet"] and argv[3] in PROGRAMS:
                found[argv[3]] = pid
        return found

    def stop(self, signum: signal.Signals = signal.SIGINT, within_s: float = 60) -> int:
        """Signal it, and wait for its end; returns the status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(within_s)

    def close(self) -> None:
        """Leave nothing, however the test ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def free_port_options() -> list[str]:
    options = []
    for name in ("--http-port", "--nats-port", "--ws-port", "--monitor-port"):
        options += [name, "0"]
    return options


def processes_of(data_dir: Path) -> dict[int, list[str]]:
    """Processes (not zombies) that have this data folder in their command line or environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        here = str(data_dir)
        if argv and (here in " ".join(argv) or f"JETFLEET_DATA_DIR={here}".encode() in environment):
            found[int(entry.name)] = argv
    return found
