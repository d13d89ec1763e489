"""``jetfleet provider process|docker|command``: a provider of workers until SIGTERM."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jetfleet import access, joining
from jetfleet.capacity import Provided
from jetfleet.commands.common import State, command
from jetfleet.connection import Connection
from jetfleet.errors import StartupError, Unavailable
from jetfleet.events import WorkerShape
from jetfleet.fleet import FleetState
from jetfleet.joining import JoinToken, labels_of
from jetfleet.secrets import Secrets
from jetfleet.settings import Settings
from jetfleet.streams import FLEET
from jetfleet.subjects import is_name
from jetfleet_agent.providers import Backend, Kind, Start

if TYPE_CHECKING:
    from jetfleet_agent.providers.provider import Provider, Terms

logger = logging.getLogger("jetfleet.provider")
Name = Annotated[str, typer.Option(help="Name of this provider; no two run under one name.")]
Price = Annotated[float, typer.Option(help="Cost of one worker an hour.", min=0)]
Label = Annotated[
    list[str] | None, typer.Option("--label", help="Of the workers: name=value; may be repeated.")
]
Owner = Annotated[str, typer.Option(help="Who owns the workers.")]
Trusted = Annotated[bool, typer.Option(help="The workers are managed by the fleet's operators.")]
Boot = Annotated[float, typer.Option(help="Longest time from asked to joined, seconds.", min=1)]
Lease = Annotated[float, typer.Option(help="Shortest time that a worker is kept, s.", min=0)]
Idle = Annotated[float, typer.Option(help="Without a replica for so long, it goes, s.", min=0)]
Most = Annotated[int, typer.Option(help="Workers at once.", min=1)]
Memory = Annotated[int, typer.Option(help="Host memory of a worker, MiB.", min=1)]
Gpus = Annotated[int, typer.Option(help="GPUs of a worker.", min=0, max=64)]
GpuMemory = Annotated[int, typer.Option(help="Memory of each GPU, MiB.", min=0)]
Capability = Annotated[float | None, typer.Option(help="CUDA compute capability of its GPUs.")]
Join = Annotated[str, typer.Option("--join", help="Where its workers reach the fleet: wss://, …")]
TokenFile = Annotated[
    Path | None, typer.Option(help="A join token for the workers. Default: made for each.")
]


def register(app: typer.Typer) -> None:
    """Add the command ``provider`` with its kinds."""
    family = typer.Typer(name="provider", help="Start workers on demand.", no_args_is_help=True)
    command(family, "process")(process)
    command(family, "docker")(docker)
    command(family, "command")(command_)
    app.add_typer(family, name="provider")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line says, whichever the kind.

    Args:
        backend: made once the fleet's id is known.
        local: its workers have the installation's keys, and need no token.
    """

    name: str
    kind: Kind
    terms: Terms
    backend: Callable[[str], Backend]
    join: str = ""
    token: JoinToken | None = field(default=None, repr=False)
    local: bool = False
    represented: Callable[[FleetState], int] = lambda _: 0
    stay: bool = True


def process(  # noqa: PLR0917 - a command's options are its parameters
    state: State,
    name: Name = "process",
    max_workers: Annotated[
        int, typer.Option(help="Workers on this machine, those of others counted.", min=1)
    ] = 1,
    price_per_hour: Price = 0.0,
    label: Label = None,
    owner: Owner = "",
    trusted: Trusted = False,
    boot_s: Boot = 60.0,
    lease_s: Lease = 60.0,
    idle_s: Idle = 60.0,
    join: Join = "",
    token_file: TokenFile = None,
) -> None:
    """Start agents on this machine, as far as no worker stands for it yet.

    They share its memory, so with more than one worker what they promise is more than there is.
    """
    from jetfleet_agent.providers.process import Processes

    token = _token(token_file, join)
    claimed = _claims(token, label, owner, trusted)
    shape = asyncio.run(_this_machine(state.settings(), price_per_hour, claimed))
    local = not join and token is None
    _run(
        state,
        Plan(
            name, "process", _terms(shape, max_workers, boot_s, lease_s, idle_s),
            lambda fleet: Processes(f"{name}@{fleet}"), _url(join, token), token, local,
            lambda fleet: others_here(fleet, name, socket.gethostname()), stay=False,
        ),
    )  # fmt: skip


