"""The real processes of an installation, for tests that kill them.

``Stack`` starts a broker, a conductor, agents and gateways as subprocesses on free ports, waits
for them by events, kills them by pid, and at the end stops all and finds nothing left behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from conftest import free_ports, new_broker, settings_for
from jetfleet.client import Client
from jetfleet.errors import BrokerUnavailable
from jetfleet.events import InvocationStarted, ReplicaReady, WorkerJoined
from jetfleet.log import Record
from jetfleet.server import Broker
from jetfleet.settings import Settings
from jetfleet.setup import ensure_streams
from jetfleet.specs import JobSpec, ModelSpec, Resources
from jetfleet.streams import FLEET, INVOCATIONS
from up_process import processes_of
from waiting import WITHIN_S, until

MODELS = Path(__file__).parent / "models"
STOP_S = 20.0
DRAIN_S = 10  # less, so that a test that failed in the middle of work ends in order too
LOG_TAIL = 4_000
MARK = "JF_TEST_STACK"  # models inherit it from the agent, which hides JETFLEET_* from them


@dataclass
class Program:
    """One subprocess of the stack and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; returns when the kernel has ended it."""
        self.process.kill()
        self.process.wait()

    async def ended(self, within_s: float = STOP_S) -> int:
        """Its exit status, once it ends by itself."""
        return await asyncio.to_thread(self.process.wait, within_s)

    async def stop(self) -> int:
        """SIGTERM, and its exit status; it must obey."""
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)  # a stopped process hears nothing else
            self.signal(signal.SIGTERM)
        return await self.ended()


@dataclass
class Gateway:
    """A gateway process and an HTTP client of it."""

    program: Program
    port: int
    http: httpx.AsyncClient

    async def ready(self) -> None:
        """Return when it accepts work."""

        async def answers() -> bool:
            try:
                return (await self.http.get("/readyz")).status_code == 200
            except httpx.TransportError:
                return False  # it does not listen yet

        await until(answers, f"{self.program.name} is ready")

    async def run_sync(self, job: str, value: Any, **limits: Any) -> httpx.Response:
        return await self.http.post(
            f"/v1/inference_jobs/{job}/run_sync", json={"input": value, **limits}
        )

    async def run(self, job: str, value: Any) -> httpx.Response:
        return await self.http.post(f"/v1/inference_jobs/{job}/run", json={"input": value})


@dataclass
class Stack:
    """One installation in one folder; see ``stack``."""

    folder: Path
    broker: Broker
    programs: list[Program] = field(default_factory=list)
    resources: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def settings(self) -> Settings:
        return settings_for(self.broker)

    # -- starting

    def _spawn(
        self, name: str, *arguments: str, environment: dict[str, str] | None = None
    ) -> Program:
        environment = {
            **os.environ,
            **(environment or {}),
            "JETFLEET_NATS_URL": self.broker.url,
            "JETFLEET_DATA_DIR": str(self.broker.data_dir),
            MARK: str(self.folder),
        }
        log = self.folder / f"{name}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "jetfleet", *arguments],
                env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        program = Program(name, process, log)
        self.programs.append(program)
        return program

    def conductor(self) -> Program:
        return self._spawn("conductor", "conductor")

    def agent(
        self,
        name: str = "a",
        *,
        heartbeat_s: float = 0.5,
        environment: dict[str, str] | None = None,
    ) -> Program:
        """A worker; lost after three seconds of silence (the conductor's least)."""
        options = ("--heartbeat-s", str(heartbeat_s), "--drain-s", str(DRAIN_S))
        return self._spawn(
            f"agent-{name}", "agent", "--name", name, *options, environment=environment
        )

    def projector(self) -> Program:
        return self._spawn("projector", "projector")

    async def gateway(self, name: str = "g", *, port: int = 0) -> Gateway:
        """A gateway that may not be ready yet."""
        port = port or free_ports(1)[0]
        program = self._spawn(f"gateway-{name}", "gateway", "--port", str(port))
        http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=WITHIN_S)
        return Gateway(program, port, await self.resources.enter_async_context(http))

    async def client(self, role: str = "operator") -> Client:
        """A client that is closed with the stack."""
        connecting = await Client.connect(self.settings, role=role)
        return await self.resources.enter_async_context(connecting)

    # -- ending

    async def close(self) -> None:
        """Stop everything, in order; assert that it obeys and leaves no process behind."""
        await self.resources.aclose()
        order = {"gateway": 0, "provider": 0, "agent": 1, "conductor": 2, "projector": 3}
        living = [p for p in self.programs if p.process.poll() is None]
        living.sort(key=lambda program: order[program.name.partition("-")[0]])
        statuses = {program.name: await self._stopped(program) for program in living}
        await self.broker.stop()
        left = await self._left_behind()
        assert all(status == 0 for status in statuses.values()), statuses
        assert not left, f"left behind: {left}"

    async def _stopped(self, program: Program) -> int | str:
        try:
            return await program.stop()
        except subprocess.TimeoutExpired:
            program.kill()
            return f"did not obey SIGTERM within {STOP_S:g} s"

    async def _left_behind(self) -> dict[int, list[str]]:
        """Processes of ours after a moment to go; killed then, so that no test hurts the next."""
        try:
            async with asyncio.timeout(5):
                while self._processes():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            left = self._processes()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return left
        return {}

    def _processes(self) -> dict[int, list[str]]:
        mark = f"{MARK}={self.folder}\0".encode()
        found = processes_of(self.broker.data_dir)
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if mark in (entry / "environ").read_bytes():
                    found[int(entry.name)] = [(entry / "cmdline").read_text()]
            except OSError:
                continue  # it ended meanwhile
        return found

    def logs(self) -> str:
        """The last lines of every process."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-LOG_TAIL:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


@asynccontextmanager
async def stack(folder: Path, *, agents: Iterable[str] = ("a",)) -> AsyncIterator[Stack]:
    """A broker, a conductor and these agents; on failure the processes' last lines are printed."""
    folder.mkdir(parents=True, exist_ok=True)
    running = Stack(folder, new_broker(folder / "data"))
    await running.broker.start()
    try:
        await ensure_streams(running.settings)
        running.conductor()
        for name in agents:
            running.agent(name)
        yield running
    except BaseException:
        print(running.logs())
        raise
    finally:
        await running.close()


