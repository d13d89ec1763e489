"""``jetfleet up``: everything on this machine, under one supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jetfleet.commands.common import ENDPOINTS_FILE, State, command
from jetfleet.errors import StartupError, Unavailable

if TYPE_CHECKING:
    from jetfleet.queries import Rows
    from jetfleet.server import Broker
    from jetfleet.settings import Settings
    from jetfleet.supervisor import Program

DRAIN_S = 35.0  # an agent finishes what it runs within 30 s, and then hands it back
LAST_PORT = 65_535
LEFTOVERS_S = 10.0  # for the programs of a supervisor that was killed
_BROKER_LINE = re.compile(r"^\[\d+\] [\d/]+ [\d:.]+ \[(?P<level>\w+)\] ?(?P<text>.*)$")
_ROUTINE = "Websocket not configured with TLS"  # on loopback; in production a proxy brings TLS
_PROMISES = {
    False: "written at once, synced to disk every second: the death of any process loses nothing "
    "accepted, a power cut at most the last second (--durable: nothing)",
    True: "synced to disk before anything is accepted: a power cut loses nothing",
}


@dataclass(frozen=True, slots=True)
class Ports:
    """Where things listen on loopback."""

    http: int
    nats: int
    ws: int
    monitor: int

    @classmethod
    def choose(cls, *wanted: int) -> Ports:
        """The ports wanted; each 0 becomes a free one. Raises StartupError."""
        with contextlib.ExitStack() as stack:
            chosen = []
            for port in wanted:
                if not 0 <= port <= LAST_PORT:
                    raise StartupError(f"{port} is no port; they go from 0 (any) to {LAST_PORT}")
                probe = stack.enter_context(socket.socket())
                if port == 0:
                    probe.bind(("127.0.0.1", 0))
                chosen.append(port or probe.getsockname()[1])
        return cls(*chosen)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What others need to know of a running installation."""

    pid: int
    http_url: str
    nats_url: str
    ws_url: str
    monitor_url: str
    data_dir: str
    credentials: str
    durability: str


def register(app: typer.Typer) -> None:
    command(app, "up")(up)


def up(  # noqa: PLR0917 - options; typer passes them by name
    state: State,
    http_port: Annotated[
        int | None, typer.Option(help="HTTP API. 0: any free port, here and below.")
    ] = None,
    nats_port: Annotated[int, typer.Option(help="The broker.")] = 4222,
    ws_port: Annotated[int, typer.Option(help="WebSocket, for workers elsewhere.")] = 8443,
    monitor_port: Annotated[int, typer.Option(help="The broker's monitoring.")] = 8222,
    agents: Annotated[int, typer.Option(help="Local workers.", min=0, max=64)] = 1,
    max_workers: Annotated[
        int,
        typer.Option(help="Local workers with those started on demand.", min=0, max=64),
    ] = 1,
    durable: Annotated[
        bool, typer.Option("--durable", help="Sync the log to disk before accepting anything.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show all the broker says.")] = False,
) -> None:
    """Start broker, projector, conductor, gateway and a worker here; run until Ctrl-C.

    The merged log goes to stderr. When all is ready, the URLs go to stdout (with --json as one
    line of JSON).
    """
    import anyio

    from jetfleet import processes

    began = time.monotonic()
    settings = state.settings()
    wanted = settings.http_port if http_port is None else http_port
    ports = Ports.choose(wanted, nats_port, ws_port, monitor_port)
    settings = settings.model_copy(
        update={
            "data_dir": settings.data_dir.resolve(),
            "http_port": ports.http,
            "nats_url": f"nats://127.0.0.1:{ports.nats}",
            "credentials": None,
        }
    )
    pid = os.getpid()
    processes.guard(LEFTOVERS_S)
    os.environ.pop("JETFLEET_CREDENTIALS", None)  # every child has those of its own role
    local = Local(settings, ports, agents, durable, verbose, max_workers)
    anyio.run(local.run, lambda: _announce(state, local.endpoints(pid), time.monotonic() - began))


