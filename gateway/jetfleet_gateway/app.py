"""The application: routes, error answers, the guard, and the client's life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from jetfleet import errors
from jetfleet.client import Client
from jetfleet.settings import Settings
from jetfleet.specs import ModelSpec
from jetfleet_gateway import invocations, jobs, models, openapi, problems, runs, workers
from jetfleet_gateway.direct import Direct
from jetfleet_gateway.door import Connect, Door, door_of
from jetfleet_gateway.guard import Guard

_REFERENCED = (runs.RunRequest, ModelSpec, jobs.JobNew, jobs.JobPut, jobs.JobPatch)
_DESCRIPTION = """\
Register models, open inference jobs on them, run them, and see what became of it.

Errors are problem documents (RFC 9457) with a `code` to branch on. There are no API keys yet: who
reaches this address acts as the one tenant of the installation.
"""


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """It can accept work: connected to the broker, the registry folded."""

    status: Literal["ready"] = "ready"
    registry_seq: int


class Gateway(FastAPI):
    """FastAPI with the document of ``openapi.document``, and the door to the broker."""

    door: Door
    front: ASGIApp  # the guard and the measured path, before everything of FastAPI's

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self.front(scope, receive, send)

    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi.document(self, _REFERENCED)

    def openapi(self) -> dict[str, Any]:
        return self._document


health = APIRouter(tags=["health"], generate_unique_id_function=openapi.operation_name)


@health.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """Whether the process lives; says nothing about the broker."""
    return Health()


@health.get("/readyz", response_model=Readiness, responses=openapi.refusals_of(errors.Unavailable))
async def readyz(request: Request) -> Readiness:
    """Whether work can be accepted now."""
    client = door_of(request).ready()
    return Readiness(registry_seq=client.registry.state.seq)


def create_app(
    settings: Settings | None = None,
    *,
    connect: Connect | None = None,
    hosts: Collection[str] | None = None,
) -> Gateway:
    """The gateway as an ASGI application.

    Args:
        settings: default: from ``JETFLEET_*`` variables.
        connect: makes the client; default: one with the gateway's role. It is tried until it
            succeeds, in the background: until then requests that need it are answered 503.
        hosts: host names it answers for besides localhost and IP addresses; None: any.
    """
    settings = settings or Settings()
    door = Door(connect or _connector(settings), settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        door.start()
        try:
            yield
        finally:
            await door.stop()

    app = Gateway(
        title="jetfleet",
        version=version("jetfleet"),
        summary="Turns a crowd of GPU machines into one inference service.",
        description=_DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        redirect_slashes=False,
        # Traces are carried through the events; asking OpenTelemetry for its providers takes 10 us.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.door = door
    for kind, handler in problems.HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.front = Guard(Direct(super(Gateway, app).__call__, runs.routes()), hosts)
    # Routes are taken over as they are: include_router would match each request twice.
    ours = (runs.router, jobs.router, models.router, invocations.router, workers.router, health)
    app.router.routes[:0] = [route for router in ours for route in router.routes]
    return app


def _connector(settings: Settings) -> Connect:
    async def connect() -> Client:
        return await Client.connect(settings, role="gateway", name="gateway")

    return connect