# -- waiting


async def heard(
    client: Client,
    stream: str,
    wanted: Callable[[Record], bool],
    what: str,
    *,
    start: int | str = "all",
    within_s: float = WITHIN_S,
) -> Record:
    """The first record of a stream, from ``start`` on, that is ``wanted``; bounded."""
    records = client.events(stream, start=start, follow=True)  # type: ignore[arg-type]  # "all"
    try:
        async with asyncio.timeout(within_s):
            async for record in records:
                if wanted(record):
                    return record
    except TimeoutError:
        raise AssertionError(f"not within {within_s:g} s: {what}") from None
    finally:
        await records.aclose()  # type: ignore[attr-defined]  # it is an async generator
    raise AssertionError("a followed stream never ends")


async def fleet_says(
    client: Client, kind: type, *, start: int | str = "all", within_s: float = WITHIN_S, **data: Any
) -> Record:
    """The first fleet event of this kind whose data holds these values."""

    def wanted(record: Record) -> bool:
        event = record.event
        return (
            event is not None
            and isinstance(event, kind)
            and all(getattr(event.data, name) == value for name, value in data.items())
        )

    what = f"{kind.__name__} {data}"
    return await heard(client, FLEET, wanted, what, start=start, within_s=within_s)


async def all_joined(client: Client, *workers: str) -> None:
    """Return when each of these workers has said that it joined."""
    for worker in workers:
        await fleet_says(client, WorkerJoined, worker=worker)


async def started(client: Client, invocation: str, *, attempt: int = 1) -> InvocationStarted:
    """The event of an invocation's start, once a worker says so."""

    def wanted(record: Record) -> bool:
        event = record.event
        return (
            isinstance(event, InvocationStarted)
            and event.data.invocation == invocation
            and event.data.attempt == attempt
        )

    record = await heard(client, INVOCATIONS, wanted, f"{invocation} is started")
    assert isinstance(record.event, InvocationStarted)
    return record.event


async def position(client: Client, stream: str) -> int:
    """The stream's last sequence."""
    info = await client.connection.api(f"STREAM.INFO.{stream}")
    return int(info["state"]["last_seq"])


# -- work


async def open_job(
    client: Client,
    name: str,
    function: str,
    *,
    ready: bool = True,
    resources: Resources | None = None,
    **settings: Any,
) -> JobSpec:
    """A job on ``tests/models/<file.py:function>``; with ``ready``, all of its replicas serve."""
    needs = resources or Resources()
    model = ModelSpec(name=name, function=str(MODELS / function), resources=needs)
    defaults: dict[str, Any] = {"ack_wait_s": 2, "timeout_s": 30, "queue_ttl_s": 120}
    if "min_replicas" in settings:
        defaults["max_replicas"] = settings["min_replicas"]
    spec = JobSpec(name=name, model=model, **{**defaults, **settings})
    start = await position(client, FLEET) + 1
    await client.register_model(model)
    await client.apply_job(spec)
    if ready:
        for _ in range(spec.replicas):
            start = 1 + (await fleet_says(client, ReplicaReady, start=start, job=name)).seq
    return spec


async def accept(client: Client, submit: Callable[[], Any]) -> Any:
    """What ``submit`` returns once the broker is there to accept; refused before, bounded."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                return await submit()
            except BrokerUnavailable:
                await asyncio.sleep(0.05)