def _announce(state: State, endpoints: Endpoints, took_s: float) -> None:
    path = Path(endpoints.data_dir) / ENDPOINTS_FILE
    staged = path.with_suffix(".new")
    staged.write_text(json.dumps(asdict(endpoints)))
    staged.replace(path)
    if state.as_json:
        state.output.line({"ready": True, **asdict(endpoints)})
        return
    lines = (
        ("HTTP API", f"{endpoints.http_url}/v1   (its documentation: {endpoints.http_url}/docs)"),
        ("broker", f"{endpoints.nats_url}   workers from elsewhere: {endpoints.ws_url}"),
        ("monitoring", endpoints.monitor_url),
        ("data", endpoints.data_dir),
        ("credentials", endpoints.credentials),
        ("durability", endpoints.durability),
    )
    state.output.text(f"jetfleet is up ({took_s:.1f} s); Ctrl-C stops all of it")
    for name, value in lines:
        state.output.text(f"  {name:<12}{value}")


@dataclass(slots=True)
class Local:
    """One installation on this machine: its programs, and how each is known to be ready."""

    settings: Settings
    ports: Ports
    agents: int
    durable: bool
    verbose: bool
    max_workers: int = 1

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Run until stopped.

        Raises:
            StartupError: another `jetfleet up` has the folder, a port is taken, or a program
                cannot start.
        """
        from jetfleet.server import Lock
        from jetfleet.supervisor import Journal, Supervisor

        data_dir = self.settings.data_dir
        lock = Lock(data_dir / "up.lock")
        try:
            if not data_dir.exists():
                self._check_ports()  # before a folder is made that nobody will use
            lock.acquire()
        except OSError as error:
            raise StartupError(
                f"cannot keep data in {data_dir}: {error.strerror}; "
                "choose another folder with --data-dir"
            ) from error
        try:
            self._check_ports()
            broker = self.broker()
            supervisor = Supervisor(self.programs(broker, broker.prepare()), Journal())

            async def ready() -> None:
                on_ready()

            await supervisor.run(ready)
        finally:
            (self.settings.data_dir / ENDPOINTS_FILE).unlink(missing_ok=True)
            lock.release()

    def endpoints(self, pid: int) -> Endpoints:
        """What to tell people, once it is up. ``pid``: the process to signal."""
        ports, data_dir = self.ports, self.settings.data_dir
        return Endpoints(
            pid=pid,
            http_url=f"http://{self.settings.http_host}:{ports.http}",
            nats_url=self.settings.nats_url,
            ws_url=f"ws://127.0.0.1:{ports.ws}",
            monitor_url=f"http://127.0.0.1:{ports.monitor}",
            data_dir=str(data_dir),
            credentials=str(data_dir / "creds"),
            durability=_PROMISES[self.durable],
        )

    def programs(self, broker: Broker, configuration: Path) -> list[Program]:
        """In the order they start; they stop in the opposite one, agents first."""
        from jetfleet.server import find_binary
        from jetfleet.supervisor import Program

        return [
            Program(
                "broker",
                [find_binary(), "-c", str(configuration)],
                broker.environment(),
                ready=lambda: self._broker_ready(broker),
                gate=True,
                line=(lambda line: line) if self.verbose else broker_line,
            ),
            self._ours("projector", [], self._projector_ready),
            self._ours("conductor", []),
            self._ours(
                "gateway",
                ["--host", self.settings.http_host, "--port", str(self.ports.http)],
                self._gateway_ready,
            ),
            *self._provider(),
            *(self._agent(broker, index) for index in range(self.agents)),
        ]

    def _provider(self) -> list[Program]:
        """Who starts further workers here on demand; nobody where none may be started."""
        if self.max_workers <= self.agents:
            return []
        options = ["process", "--max-workers", str(self.max_workers)]
        return [self._ours("provider", options, grace_s=DRAIN_S)]

    def _agent(self, broker: Broker, index: int) -> Program:
        name = "local" if index == 0 else f"local-{index + 1}"
        broker.secrets.worker(name)
        began = datetime.now(UTC)
        return self._ours(
            "agent",
            ["--name", name, "--trusted"],  # a machine of whoever runs this
            lambda: self._joined(name, began),
            label="agent" if self.agents == 1 else f"agent {name}",
            grace_s=DRAIN_S,
        )

    def _ours(
        self,
        name: str,
        options: Sequence[str],
        ready: Callable[[], Awaitable[bool]] | None = None,
        *,
        label: str | None = None,
        grace_s: float = 10.0,
    ) -> Program:
        """One of our own commands as a child."""
        from jetfleet.supervisor import Program

        data_dir = ["--data-dir", str(self.settings.data_dir)]
        argv = [sys.executable, "-m", "jetfleet", name, *options, *data_dir]
        return Program(label or name, argv, self._environment(), ready=ready, grace_s=grace_s)

    def _environment(self) -> dict[str, str]:
        settings = self.settings
        return {
            "JETFLEET_NATS_URL": settings.nats_url,
            "JETFLEET_DATA_DIR": str(settings.data_dir),
            "JETFLEET_SHARDS": str(settings.shards),
            "JETFLEET_HTTP_HOST": settings.http_host,
            "JETFLEET_HTTP_PORT": str(self.ports.http),
            "PYTHONUNBUFFERED": "1",
        }

    def broker(self) -> Broker:
        """The broker as it is to run."""
        from jetfleet.server import Broker

        return Broker(
            self.settings.data_dir,
            port=self.ports.nats,
            websocket_port=self.ports.ws,
            monitor_port=self.ports.monitor,
            sync_interval="always" if self.durable else "1s",
        )

    def _check_ports(self) -> None:
        from jetfleet.server import port_free

        for option, port, host in (
            ("--http-port", self.ports.http, self.settings.http_host),
            ("--nats-port", self.ports.nats, "127.0.0.1"),
            ("--ws-port", self.ports.ws, "127.0.0.1"),
            ("--monitor-port", self.ports.monitor, "127.0.0.1"),
        ):
            if not port_free(port, host):
                raise StartupError(
                    f"port {port} on {host} is taken; stop what listens there, "
                    f"or choose another with {option} (0: any free one)"
                )

    async def _broker_ready(self, broker: Broker) -> bool:
        """Serving, and its streams are as they should be."""
        import anyio

        from jetfleet.setup import ensure_streams

        if not await anyio.to_thread.run_sync(broker.healthy):
            return False
        try:
            await ensure_streams(self.settings)
        except Unavailable:
            return False
        return True

    async def _projector_ready(self) -> bool:
        return await self._ask("positions") is not None

    async def _joined(self, worker: str, began: datetime) -> bool:
        """Whether this worker joined since ``began``, as the projections have it."""
        rows = await self._ask("worker", name=worker)
        return rows is not None and any(
            row["state"] == "joined" and datetime.fromisoformat(row["joined_at"]) >= began
            for row in rows.dicts()
        )

    async def _ask(self, query: str, **parameters: str) -> Rows | None:
        """A named query; None while nobody answers."""
        from jetfleet.client import Client

        try:
            async with await Client.connect(self.settings, name="up") as client:
                return await client.query(query, **parameters)
        except Unavailable:
            return None

    async def _gateway_ready(self) -> bool:
        import anyio

        try:
            async with await anyio.connect_tcp(self.settings.http_host, self.ports.http):
                return True
        except OSError:
            return False


def broker_line(line: str) -> str | None:
    """The broker's line without its own process id and time; routine ones are hidden."""
    match = _BROKER_LINE.match(line)
    if match is None:
        return line
    routine = match["level"] == "INF" or match["text"].startswith(_ROUTINE)
    return None if routine else f"[{match['level']}] {match['text']}"
