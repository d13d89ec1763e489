"""``jetfleet agent``: the worker agent as a command."""

from __future__ import annotations

import asyncio
import logging
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from jetfleet.connection import Connection
from jetfleet.errors import StartupError
from jetfleet.settings import Settings
from jetfleet.subjects import is_name


def register(app: typer.Typer) -> None:
    """Add the command ``agent``."""
    app.command("agent")(agent)


def agent(
    name: Annotated[str, typer.Option(help="name of this worker")] = "local",
    data_dir: Annotated[Path | None, typer.Option(help="folder with credentials")] = None,
    owner: Annotated[str, typer.Option(help="who owns this machine")] = "",
    trusted: Annotated[bool, typer.Option(help="managed by the fleet's operators")] = False,
    ephemeral: Annotated[bool, typer.Option(help="may vanish at any time")] = False,
    price_per_hour: Annotated[float, typer.Option(help="cost of this machine")] = 0.0,
    heartbeat_s: Annotated[float, typer.Option(help="seconds between heartbeats")] = 2.0,
    drain_s: Annotated[float, typer.Option(help="seconds running work may take at the end")] = 30.0,
    verbose: Annotated[bool, typer.Option(help="a line for every invocation")] = False,
) -> None:
    """Run the worker agent: take assignments, run models, serve invocations."""
    import uvloop

    from jetfleet_agent.agent import Identity

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(message)s", force=True
    )
    logging.getLogger("nats").setLevel(logging.CRITICAL)  # the connection reports by itself
    logging.getLogger("asyncio").setLevel(logging.INFO)
    if not is_name(name):
        raise StartupError(f"{name!r} cannot name a worker: use a-z, 0-9, '-' and single '_'")
    settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    identity = Identity(name, {}, owner, trusted, ephemeral, price_per_hour, heartbeat_s)
    uvloop.run(_serve(identity, settings, drain_s))


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
