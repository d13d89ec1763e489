"""Commands of the projections: ``jetfleet conductor`` and ``jetfleet projector``."""

from __future__ import annotations

import typer

from jetfleet.commands.common import command
from jetfleet_projections.conductor_command import conductor
from jetfleet_projections.projector_command import projector


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "conductor")(conductor)
    command(app, "projector")(projector)
