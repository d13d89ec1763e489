"""``jetfleet agent``: the worker agent as a command."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from importlib.metadata import version
from typing import Annotated

import typer

from jetfleet.commands.common import State, command
from jetfleet.connection import Connection
from jetfleet.errors import StartupError
from jetfleet.settings import Settings
from jetfleet.subjects import is_name


def register(app: typer.Typer) -> None:
    """Add the command ``agent``."""
    command(app, "agent")(agent)


def agent(
    state: State,
    name: Annotated[str, typer.Option(help="Name of this worker.")] = "local",
    owner: Annotated[str, typer.Option(help="Who owns this machine.")] = "",
    trusted: Annotated[bool, typer.Option(help="Managed by the fleet's operators.")] = False,
    ephemeral: Annotated[bool, typer.Option(help="May vanish at any time.")] = False,
    price_per_hour: Annotated[float, typer.Option(help="Cost of this machine.", min=0)] = 0.0,
    heartbeat_s: Annotated[float, typer.Option(help="Seconds between heartbeats.", min=0.1)] = 2.0,
    drain_s: Annotated[float, typer.Option(help="Seconds running work has at the end.")] = 30.0,
) -> None:
    """Run the worker agent: take assignments, run models, serve invocations. SIGTERM drains it."""
    import uvloop

    from jetfleet_agent.agent import Identity

    logging.getLogger("jetfleet").setLevel(logging.DEBUG if state.debug else logging.INFO)
    if not is_name(name):
        raise StartupError(f"{name!r} cannot name a worker: use a-z, 0-9, '-' and single '_'")
    gc.freeze()  # what is imported by now stays
    gc.set_threshold(50_000, 20, 20)  # nothing on the path makes cycles; collect rarely
    identity = Identity(name, {}, owner, trusted, ephemeral, price_per_hour, heartbeat_s)
    uvloop.run(_serve(identity, state.settings(), drain_s))


async def _serve(identity: object, settings: Settings, drain_s: float) -> None:
    from jetfleet.secrets import Secrets
    from jetfleet_agent.agent import Agent, Identity
    from jetfleet_agent.links import WorkerKey

    assert isinstance(identity, Identity)
    credentials = settings.credentials or Secrets(settings.data_dir).worker(identity.name)
    connection = await Connection.open(
        settings.nats_url, credentials, user=identity.name, name=f"worker-{identity.name}"
    )
    agent = Agent(
        identity,
        settings,
        connection,
        WorkerKey(credentials),
        (settings.data_dir / "replicas" / identity.name).resolve(),
        version("jetfleet"),
        drain_s,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop.set)
    try:
        await agent.run()
    finally:
        await connection.close()