def docker(  # noqa: PLR0917 - a command's options are its parameters
    state: State,
    image: Annotated[str, typer.Option(help="An image that has `jetfleet` with agent.")],
    memory_mib: Memory,
    join: Join = "",
    name: Name = "docker",
    max_workers: Most = 1,
    network: Annotated[str, typer.Option(help="As `docker run --network`.")] = "bridge",
    gpus: Gpus = 0,
    gpu_memory_mib: GpuMemory = 0,
    gpu_capability: Capability = None,
    price_per_hour: Price = 0.0,
    label: Label = None,
    owner: Owner = "",
    trusted: Trusted = False,
    boot_s: Boot = 120.0,
    lease_s: Lease = 60.0,
    idle_s: Idle = 120.0,
    token_file: TokenFile = None,
) -> None:
    """Start agents in containers of this machine's Docker engine (or DOCKER_HOST's)."""
    from jetfleet_agent.providers.docker import Containers
    from jetfleet_agent.runtimes.engine import Engine

    token = _token(token_file, join)
    claimed = _claims(token, label, owner, trusted)
    shape = _shape(memory_mib, (gpus, gpu_memory_mib, gpu_capability), price_per_hour, claimed)
    _run(
        state,
        Plan(
            name, "docker", _terms(shape, max_workers, boot_s, lease_s, idle_s),
            lambda fleet: Containers(Engine(), image, name, fleet, network),
            _url(join, token), token,
        ),
    )  # fmt: skip


def command_(  # noqa: PLR0917 - a command's options are its parameters
    state: State,
    argv: Annotated[
        list[str], typer.Argument(help="The executable, and arguments before the verb.")
    ],
    memory_mib: Memory,
    join: Join = "",
    name: Name = "command",
    max_workers: Most = 1,
    gpus: Gpus = 0,
    gpu_memory_mib: GpuMemory = 0,
    gpu_capability: Capability = None,
    price_per_hour: Price = 0.0,
    label: Label = None,
    owner: Owner = "",
    trusted: Trusted = False,
    boot_s: Boot = 600.0,
    lease_s: Lease = 600.0,
    idle_s: Idle = 300.0,
    token_file: TokenFile = None,
) -> None:
    """Start workers by any executable with the verbs start, stop and list; JSON in and out."""
    from jetfleet_agent.providers.command import Commands

    token = _token(token_file, join)
    claimed = _claims(token, label, owner, trusted)
    shape = _shape(memory_mib, (gpus, gpu_memory_mib, gpu_capability), price_per_hour, claimed)
    _run(
        state,
        Plan(
            name, "command", _terms(shape, max_workers, boot_s, lease_s, idle_s),
            lambda fleet: Commands(argv, name, fleet, boot_s), _url(join, token), token,
        ),
    )  # fmt: skip


# -- what is offered


def others_here(fleet: FleetState, provider: str, hostname: str) -> int:
    """Workers at work that stand for this machine, and are not this provider's."""
    return sum(
        worker.status in ("joined", "draining")
        and worker.machine.hostname == hostname
        and not worker.name.startswith(f"{provider[:40]}-")
        for worker in fleet.workers.values()
    )


@dataclass(frozen=True, slots=True)
class Claims:
    """What workers are said to be; with a token of their own, what that says."""

    labels: dict[str, str]
    owner: str
    trusted: bool


def _claims(token: JoinToken | None, label: list[str] | None, owner: str, trusted: bool) -> Claims:
    given = labels_of(label or [])
    if token is None:
        return Claims(given, owner, trusted)
    terms = token.terms
    return Claims({**given, **terms.labels}, terms.owner, terms.trusted)


def _shape(
    memory_mib: int, gpus: tuple[int, int, float | None], price: float, claimed: Claims
) -> WorkerShape:
    count, memory, capability = gpus
    if bool(count) != bool(memory):
        raise StartupError("--gpus and --gpu-memory-mib belong together")
    return WorkerShape(
        memory_mib=memory_mib,
        gpus=count,
        gpu_memory_mib=memory,
        gpu_capability=capability,
        labels=claimed.labels,
        owner=claimed.owner,
        trusted=claimed.trusted,
        price_per_hour=price,
    )


async def _this_machine(settings: Settings, price: float, claimed: Claims) -> WorkerShape:
    from jetfleet_agent.gpus import Gpus as Found
    from jetfleet_agent.machine import describe_machine

    found = Found()
    try:
        machine = describe_machine(settings.data_dir, await found.specs())
    finally:
        found.close()
    memories = [0 if gpu.mig else gpu.memory_mib or 0 for gpu in machine.gpus]
    capabilities = [g.compute_capability for g in machine.gpus if g.compute_capability is not None]
    gpus = (
        (len(memories), min(memories), min(capabilities, default=None)) if any(memories) else None
    )
    return _shape(machine.memory_mib, gpus or (0, 0, None), price, claimed)


