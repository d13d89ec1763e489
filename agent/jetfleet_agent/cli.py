"""``jetfleet agent``: the worker agent as a command."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Coroutine
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from jetfleet.commands.common import State, command
from jetfleet.connection import Connection
from jetfleet.errors import StartupError
from jetfleet.joining import SCHEMES, JoinToken, labels_of
from jetfleet.secrets import Secrets
from jetfleet.settings import Settings
from jetfleet.subjects import is_name
from jetfleet_agent import notices, provider_command

if TYPE_CHECKING:
    from jetfleet_agent.agent import Agent, Identity
    from jetfleet_agent.joining import Membership

T = TypeVar("T")
Label = Annotated[list[str] | None, typer.Option("--label", help="name=value; may be repeated.")]
Url = Annotated[str, typer.Option("--join", help="Join the fleet at this ws://, wss://, … URL.")]
Token = Annotated[
    str, typer.Option("--token", help="What to join with. Default: JETFLEET_JOIN_TOKEN.")
]
TokenFile = Annotated[Path | None, typer.Option(help="A file that holds the token.")]
SpotFile = Annotated[Path | None, typer.Option(help="Drain when this file appears.")]
SpotUrl = Annotated[str, typer.Option(help="Drain when this URL answers 200 (polled each second).")]


def register(app: typer.Typer) -> None:
    """Add the commands ``agent`` and ``provider``."""
    command(app, "agent")(agent)
    provider_command.register(app)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says, apart from who the worker is."""

    drain_s: float
    join: str = ""
    token: JoinToken | None = None
    spot_file: Path | None = None
    spot_url: str = ""


def agent(
    state: State,
    name: Annotated[str, typer.Option(help="Name of this worker.")] = "local",
    owner: Annotated[str, typer.Option(help="Who owns this machine.")] = "",
    label: Label = None,
    trusted: Annotated[bool, typer.Option(help="Managed by the fleet's operators.")] = False,
    ephemeral: Annotated[bool, typer.Option(help="May vanish at any time.")] = False,
    price_per_hour: Annotated[float, typer.Option(help="Cost of this machine.", min=0)] = 0.0,
    heartbeat_s: Annotated[float, typer.Option(help="Seconds between heartbeats.", min=0.1)] = 2.0,
    slots: Annotated[
        int | None,
        typer.Option(help="Most invocations at once, over all jobs. Default: no limit.", min=1),
    ] = None,
    drain_s: Annotated[
        float, typer.Option(help="Seconds that running work has at the end.", min=0)
    ] = 30.0,
    join: Url = "",
    token: Token = "",
    token_file: TokenFile = None,
    spot_file: SpotFile = None,
    spot_url: SpotUrl = "",
) -> None:
    """Run the worker agent: take assignments, run models, serve invocations. SIGTERM drains it.

    With --join the owner and the trust are those of the token, whatever is said here.
    """
    import uvloop

    from jetfleet_agent.agent import Identity

    logging.getLogger("jetfleet").setLevel(logging.DEBUG if state.debug else logging.INFO)
    if not is_name(name):
        raise StartupError(f"{name!r} cannot name a worker: use a-z, 0-9, '-' and single '_'")
    if spot_url:
        notices.check(spot_url)
    settings = state.settings()
    held = _token(token, token_file, settings, join)
    options = Options(drain_s, _url(join, held), held, spot_file, spot_url)
    gc.freeze()  # what is imported by now stays
    gc.set_threshold(50_000, 20, 20)  # nothing on the path makes cycles; collect rarely
    identity = Identity(
        name, labels_of(label or []), owner, trusted, ephemeral, price_per_hour, heartbeat_s, slots
    )
    uvloop.run(_serve(identity, settings, options))


def _token(text: str, file: Path | None, settings: Settings, join: str) -> JoinToken | None:
    """The join token, from where it is given; None: from nowhere.

    The environment's counts with --join alone: processes beside that inherit it have files.
    """
    if not text and file is not None:
        try:
            text = file.read_text()
        except OSError as error:
            raise StartupError(f"the join token cannot be read: {error}") from error
    text = text or (settings.join_token if join else "")
    return JoinToken.parse(text) if text.strip() else None


def _url(join: str, token: JoinToken | None) -> str:
    """Where to join; empty: nowhere, there is a credentials file."""
    url = join or ("" if token is None else token.url)
    if token is not None and not url:
        raise StartupError("this join token does not say where the fleet is: give --join URL")
    if url and not url.startswith(SCHEMES):
        raise StartupError(f"--join {url!r}: it must begin with {', '.join(SCHEMES)}")
    return url


async def _serve(identity: Identity, settings: Settings, options: Options) -> None:
    from jetfleet_agent.agent import Agent
    from jetfleet_agent.links import WorkerKey

    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    place = _place(identity.name, settings, options)
    opened = await _unless(told, _open(identity.name, settings, place))
    if opened is None:
        return  # told to end before there was anything to leave
    settings, connection, credentials = opened
    workdir = (settings.data_dir / "replicas" / identity.name).resolve()
    agent = Agent(
        identity, settings, connection, WorkerKey(credentials), workdir, version("jetfleet"),
        options.drain_s,
    )  # fmt: skip
    agent.beside(_when_told(told, agent))
    if place is not None:
        agent.beside(place.keep(connection, agent.leave))
    if options.spot_file is not None or options.spot_url:
        agent.beside(notices.watch(options.spot_file, options.spot_url, agent.leave))
    try:
        await agent.run()
    finally:
        await connection.close()
    if place is not None and place.refused:
        raise StartupError(f"left the fleet: {place.refused}")


def _place(name: str, settings: Settings, options: Options) -> Membership | None:
    """What a worker that joins is; None: one with a credentials file."""
    from jetfleet_agent.joining import Membership

    if not options.join:
        return None
    return Membership(options.join, name, settings.data_dir / "joined", options.token)


async def _open(
    name: str, settings: Settings, place: Membership | None
) -> tuple[Settings, Connection, Path]:
    """The worker's connection, the settings that hold on it, and its credentials."""
    if place is not None:
        settings = await place.enter(settings)
        return settings, await place.connect(), place.credentials
    credentials = settings.credentials or Secrets(settings.data_dir).worker(name)
    connection = await Connection.open(
        settings.nats_url, credentials, user=name, name=f"worker-{name}"
    )
    return settings, connection, credentials


async def _unless(told: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work returns; None when we are told to end first."""
    working, hearing = asyncio.ensure_future(work), asyncio.ensure_future(told.wait())
    await asyncio.wait({working, hearing}, return_when=asyncio.FIRST_COMPLETED)
    hearing.cancel()
    if not working.done():
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        return None
    return working.result()


async def _when_told(told: asyncio.Event, agent: Agent) -> None:
    await told.wait()
    agent.leave("told to by a signal")
