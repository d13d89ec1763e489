"""Commands about workers: list, show, drain, and the tokens that machines join with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jetfleet.commands.common import State, command, connected, read_endpoints
from jetfleet.commands.output import note, waiting
from jetfleet.errors import Conflict, InvalidRequest, JetfleetError, WorkerNotFound

if TYPE_CHECKING:
    from jetfleet.client import Client
    from jetfleet.log import Record
    from jetfleet.telemetry import Heard

COLUMNS = ("worker", "state", "owner", "trusted", "ephemeral", "price_per_hour", "cpu_count",
           "memory_mib", "gpus", "load", "labels", "joined_at")  # fmt: skip
NUDGE_S = 1.0  # a nudge may be lost, so it is repeated
ANSWER_S = 10.0  # a worker that says nothing for so long does not answer
AFTER_S = 30.0  # to stop its replicas, once its running work is over
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the worker.")]


class WorkerSilent(JetfleetError):
    """The worker does not answer."""

    code = "worker_silent"


def register(app: typer.Typer) -> None:
    family = typer.Typer(name="worker", help="Workers.", no_args_is_help=True)
    verbs: dict[str, Callable[..., Any]] = {
        "list": worker_list,
        "show": worker_show,
        "drain": worker_drain,
        "token": worker_token,
    }
    for verb, function in verbs.items():
        command(family, verb)(function)
    app.add_typer(family, name="worker")


# -- looking


async def worker_list(state: State) -> None:
    """Every worker that ever joined, and how it is."""
    async with connected(state) as client:
        rows = (await client.query("workers")).dicts()
        heard = await _heard(client, rows)
        if state.as_json:
            state.output.document([_whole(row, heard.get(row["worker"])) for row in rows])
            return
        state.output.table(
            COLUMNS,
            [[_shown(row, heard.get(row["worker"]), column) for column in COLUMNS] for row in rows],
            empty="no worker has joined yet",
        )


async def worker_show(state: State, worker: Name) -> None:
    """One worker in full, with its last heartbeat while it is at work."""
    async with connected(state) as client:
        row = await _row(client, worker)
        heard = await _heard(client, [row])
        state.output.document(_whole(row, heard.get(worker)))


async def _row(client: Client, worker: str) -> dict[str, Any]:
    rows = (await client.query("worker", name=worker)).dicts()
    if not rows:
        raise WorkerNotFound(f"there is no worker {worker!r}; `jetfleet worker list` shows all")
    return rows[0]


async def _heard(client: Client, rows: list[dict[str, Any]]) -> dict[str, Heard]:
    """The last heartbeat of those at work, by worker, as far as there is one of this session."""
    from jetfleet.telemetry import last_heartbeats

    live = {row["worker"]: row["session"] for row in rows if row["state"] in ("joined", "draining")}
    return await last_heartbeats(client.connection, live)


def _whole(row: dict[str, Any], heard: Heard | None) -> dict[str, Any]:
    said = None
    if heard is not None:
        data = heard.heartbeat.data.model_dump(mode="json", exclude={"worker", "session"})
        said = {"at": heard.at, **data}
    return {**row, "heartbeat": said}


def _shown(row: dict[str, Any], heard: Heard | None, column: str) -> Any:
    """A cell of the table: short words for what is nested."""
    if column == "gpus":
        return _gpus(row["gpus"], heard) or "-"
    if column == "load":
        cpu = None if heard is None else heard.heartbeat.data.cpu
        return "-" if cpu is None else f"{cpu:.0%}"
    if column == "labels":
        return " ".join(f"{name}={value}" for name, value in (row["labels"] or {}).items()) or "-"
    return row[column]


def _gpus(specs: list[dict[str, Any]] | None, heard: Heard | None) -> str:
    """``2x NVIDIA H100 (41%, 30 GiB used)``, load where the last heartbeat has it."""
    names: dict[str, int] = {}
    for spec in specs or []:
        names[spec["name"]] = names.get(spec["name"], 0) + 1
    text = ", ".join(name if count == 1 else f"{count}x {name}" for name, count in names.items())
    loads = () if heard is None else heard.heartbeat.data.gpus
    busy = [load.utilization for load in loads if load.utilization is not None]
    used = [load.memory_used_mib for load in loads if load.memory_used_mib is not None]
    details = [f"{sum(busy) / len(busy):.0%}"] if busy else []
    details += [f"{sum(used) / 1024:.1f} GiB used"] if used else []
    return f"{text} ({', '.join(details)})" if text and details else text


# -- draining


async def worker_drain(
    state: State,
    worker: Name,
    within: Annotated[
        float | None,
        typer.Option(help="Seconds that running work has. Default: the agent's --drain-s.", min=0),
    ] = None,
) -> None:
    """Let a worker finish what it runs, take nothing more, and leave; waits until it has left."""
    began = time.monotonic()
    async with connected(state) as client:
        row = await _row(client, worker)
        if row["state"] not in ("joined", "draining"):
            raise Conflict(
                f"worker {worker} is not at work: it is {row['state']} since {row['changed_at']}"
            )
        with waiting(f"{worker} drains"):
            await _drain(client, worker, row, within)
    took = time.monotonic() - began
    if state.as_json:
        state.output.document({"worker": worker, "state": "left", "took_s": round(took, 3)})
    else:
        state.output.text(f"{worker} has left after {took:.1f} s")


async def _drain(client: Client, worker: str, row: dict[str, Any], within: float | None) -> None:
    from jetfleet import subjects
    from jetfleet.streams import FLEET

    events = client.events(
        FLEET, start=row["joined_seq"], subject=subjects.fleet(worker, "*"), follow=True
    )
    nudging = asyncio.create_task(_nudge(client, worker, within))
    answered = row["state"] == "draining"
    patience = None if within is None else within + AFTER_S  # once it has answered
    deadline = _after(patience if answered else ANSWER_S)
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    record = await anext(events)
            except TimeoutError:
                raise WorkerSilent(_silence(worker, answered)) from None
            verb = _verb(record, row["session"])
            if verb == "draining" and not answered:
                answered, deadline = True, _after(patience)
                nudging.cancel()
                note(f"{worker} takes nothing more; waiting for what it runs")
            elif verb == "left":
                return
            elif verb == "lost":
                raise WorkerSilent(f"worker {worker} was lost while it drained")
    finally:
        nudging.cancel()
        await events.aclose()  # type: ignore[attr-defined]  # it is an async generator


def _after(seconds: float | None) -> float | None:
    """That moment of the loop's clock; None: never."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


