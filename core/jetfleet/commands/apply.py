"""``jetfleet apply FILE.yaml``: bring models and jobs to what a file declares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jetfleet.commands.common import State, command, connected

if TYPE_CHECKING:
    from jetfleet.registry import Change

MARKS = {"created": "+", "updated": "~", "unchanged": "="}


def register(app: typer.Typer) -> None:
    command(app, "apply")(apply)


async def apply(
    state: State,
    file: Annotated[Path, typer.Argument(help="YAML; '-' reads standard input.")],
) -> None:
    """Create or update the models and jobs that a YAML file declares; say what changed.

    Applying the same file again changes nothing.
    """
    from jetfleet.manifest import read_manifest, read_text

    text = sys.stdin.read() if str(file) == "-" else read_text(file)
    async with connected(state) as client:
        tenant = client.settings.tenant
        manifest = read_manifest(
            file, lambda name, version: client.registry.model(tenant, name, version), text
        )
        for model in manifest.models:
            _say(state, "model", model.ref, await client.register_model(model))
        for job in manifest.jobs:
            _say(state, "job", job.name, await client.apply_job(job))


def _say(state: State, kind: str, name: str, change: Change) -> None:
    """One line as it happens, so that what was done before an error is known."""
    if state.as_json:
        state.output.line(
            {"kind": kind, "name": name, "change": change.kind, "fields": list(change.fields)}
        )
    else:
        fields = f": {', '.join(change.fields)}" if change.kind == "updated" else ""
        state.output.text(f"{MARKS.get(change.kind, ' ')} {kind} {name} {change.kind}{fields}")
