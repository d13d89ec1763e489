"""Commands about invocations: ``run``, ``invocation``, ``cancel``."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jetfleet.commands.common import State, command, connected
from jetfleet.commands.hints import explaining
from jetfleet.commands.output import cell, note, waiting
from jetfleet.errors import InvalidRequest, Unavailable

if TYPE_CHECKING:
    from jetfleet.client import Client, Handle
    from jetfleet.events import OutcomeEvent
    from jetfleet.views import InvocationView

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of an invocation.")]


def register(app: typer.Typer) -> None:
    command(app, "run")(run)
    command(app, "invocation")(invocation)
    command(app, "cancel")(cancel)


async def run(  # noqa: PLR0917 - options; typer passes them by name
    state: State,
    job: Annotated[str, typer.Argument(help="Name of the job.")],
    input: Annotated[
        str, typer.Option("--input", "-i", help="JSON, @FILE with JSON, or '-' for stdin.")
    ] = "null",
    stream: Annotated[bool, typer.Option("--stream", help="Print output as it comes.")] = False,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", help="Longest run of one attempt, seconds.")
    ] = None,
    ttl: Annotated[
        float | None, typer.Option(help="Longest wait in the queue, seconds; then it expires.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key gives the same invocation.")
    ] = None,
    priority: Annotated[str | None, typer.Option(help="One of the job's priority classes.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the outcome, or print the id.")
    ] = True,
) -> None:
    """Run a model: submit an invocation to a job and print what comes out."""
    value = read_input(input)
    async with connected(state) as client:
        handle = await client.submit(
            job,
            value,
            stream=stream,
            timeout_s=timeout_s,
            ttl_s=ttl,
            idempotency_key=idempotency_key,
            priority=priority,
        )
        if not wait:
            _accepted(state, handle)
            return
        try:
            await _follow(state, client, handle, stream=stream)
        except (asyncio.CancelledError, Unavailable):
            note(f"{handle.invocation} goes on without us; `jetfleet cancel` ends it")
            raise


async def _follow(state: State, client: Client, handle: Handle, *, stream: bool) -> None:
    async with explaining(client, handle.job):
        seen = await _print_chunks(state, handle) if stream else 0
        with waiting(f"{handle.job}: waiting for {handle.invocation}"):
            outcome = await handle.outcome()
    if state.as_json:
        document = await _outcome_document(client, outcome)
        (state.output.line if stream else state.output.document)(document)
        if document["state"] != "completed":
            raise typer.Exit(1)
        return
    output = await client.output(outcome)  # raises when it is not a completed one
    if seen == 0 or seen < outcome.data.chunks:
        if seen:
            note(f"{outcome.data.chunks - seen} chunks were missed on the way; the whole output:")
        _print_output(state, output)


async def _print_chunks(state: State, handle: Handle) -> int:
    """Print output as it comes; returns how many chunks came."""
    seen = 0
    async for chunk in handle.chunks():
        seen += 1
        if state.as_json:
            state.output.line({"chunk": chunk})
        else:
            state.output.raw(chunk_text(chunk))
    if seen and not state.as_json:
        state.output.raw("\n")
    return seen


def _accepted(state: State, handle: Handle) -> None:
    if state.as_json:
        state.output.document(
            {"invocation": handle.invocation, "job": handle.job, "duplicate": handle.duplicate}
        )
    else:
        state.output.text(handle.invocation)


def _print_output(state: State, output: Any) -> None:
    if isinstance(output, str):
        state.output.text(output)
    else:
        state.output.document(output)


async def _outcome_document(client: Client, outcome: OutcomeEvent) -> dict[str, Any]:
    data = outcome.data.model_dump(mode="json", exclude={"output", "output_ref"})
    state = outcome.type.rpartition(".")[2]
    document = {"invocation": data.pop("invocation"), "state": state, **data}
    if state == "completed":
        document["output"] = await client.output(outcome)
    return document


def read_input(text: str) -> Any:
    """The JSON value of ``--input``.

    Raises:
        InvalidRequest: not JSON, or the file cannot be read.
    """
    source = "--input"
    if text == "-":
        text, source = sys.stdin.read(), "standard input"
    elif text.startswith("@"):
        source = text[1:]
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"cannot read {source}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{source} is not UTF-8 text") from error
    try:
        return json.loads(text)
    except ValueError as error:
        hint = "; text needs its quotes: --input '\"hello\"'" if source == "--input" else ""
        raise InvalidRequest(f"{source} is not JSON ({error}){hint}") from error


def chunk_text(chunk: Any) -> str:
    """A chunk as people read it: text as it is, OpenAI deltas as their text, the rest as lines."""
    if isinstance(chunk, str):
        return chunk
    if isinstance(chunk, dict) and isinstance(chunk.get("choices"), list):
        return "".join(_delta(choice) for choice in chunk["choices"])
    return json.dumps(chunk, ensure_ascii=False) + "\n"


def _delta(choice: Any) -> str:
    if not isinstance(choice, dict):
        return ""
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


async def invocation(state: State, id: Id) -> None:
    """Show one invocation: its state and what happened to it, when."""
    async with connected(state) as client:
        _show(state, await client.find(id))


async def cancel(
    state: State,
    id: Id,
    reason: Annotated[str, typer.Option(help="Kept with the event.")] = "",
) -> None:
    """Cancel an invocation, queued or running."""
    async with connected(state) as client:
        view = await client.cancel(id, reason)
        if state.as_json or view.ended:
            _show(state, view)
        else:
            state.output.text(f"{id}: asked to cancel; it is still {view.state}")


def _show(state: State, view: InvocationView) -> None:
    if state.as_json:
        state.output.document(view_document(view))
        return
    state.output.text(f"{view.invocation}  {view.job}  {view.state}")
    for time, text in timeline(view):
        state.output.text(f"  {time}  {text}")
    if view.outcome is not None and view.outcome.type == "jetfleet.invocation.completed":
        reference = view.outcome.data.output_ref
        if reference is None:
            _print_output(state, view.outcome.data.output)
        else:
            note(f"output: {reference.size} bytes; read it with the client or over HTTP")


def timeline(view: InvocationView) -> list[tuple[str, str]]:
    """When, and what happened then."""
    lines = [(cell(view.queued_at), "queued")]
    if view.started_at is not None:
        waited = (view.started_at - view.queued_at).total_seconds()
        attempt = f", attempt {view.attempts}" if view.attempts > 1 else ""
        lines.append(
            (cell(view.started_at), f"started on {view.worker} after {waited:.3f} s{attempt}")
        )
    if view.finished_at is not None and view.outcome is not None:
        run_s = view.outcome.data.run_s
        took = f" in {run_s:.3f} s" if run_s is not None else ""
        lines.append((cell(view.finished_at), f"{view.state}{took}{_why(view.outcome)}"))
    if view.unreadable is not None:
        lines.append((cell(view.finished_at), f"its outcome cannot be read: {view.unreadable}"))
    return lines


def _why(outcome: OutcomeEvent) -> str:
    if outcome.type == "jetfleet.invocation.failed":
        return f": {outcome.data.error.code}: {outcome.data.error.message}"
    if outcome.type == "jetfleet.invocation.cancelled" and outcome.data.reason:
        return f": {outcome.data.reason}"
    return ""


def view_document(view: InvocationView) -> dict[str, Any]:
    """The view as JSON, its outcome as an event."""
    from dataclasses import fields

    return {each.name: getattr(view, each.name) for each in fields(view)}
