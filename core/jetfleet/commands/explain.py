"""``jetfleet explain``: what is waited for, and which decision led to it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from jetfleet.commands.common import State, command, connected

if TYPE_CHECKING:
    from jetfleet.explain import Explanation
    from jetfleet.story import Entry

WORTH_TELLING = timedelta(seconds=0.05)  # a shorter wait would be one of 0.0 s


def register(app: typer.Typer) -> None:
    command(app, "explain")(explain)


async def explain(
    state: State,
    target: Annotated[
        str,
        typer.Argument(
            help="Id of an invocation, a job, or a worker.", metavar="INVOCATION|JOB|WORKER"
        ),
    ],
    worker: Annotated[
        bool, typer.Option("--worker", help="The name is a worker's, not a job's.")
    ] = False,
) -> None:
    """Say why something waits: the cause, what was waited for, and the decisions that led to it."""
    from jetfleet.evidence import explain
    from jetfleet.explain import document

    async with connected(state) as client:
        found = await explain(client, target, worker=worker)
    if state.as_json:
        state.output.document(document(found))
        return
    for line in lines(found):
        state.output.text(line)


def lines(explanation: Explanation) -> list[str]:
    """The explanation for people: the cause first, then what happened."""
    cause = explanation.cause
    found = [f"{explanation.name}  {explanation.state}", f"  {cause.sentence(explanation.at)}"]
    found += [f"    {detail}" for detail in cause.details]
    waits = explanation.waits
    if waits and waits[-1].end - waits[0].start >= WORTH_TELLING:
        found += ["", f"  {_waited(explanation)}"]
    if explanation.timeline:
        found.append("")
    for each in explanation.timeline:
        found += _told(each)
    return found


def _waited(explanation: Explanation) -> str:
    """``waited 12.3 s: no worker was at work 12.0 s; a replica was being prepared 0.3 s``."""
    from jetfleet.cause_codes import CODES
    from jetfleet.causes import duration

    waits = explanation.waits
    parts = [f"{CODES[wait.code]} {duration(wait.length)}" for wait in waits]
    return f"waited {duration(waits[-1].end - waits[0].start)}: {'; '.join(parts)}"


def _told(entry: Entry) -> list[str]:
    from jetfleet.causes import some, verdict_words

    time = entry.at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    found = [f"  {time}  {entry.text}  ({entry.stream} {entry.seq})"]
    why, margin = entry.why, " " * (len(time) + 6)
    if why is not None:
        seen = f"REGISTRY {why.observed_registry_seq}, FLEET {why.observed_fleet_seq}"
        found.append(f"{margin}{why.reason}  ({why.policy} {why.policy_version}, saw {seen})")
        if why.candidates:
            found.append(margin + "; ".join(some([verdict_words(c) for c in why.candidates])))
    return found
