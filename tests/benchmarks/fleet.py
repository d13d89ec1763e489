"""The processes of one benchmark run: two brokers, the floor's, and jetfleet's."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from jetfleet.client import Client
from jetfleet.server import Broker, find_binary
from jetfleet.settings import Settings
from jetfleet.setup import ensure_streams
from jetfleet.specs import JobSpec, ModelSpec

HERE = Path(__file__).parent
SLOTS = 128  # above the callers of every measurement, for the floor as for us
START_S = 30.0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class Processes:
    """Children of the run; all end with it."""

    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self,
        *argv: str,
        env: dict[str, str] | None = None,
        ready: bytes = b"",
        log: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a child; with ``ready``, wait until it prints a line that begins so."""
        with (log or Path(os.devnull)).open("ab") as out:
            child = subprocess.Popen(
                argv,
                env={**os.environ, **(env or {})},
                stdout=subprocess.PIPE if ready else out,
                stderr=out if ready or log else None,
            )
        self.children.append(child)
        if ready:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith(ready):
                    return child
            raise RuntimeError(f"{argv} ended before it was ready")
        return child

    def stop(self) -> None:
        for child in reversed(self.children):
            child.terminate()
        for child in reversed(self.children):
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@dataclass(slots=True)
class Fleet:
    """Where everything is."""

    floor_url: str
    http_floor: str
    gateway: str
    client: Client
    processes: Processes
    env: dict[str, str]  # of jetfleet's processes


async def broker_with(
    stack: AsyncExitStack, folder: Path, processes: Processes
) -> tuple[Broker, Settings, dict[str, str]]:
    """A broker with its streams, how to reach it, and the environment of jetfleet's processes.

    ``stack`` ends first ``processes``, then the broker.
    """
    broker = Broker(folder, port=free_port(), websocket_port=free_port(), monitor_port=free_port())
    await broker.start()
    stack.push_async_callback(broker.stop)
    stack.callback(processes.stop)
    settings = Settings(nats_url=broker.url, data_dir=broker.data_dir)
    await ensure_streams(settings)
    env = {"JETFLEET_NATS_URL": broker.url, "JETFLEET_DATA_DIR": str(broker.data_dir)}
    return broker, settings, env


async def start(stack: AsyncExitStack, folder: Path, *, projector: bool = False) -> Fleet:
    """Start all; ``stack`` ends them."""
    processes = Processes()
    floor_port, http_port, gateway_port = free_port(), free_port(), free_port()
    _, settings, env = await broker_with(stack, folder / "jetfleet", processes)
    _floor_server(processes, folder / "floor", floor_port)
    await _listening(floor_port)
    processes.start(sys.executable, str(HERE / "floors.py"), "http", str(http_port))
    jetfleet = [sys.executable, "-m", "jetfleet"]
    processes.start(*jetfleet, "conductor", env=env)
    processes.start(*jetfleet, "gateway", "--port", str(gateway_port), env=env)
    if projector:
        processes.start(*jetfleet, "projector", env=env)
    processes.start(*jetfleet, "agent", "--name", "bench", env=env)
    client = await stack.enter_async_context(await Client.connect(settings))
    await _open_job(client)
    await _listening(http_port)
    await _listening(gateway_port)
    url = "http://127.0.0.1:{}"
    return Fleet(
        f"nats://127.0.0.1:{floor_port}",
        url.format(http_port),
        url.format(gateway_port),
        client,
        processes,
        env,
    )


async def _open_job(client: Client) -> None:
    model = ModelSpec(name="noop", function=f"{HERE / 'noop.py'}:noop")
    await client.register_model(model)
    await client.apply_job(JobSpec(name="noop", model=model, concurrency=SLOTS))
    await client.run("noop", {}, wait_s=START_S)


def _floor_server(processes: Processes, folder: Path, port: int) -> None:
    """A broker of the same build, storage and sync interval, without accounts."""
    folder.mkdir(parents=True)
    (folder / "floor.conf").write_text(
        f'listen: "127.0.0.1:{port}"\n'
        f'jetstream {{ store_dir: "{folder / "js"}", sync_interval: "1s" }}\n'
    )
    processes.start(find_binary(), "-c", str(folder / "floor.conf"), "-l", str(folder / "log"))


async def _listening(port: int) -> None:
    """Return when something accepts connections there; bounded."""
    async with asyncio.timeout(START_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
