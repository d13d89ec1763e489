"""``jetfleet events``: read the log, from anywhere, once or for ever."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jetfleet.commands.common import State, command, connected
from jetfleet.errors import InvalidRequest

if TYPE_CHECKING:
    from jetfleet.log import Record, Start

STREAMS = ("INVOCATIONS", "REGISTRY", "FLEET")
# Log lines read at a glance: taken, done, retried, cancelled, failed.
MARKS = {
    "jetfleet.invocation.started": "→",
    "jetfleet.invocation.completed": "←",
    "jetfleet.invocation.cancelled": "⊘",
    "jetfleet.invocation.failed": "!",
    "jetfleet.invocation.expired": "!",
    "jetfleet.worker.lost": "!",
    "jetfleet.replica.failed": "!",
}
DETAILS = ("worker", "replica", "attempt", "run_s", "before", "desired", "reason", "stage",
           "prepare_s", "changed")  # fmt: skip


def register(app: typer.Typer) -> None:
    command(app, "events")(events)


async def events(
    state: State,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events.")] = False,
    start: Annotated[
        str, typer.Option("--from", help="all, new, a sequence number, or an ISO 8601 time.")
    ] = "all",
    stream: Annotated[str, typer.Option(help=f"One of {', '.join(STREAMS)}.")] = "INVOCATIONS",
    type: Annotated[
        str | None, typer.Option(help="Only this type, e.g. completed or invocation.completed.")
    ] = None,
) -> None:
    """Print the events of a stream, in order."""
    position = parse_start(start)
    name = stream.upper()
    if name not in STREAMS:
        raise InvalidRequest(f"there is no stream {stream!r}; streams are {', '.join(STREAMS)}")
    wanted = matching_types(type)
    async with connected(state) as client:
        async for record in client.events(name, start=position, follow=follow):
            kind = record.event.type if record.event is not None else ""
            if wanted is not None and kind not in wanted:
                continue
            if state.as_json:
                state.output.line(document(record))
            else:
                state.output.text(line(record))


def parse_start(text: str) -> Start:
    """``--from``: all, new, a sequence, or a time (without a zone: local time).

    Raises:
        InvalidRequest: it is none of these.
    """
    if text == "all":
        return "all"
    if text == "new":
        return "new"
    if text.isdigit():
        return int(text)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        raise InvalidRequest(
            f"--from {text!r} is neither all, new, a sequence number nor an ISO 8601 time "
            "(2026-01-31T12:00:00)"
        ) from None


def matching_types(given: str | None) -> set[str] | None:
    """The event types that ``--type`` means: a full type, or its last parts. None: every type.

    Raises:
        InvalidRequest: no type matches.
    """
    if given is None:
        return None
    from jetfleet.events import EVENT_TYPES

    found = {name for name in EVENT_TYPES if name == given or name.endswith(f".{given}")}
    if not found:
        raise InvalidRequest(
            f"there is no event type {given!r}; types are {', '.join(sorted(EVENT_TYPES))}"
        )
    return found


def document(record: Record) -> dict[str, Any]:
    """A record as JSON; a body that is no event is given as text, with the reason."""
    known = {
        "stream": record.stream,
        "seq": record.seq,
        "subject": record.subject,
        "time": record.time,
    }
    if record.event is None:
        return {**known, "error": record.error, "body": record.body.decode(errors="replace")}
    return {**known, "event": json.loads(record.body)}


def line(record: Record) -> str:
    """A record as one line."""
    head = f"{record.seq:>8} {record.time.astimezone().strftime('%Y-%m-%d %H:%M:%S.%f')[:-3]}"
    event = record.event
    if event is None:
        return f"{head} ? {record.subject}: set aside: {record.error}"
    data = event.data.model_dump(mode="json")
    subject = next(
        (str(data[key]) for key in ("invocation", "replica", "worker", "job") if key in data), ""
    )
    mark = MARKS.get(event.type, " ")
    if event.type == "jetfleet.invocation.started" and data["attempt"] > 1:
        mark = "↻"
    kind = event.type.removeprefix("jetfleet.")
    return f"{head} {mark} {kind:<22} {_job(data):<20} {subject} {_details(data)}".rstrip()


def _job(data: dict[str, Any]) -> str:
    for key in ("job", "model"):
        value = data.get(key)
        if isinstance(value, dict):
            return str(value["name"])
        if isinstance(value, str):
            return value
    return "-"


def _details(data: dict[str, Any]) -> str:
    shown = {key: data[key] for key in DETAILS if data.get(key) not in (None, "", [])}
    if isinstance(data.get("why"), dict):
        shown["reason"] = data["why"]["reason"]
    if isinstance(data.get("error"), dict):
        shown["error"] = f"{data['error']['code']}: {data['error']['message']}"
    return " ".join(
        f"{key}={value:.3f}" if isinstance(value, float) else f"{key}={value}"
        for key, value in shown.items()
    ).replace("\n", "⏎")
