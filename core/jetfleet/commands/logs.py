"""``jetfleet logs``: what models print, wherever they run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jetfleet.commands.common import State, command, connected
from jetfleet.commands.output import note
from jetfleet.errors import JobNotFound, WorkerNotFound

if TYPE_CHECKING:
    from jetfleet.client import Client
    from jetfleet.logs import Line, LogFeed


def register(app: typer.Typer) -> None:
    command(app, "logs")(logs)


async def logs(
    state: State,
    target: Annotated[str, typer.Argument(help="A job, or a worker.", metavar="JOB|WORKER")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    worker: Annotated[
        bool, typer.Option("--worker", help="The name is a worker's, not a job's.")
    ] = False,
) -> None:
    """Print the last lines of the models' output (stdout and stderr)."""
    async with connected(state) as client:
        feed = await _feed(client, target, worker, follow)
        told: set[str] = set()
        async for line in feed.lines():
            told.add(line.replica)
            if state.as_json:
                state.output.line(asdict(line))
                continue
            if line.missing:
                note(f"{_whose(line)}: {line.missing} lines came too fast and are left out")
            several = len(told) > 1 or len(feed.replicas()) > 1
            state.output.text(f"{_whose(line)} {line.text}" if several else line.text)
        for replica in sorted(feed.silent):
            note(f"replica {replica} did not answer; its worker may be lost, or just began with it")
        if not feed.replicas():
            note(f"nothing of {target} runs now; `jetfleet events --stream FLEET` tells why")


def _whose(line: Line) -> str:
    return f"{line.worker}/{line.job}/{line.replica[-6:]}"


async def _feed(client: Client, target: str, is_worker: bool, follow: bool) -> LogFeed:
    """Raises JobNotFound or WorkerNotFound when there is none of this name."""
    from jetfleet.events import WorkerJoined
    from jetfleet.logs import LogFeed
    from jetfleet.streams import FLEET
    from jetfleet.subjects import fleet, is_name

    tenant = client.settings.tenant
    if not is_worker and client.registry.job(tenant, target) is not None:
        return LogFeed(client.connection, tenant, job=target, follow=follow)
    if is_name(target):
        async for record in client.events(FLEET, subject=fleet(target, "joined")):
            if isinstance(record.event, WorkerJoined):
                return LogFeed(client.connection, tenant, worker=target, follow=follow)
    if is_worker:
        raise WorkerNotFound(f"there is no worker {target!r}; `jetfleet worker list` shows all")
    raise JobNotFound(
        f"there is no job or worker {target!r}; "
        "`jetfleet job list` and `jetfleet worker list` show them"
    )