def _terms(shape: WorkerShape, most: int, boot_s: float, lease_s: float, idle_s: float) -> Terms:
    from jetfleet_agent.providers.provider import Terms

    return Terms(shape, most, boot_s, lease_s, idle_s)


def _token(file: Path | None, join: str) -> JoinToken | None:
    if file is None:
        return None
    try:
        token = JoinToken.parse(file.read_text())
    except OSError as error:
        raise StartupError(f"the join token cannot be read: {error}") from error
    if not join and not token.url:
        raise StartupError("this join token does not say where the fleet is: give --join URL")
    return token


def _url(join: str, token: JoinToken | None) -> str:
    url = join or ("" if token is None else token.url)
    if url and not url.startswith(joining.SCHEMES):
        raise StartupError(f"--join {url!r}: it must begin with {', '.join(joining.SCHEMES)}")
    return url


# -- running


def starter(plan: Plan, settings: Settings) -> Callable[[Provided], Start]:
    """What starts a worker of a request: the agent's arguments, and how it gets in."""

    def start(worker: Provided) -> Start:
        shape = worker.shape
        agent = ["agent", "--name", worker.worker, "--ephemeral"]
        agent += ["--price-per-hour", f"{shape.price_per_hour:g}"]
        for name, value in sorted(shape.labels.items()):
            agent += ["--label", f"{name}={value}"]
        if plan.local:
            agent += ["--owner", shape.owner] if shape.owner else []
            agent += ["--trusted"] if shape.trusted else []
            environment = {
                "JETFLEET_NATS_URL": settings.nats_url,
                "JETFLEET_DATA_DIR": str(settings.data_dir.resolve()),
            }
        else:
            agent += ["--join", plan.join]
            environment = {"JETFLEET_JOIN_TOKEN": _token_for(worker, plan, settings)}
        return Start(worker.worker, worker.request, shape, tuple(agent), environment)

    return start


def _token_for(worker: Provided, plan: Plan, settings: Settings) -> str:
    """The token that was given, or one for this worker alone."""
    if plan.token is not None:
        return plan.token.text()
    shape, now = worker.shape, int(time.time())
    terms = joining.new_terms(
        now, for_s=int(plan.terms.boot_s) + 60, trusted=shape.trusted, owner=shape.owner,
        labels=shape.labels,
    )  # fmt: skip
    seed = Secrets(settings.data_dir).held_seed(access.WORKERS_ACCOUNT)
    return joining.issue(terms, account_seed=seed, now=now, url=plan.join).text()


def _run(state: State, plan: Plan) -> None:
    logging.getLogger("jetfleet").setLevel(logging.DEBUG if state.debug else logging.INFO)
    if not is_name(plan.name):
        raise StartupError(f"{plan.name!r} cannot name a provider: use a-z, 0-9, '-', single '_'")
    settings = state.settings()
    if not plan.local:
        if not plan.join:
            raise StartupError("say where its workers reach the fleet: --join URL")
        if plan.token is None:
            Secrets(settings.data_dir).held_seed(access.WORKERS_ACCOUNT)  # now, not at the first
    asyncio.run(serve(plan, settings))


async def serve(plan: Plan, settings: Settings) -> None:
    """Connect (waiting for the broker) and provide until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    opening = asyncio.create_task(_open(plan, settings, stop))
    await asyncio.wait({opening, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        return
    stopping.cancel()
    provider = opening.result()
    try:
        await provider.run()
    finally:
        await provider.connection.close()


async def _open(plan: Plan, settings: Settings, stop: asyncio.Event) -> Provider:
    from jetfleet_agent.providers.provider import Provider

    connection = await Connection.open(
        settings.nats_url, settings.credentials_of("provider"), user="provider",
        name=f"provider-{plan.name}",
    )  # fmt: skip
    while True:
        try:
            fleet = await fleet_id(connection)
            break
        except Unavailable as error:
            logger.info("waiting for the broker: %s", error)
            await asyncio.sleep(1)
    backend = plan.backend(fleet)
    return Provider(
        plan.name, settings, connection, backend, plan.terms, starter(plan, settings),
        plan.represented, plan.stay, stop,
    )  # fmt: skip


async def fleet_id(connection: Connection) -> str:
    """Which installation this is: nothing of another one is ever stopped."""
    info = await connection.api(f"STREAM.INFO.{FLEET}")
    return hashlib.sha256(str(info["created"]).encode()).hexdigest()[:12]
