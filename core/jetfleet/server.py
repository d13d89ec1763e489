"""The embedded nats-server: the repository's ``nats.conf``, own secrets, one folder.

``Broker`` owns one server process. Data, keys and the effective configuration lie under
``data_dir``; a lock file there makes a second start say so instead of fighting over the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import anyio

from jetfleet.errors import MissingExtra, StartupError
from jetfleet.processes import launched
from jetfleet.secrets import Secrets

CLIENT_PORT = 4222
WEBSOCKET_PORT = 8443
MONITOR_PORT = 8222
START_TIMEOUT_S = 15.0


def find_binary() -> str:
    """The nats-server executable: the one of this environment, else the one on PATH.

    Raises:
        MissingExtra: there is none.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if not found:
        raise MissingExtra("server", "running a broker")
    return found


def find_configuration() -> Path:
    """``nats.conf``: inside an installed wheel beside this file, in a checkout at its root."""
    for candidate in (
        Path(__file__).with_name("nats.conf"),
        Path(__file__).parents[2] / "nats.conf",
    ):
        if candidate.exists():
            return candidate
    raise StartupError("nats.conf is missing from this installation; install jetfleet again")


def port_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nothing listens on this port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


@dataclass(slots=True)
class Lock:
    """An exclusive lock on a data folder, held while the process lives (the kernel drops it)."""

    path: Path
    _file: IO[str] | None = None

    def acquire(self) -> None:
        """Raises StartupError, naming the holder, when another process has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise StartupError(
                f"jetfleet is already running on {self.path.parent} (pid {holder}); "
                "stop that one, or give this one another --data-dir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(slots=True)
class Broker:
    """One nats-server process on loopback.

    Args:
        data_dir: everything it keeps.
        port, websocket_port, monitor_port: where it listens.
        sync_interval: how often the log is fsynced: a duration, or "always".
        log: where its log lines go; None: discarded.
    """

    data_dir: Path
    port: int = CLIENT_PORT
    websocket_port: int = WEBSOCKET_PORT
    monitor_port: int = MONITOR_PORT
    host: str = "127.0.0.1"
    sync_interval: str = "1s"
    log: Callable[[bytes], None] | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    @property
    def websocket_url(self) -> str:
        return f"ws://{self.host}:{self.websocket_port}"

    @property
    def secrets(self) -> Secrets:
        return Secrets(self.data_dir)

    def prepare(self) -> Path:
        """Write secrets and the effective configuration; returns its path."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.secrets.prepare()
        configuration = self.data_dir / "nats.conf"
        shutil.copyfile(find_configuration(), configuration)
        return configuration

    def environment(self) -> dict[str, str]:
        """What ``nats.conf`` takes from the environment."""
        return {
            "JF_SERVER_NAME": "jetfleet",
            "JF_LISTEN": f"{self.host}:{self.port}",
            "JF_MONITOR": f"127.0.0.1:{self.monitor_port}",
            "JF_WEBSOCKET": f"{self.host}:{self.websocket_port}",
            "JF_STORE_DIR": str((self.data_dir / "jetstream").resolve()),
            "JF_SYNC_INTERVAL": self.sync_interval,
        }

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process (in a session of its own, so that Ctrl-C reaches only us)."""
        configuration = self.prepare()
        for port in (self.port, self.websocket_port, self.monitor_port):
            if not port_free(port, self.host):
                raise StartupError(
                    f"port {port} on {self.host} is taken; stop what listens there, or choose "
                    "another with --nats-port, --ws-port or --monitor-port"
                )
        self.process = subprocess.Popen(
            launched([find_binary(), "-c", str(configuration)]),  # it ends when we do
            env={**os.environ, **self.environment()},
            stdout=subprocess.DEVNULL if self.log is None else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self.process

    async def start(self) -> None:
        """Start and wait until JetStream answers.

        Raises:
            StartupError: a port is taken, or the server exits or stays silent.
        """
        process = self.spawn()
        try:
            with anyio.fail_after(START_TIMEOUT_S):
                while not await anyio.to_thread.run_sync(self.healthy):
                    if process.poll() is not None:
                        raise StartupError(f"nats-server exited with status {process.returncode}")
                    await anyio.sleep(0.02)
        except TimeoutError:
            self.kill()
            raise StartupError(f"nats-server was not healthy in {START_TIMEOUT_S:.0f} s") from None

    def healthy(self) -> bool:
        """Whether the server says that JetStream is up."""
        url = f"http://127.0.0.1:{self.monitor_port}/healthz?js-enabled-only=true"
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(json.load(answer).get("status") == "ok")
        except (OSError, ValueError, urllib.error.URLError):
            return False

    def kill(self) -> None:
        """SIGKILL; for tests of what a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after ``grace_s`` seconds."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(grace_s) as scope:
            await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
        if scope.cancelled_caught:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await anyio.to_thread.run_sync(process.wait)
