"""What every command shares: the global options, the connection, where output goes.

Global options are accepted before and after the command's name, since people write both. Modules
that are slow to import (nats, pydantic models) are imported inside functions, so that ``--help``
answers at once.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jetfleet.commands.output import Output

if TYPE_CHECKING:
    from jetfleet.client import Client
    from jetfleet.settings import Settings

ENDPOINTS_FILE = "up.json"  # written by `jetfleet up` into its data folder
_PANEL = "Global options"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=_PANEL)]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Folder of the installation (keys, log). Default: .jetfleet",
        rich_help_panel=_PANEL,
    ),
]
NatsUrl = Annotated[
    str | None,
    typer.Option(
        "--nats-url",
        help="The broker. Default: that of the `jetfleet up` on the data folder.",
        rich_help_panel=_PANEL,
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks and debug logs.", rich_help_panel=_PANEL)
]


@dataclass(frozen=True, slots=True)
class State:
    """The global options of this run."""

    as_json: bool = False
    data_dir: Path | None = None
    nats_url: str | None = None
    debug: bool = False
    output: Output = field(default_factory=Output)

    def merged(
        self, *, as_json: bool, data_dir: Path | None, nats_url: str | None, debug: bool
    ) -> State:
        """These options with those given after the command's name."""
        return replace(
            self,
            as_json=self.as_json or as_json,
            data_dir=data_dir or self.data_dir,
            nats_url=nats_url or self.nats_url,
            debug=self.debug or debug,
            output=Output(as_json=self.as_json or as_json),
        )

    def environment(self) -> dict[str, str]:
        """The options that were given, as variables that ``Settings`` of any process reads."""
        given = {"JETFLEET_DATA_DIR": self.data_dir, "JETFLEET_NATS_URL": self.nats_url}
        return {name: str(value) for name, value in given.items() if value is not None}

    def settings(self) -> Settings:
        """Settings: options first, then the environment, then what `jetfleet up` wrote down."""
        from jetfleet.settings import Settings

        given: dict[str, Any] = {}
        if self.data_dir is not None:
            given["data_dir"] = self.data_dir
        if self.nats_url is not None:
            given["nats_url"] = self.nats_url
        settings = Settings(**given)
        if "nats_url" not in settings.model_fields_set:
            url = read_endpoints(settings.data_dir).get("nats_url")
            settings = settings.model_copy(update={"nats_url": url} if url else {})
        return settings


current_state: ContextVar[State] = ContextVar("current_state", default=State())  # noqa: B039 - frozen


def read_endpoints(data_dir: Path) -> dict[str, Any]:
    """What `jetfleet up` on this folder said of itself; empty when none runs."""
    try:
        endpoints: dict[str, Any] = json.loads((data_dir / ENDPOINTS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return endpoints


@asynccontextmanager
async def connected(state: State) -> AsyncIterator[Client]:
    """A client with the operator's rights."""
    from jetfleet.client import Client

    async with await Client.connect(state.settings(), role="operator", name="cli") as client:
        yield client


def command(
    app: typer.Typer, name: str, **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register ``function(state, ...)`` as a command that also takes the global options.

    A coroutine function is run in an event loop of its own.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(
            context: typer.Context,
            as_json: bool,
            data_dir: Path | None,
            nats_url: str | None,
            debug: bool,
            **arguments: Any,
        ) -> None:
            before = context.find_root().obj or State()
            state = before.merged(
                as_json=as_json, data_dir=data_dir, nats_url=nats_url, debug=debug
            )
            current_state.set(state)
            _log(state)
            result = function(state, **arguments)
            if inspect.iscoroutine(result):
                _run(result)

        run.__signature__ = _signature(function)  # type: ignore[attr-defined]  # typer reads it
        run.__annotations__ = {
            each.name: each.annotation
            for each in run.__signature__.parameters.values()  # type: ignore[attr-defined]  # as above
        }
        del run.__dict__["__wrapped__"]
        app.command(name, **options)(run)
        return function

    return register


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The function's own parameters without ``state``, then the global options."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        inspect.Parameter("as_json", keyword, annotation=AsJson, default=False),
        inspect.Parameter("data_dir", keyword, annotation=DataDir, default=None),
        inspect.Parameter("nats_url", keyword, annotation=NatsUrl, default=None),
        inspect.Parameter("debug", keyword, annotation=Debug, default=False),
    ]
    return inspect.Signature([*(p.replace(kind=keyword) for p in own), *shared])


def _log(state: State) -> None:
    import logging

    level = logging.DEBUG if state.debug else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


def _run(work: Coroutine[Any, Any, None]) -> None:
    import asyncio

    asyncio.run(work)


def export(state: State) -> None:
    """Hand the global options on to commands of other packages, which read the environment."""
    os.environ.update(state.environment())
