"""``jetfleet``: the command line.

Core's own commands are in ``jetfleet.commands``. Other packages join through the entry point group
``jetfleet.commands``: each names a function ``register(app)`` that adds commands to a Typer. They
are imported only when one of them, or the list of all, is asked for.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from jetfleet.commands import (
    apply,
    capacity,
    events,
    explain,
    inventory,
    logs,
    up,
    work,
    workers,
)
from jetfleet.commands.common import (
    AsJson,
    DataDir,
    Debug,
    NatsUrl,
    State,
    current_state,
    export,
)
from jetfleet.commands.output import shown
from jetfleet.errors import JetfleetError, MissingExtra

GROUP = "jetfleet.commands"
# Commands of our other packages: the entry point and extra that bring each, and what the list of
# commands says of it, so that the list is there at once.
OTHERS = {
    "agent": ("agent", "Be a worker: run replicas of models, pull work for their free slots."),
    "provider": ("agent", "Start workers on demand: processes, containers, or by any command."),
    "gateway": ("gateway", "Serve the HTTP API."),
    "projector": ("projections", "Fold the log into tables and answer queries."),
    "conductor": ("projections", "Decide which worker runs what."),
}
EXTRAS_OF_MODULES = {
    "fastapi": "gateway",
    "starlette": "gateway",
    "uvicorn": "gateway",
    "duckdb": "projections",
    "aiohttp": "agent",
    "psutil": "agent",
    "docker": "agent",
    "pynvml": "agent",
}


class Group(TyperGroup):
    """Core's commands, and those of other packages once they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        for point in entry_points(group=GROUP):
            ours = any(extra == point.name for extra, _ in OTHERS.values())
            for name, other in (stand_ins(point) if ours else load(point)).items():
                self.commands.setdefault(name, other)
        return super().list_commands(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in CORE:
            wanted = OTHERS.get(args[0], (None,))[0]
            for point in entry_points(group=GROUP):
                if wanted in (None, point.name):
                    self.commands.update(load(point))
        return super().resolve_command(ctx, args)


def load(point: EntryPoint) -> dict[str, Any]:
    """The commands of a package, by name; stand-ins for them when it lacks what it needs."""
    joined = _group()
    try:
        point.load()(joined)
    except ModuleNotFoundError as error:
        return stand_ins(point, error)
    return _commands(joined)


def stand_ins(point: EntryPoint, error: ModuleNotFoundError | None = None) -> dict[str, Any]:
    """Commands that are listed like those of the package; using one says what is missing."""

    def missing(context: typer.Context) -> NoReturn:
        raise missing_extra(error, point.name, f"`jetfleet {context.info_name}`") from error

    joined = _group()
    names = [name for name, (extra, _) in OTHERS.items() if extra == point.name] or [point.name]
    loose = {"ignore_unknown_options": True, "allow_extra_args": True}
    for name in names:
        text = OTHERS[name][1] if name in OTHERS else ""
        joined.command(name, help=text, context_settings=loose)(missing)
    return _commands(joined)


def _group() -> typer.Typer:
    group = typer.Typer()
    group.callback()(lambda: None)  # keeps a single command from becoming the whole program
    return group


def _commands(group: typer.Typer) -> dict[str, Any]:
    return dict(get_command(group).commands)  # type: ignore[attr-defined]  # a callback makes a group


def missing_extra(error: ModuleNotFoundError | None, extra: str, why: str) -> MissingExtra:
    """The error that names the extra of the module that was not found."""
    module = (error.name or "" if error is not None else "").partition(".")[0]
    return MissingExtra(EXTRAS_OF_MODULES.get(module, extra), why)


app = typer.Typer(
    cls=Group,
    name="jetfleet",
    help="One inference service out of many machines; the log is the control plane.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # main() says what went wrong
    rich_markup_mode="rich",
)


@app.callback()
def options(
    context: typer.Context,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    nats_url: NatsUrl = None,
    debug: Debug = False,
) -> None:
    """One inference service out of many machines; the log is the control plane."""
    state = State().merged(as_json=as_json, data_dir=data_dir, nats_url=nats_url, debug=debug)
    context.obj = state
    current_state.set(state)
    if context.invoked_subcommand not in CORE:
        export(state)


for family in (up, apply, work, explain, events, inventory, workers, capacity, logs):
    family.register(app)
CORE = frozenset(
    {each.name for each in app.registered_commands} | {each.name for each in app.registered_groups}
)


def main() -> None:
    """Run the command line. Errors become one line and status 1; wrong usage is status 2."""
    current_state.set(State())
    try:
        app()
    except JetfleetError as error:
        fail(error.code, str(error), error)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS_OF_MODULES:
            fail("unexpected", _unexpected(error), error)
        missing = missing_extra(error, "all", "this command")
        fail(missing.code, str(missing), error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stdout = None  # nobody reads: nothing to flush at exit
        sys.exit(0)
    except Exception as error:
        fail(*_foreign(_leaf(error)), error)


def _leaf(error: Exception) -> Exception:
    """The one error inside groups of one, which task groups make of it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _foreign(error: Exception) -> tuple[str, str]:
    """Code and message of an error: ours from a group, settings from the environment, or a bug."""
    if isinstance(error, JetfleetError):
        return error.code, str(error)
    if type(error).__name__ == "ValidationError" and getattr(error, "title", "") == "Settings":
        first = error.errors(include_url=False)[0]  # type: ignore[attr-defined]  # pydantic's
        variable = "JETFLEET_" + "_".join(str(part) for part in first["loc"]).upper()
        return "startup_error", f"setting {variable}: {first['msg']}"
    return "unexpected", _unexpected(error)


def _unexpected(error: Exception) -> str:
    return f"{type(error).__name__}: {error}; --debug shows where it happened"


def fail(code: str, message: str, error: BaseException) -> NoReturn:
    """Say what went wrong in one red line on stderr (JSON with --json), and exit with status 1."""
    state = current_state.get()
    if state.debug:
        import traceback

        traceback.print_exception(error)
    if state.as_json:
        import json

        sys.stderr.write(json.dumps({"error": {"code": code, "message": message}}) + "\n")
    else:
        red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
        text = shown(" ".join(message.split()), sys.stderr)
        sys.stderr.write(f"{red}error: {text}{plain}\n")
    sys.exit(1)