def _silence(worker: str, answered: bool) -> str:
    if answered:
        return f"worker {worker} drains, but has not left in time; `jetfleet worker show {worker}`"
    return (
        f"worker {worker} has not answered for {ANSWER_S:g} s: its machine may be cut off; "
        "the conductor declares it lost when its heartbeats stay away"
    )


def _verb(record: Record, session: str) -> str:
    """What happened to this session of the worker; empty: something else."""
    event = record.event
    if event is None or getattr(event.data, "session", "") != session:
        return ""
    return event.type.rpartition(".")[2]


async def _nudge(client: Client, worker: str, within: float | None) -> None:
    import json

    from jetfleet import subjects

    body: dict[str, Any] = {"drain": True}
    if within is not None:
        body["within_s"] = within
    while True:
        await client.connection.publish(subjects.command(worker), json.dumps(body).encode())
        await asyncio.sleep(NUDGE_S)


# -- tokens


def worker_token(  # noqa: PLR0917 - a command's options are its parameters
    state: State,
    trusted: Annotated[
        bool, typer.Option(help="Machines that join are managed by the fleet's operators.")
    ] = False,
    owner: Annotated[str, typer.Option(help="Who owns the machines that join.")] = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", help="name=value; may be repeated.")
    ] = None,
    lasts: Annotated[
        str, typer.Option("--for", help="How long it can be used: 30m, 24h, 7d.")
    ] = "24h",
    uses: Annotated[int, typer.Option(help="How many machines may join with it.", min=1)] = 1,
    url: Annotated[
        str, typer.Option(help="Where the fleet is reached from outside; goes into the token.")
    ] = "",
    revoke: Annotated[
        str, typer.Option(metavar="ID", help="Take back the token of this id instead.")
    ] = "",
) -> None:
    """Make a token that another machine joins with: `jetfleet agent --join URL --token TOKEN`.

    It is signed with the installation's keys, so it is made where these are.
    """
    if revoke:
        asyncio.run(_revoke(state, revoke))
        return
    from jetfleet import access, joining
    from jetfleet.secrets import Secrets

    if url and not url.startswith(joining.SCHEMES):
        raise InvalidRequest(f"--url {url!r}: it must begin with {', '.join(joining.SCHEMES)}")
    settings, now = state.settings(), int(time.time())
    terms = joining.new_terms(
        now,
        for_s=joining.seconds_of(lasts),
        trusted=trusted,
        owner=owner,
        labels=joining.labels_of(label or []),
        uses=uses,
    )
    seed = Secrets(settings.data_dir).held_seed(access.WORKERS_ACCOUNT)
    text = joining.issue(terms, account_seed=seed, now=now, url=url).text()
    if state.as_json:
        state.output.document({**terms.claims(), "expires_at": terms.expires_at, "token": text})
        return
    state.output.text(text)
    where = url or read_endpoints(settings.data_dir).get("ws_url", "wss://YOUR-BROKER")
    machines = "1 machine" if uses == 1 else f"{uses} machines"
    note(f"token {terms.token}: {machines}, {'trusted' if trusted else 'not trusted'}, for {lasts}")
    note(f"there: jetfleet agent --name NAME --join {where} --token-file FILE")
    note(f"take it back: jetfleet worker token --revoke {terms.token}")


async def _revoke(state: State, token: str) -> None:
    from jetfleet import joining, subjects
    from jetfleet.events import WorkerTokenRevoked, encode
    from jetfleet.stamp import Stamp

    if not joining.is_token_id(token):
        raise InvalidRequest(f"{token!r} is no id of a token; give that, not the token")
    async with connected(state) as client:
        stamp = Stamp("cli")
        data = WorkerTokenRevoked.Data(token=token)
        event = WorkerTokenRevoked(**stamp(client.settings.tenant), data=data)
        await client.connection.store(subjects.revoked(token), encode(event), msg_id=event.id)
    if state.as_json:
        state.output.document({"token": token, "revoked": True})
    else:
        state.output.text(f"token {token} is revoked: nobody joins with it any more")
