"""/v1/invocations: what became of a request; its stream; cancelling it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from jetfleet import errors
from jetfleet.blobs import BlobUnreadable
from jetfleet.client import Client
from jetfleet.errors import Conflict, InvocationNotFound, OutcomePending
from jetfleet.events import InvocationCompleted
from jetfleet.views import InvocationStatus, InvocationView
from jetfleet_gateway import sse
from jetfleet_gateway.door import door_of
from jetfleet_gateway.openapi import EXAMPLE_ID, answer, operation_name, refusals_of
from jetfleet_gateway.refusals import InvocationEnded
from jetfleet_gateway.responses import (
    Answer,
    Invocation,
    Page,
    invocation_fields,
    json_response,
)
from jetfleet_gateway.runs import outcome_event, run_events
from jetfleet_gateway.sse import EventStream

MAX_WAIT_S = 300.0
_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


class Filters(BaseModel):
    """What to list; all given conditions hold."""

    model_config = ConfigDict(extra="forbid")

    job: str | None = None
    state: InvocationStatus | None = None
    worker: str | None = Field(None, description="who ran it")
    model: str | None = Field(None, description="name of the job's model")
    cursor: str | None = Field(None, pattern=_UUID, description="`next_cursor` of the page before")
    limit: int = Field(100, ge=1, le=1000, description="items of one page")


class InvocationSummary(Answer):
    """An invocation in a list; its output is with `GET /v1/invocations/{id}`."""

    id: str
    tenant: str
    job: str
    model: str | None = Field(None, description="name of the job's model")
    state: InvocationStatus
    worker: str | None = None
    attempts: int | None = Field(None, description="attempts begun")
    queued_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    wait_s: float | None = Field(None, description="seconds from queued to started")
    run_s: float | None = Field(None, description="seconds the last attempt ran")
    error_code: str | None = Field(None, description="when failed")


class TimelineEvent(Answer):
    """One event of an invocation, as it lies in the log."""

    seq: int = Field(description="position in INVOCATIONS")
    id: str
    type: str = Field(description="jetfleet.invocation.queued, …")
    time: datetime = Field(description="when it was said, UTC")
    source: str = Field(description="who said it")
    worker: str | None = None
    data: dict[str, Any] | str = Field(
        description="what happened; see docs/events.md (its text, where that cannot be read)"
    )


EXAMPLE = {
    "id": EXAMPLE_ID, "tenant": "default", "job": "classify", "state": "completed",
    "stream": False, "queued_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:00.001Z",
    "finished_at": "2026-01-01T00:00:00.013Z", "worker": "gpu-1", "attempts": 1, "queued_seq": 7,
    "run_s": 0.012, "output": {"label": "greeting"}, "output_lost": None,
    "failure": None, "reason": None,
}  # fmt: skip
_INVOCATION = answer(Invocation, "The invocation as it is now.", EXAMPLE)
_STREAM = {
    "description": "Events `chunk` from now on, then one `outcome` with the whole output.",
    "content": {
        "text/event-stream": {
            "schema": {"type": "string"},
            "example": sse.EXAMPLE,
        }
    },
}
_READ_ERRORS = (InvocationNotFound, errors.EventUnreadable, errors.BrokerUnavailable)
_LIST_ERRORS = (errors.InvalidRequest, errors.BrokerUnavailable, errors.QueryUnavailable)

router = APIRouter(tags=["invocations"], generate_unique_id_function=operation_name)


@router.get(
    "/v1/invocations",
    response_model=Page[InvocationSummary],
    responses=refusals_of(*_LIST_ERRORS),
)
async def list_invocations(
    request: Request, filters: Annotated[Filters, Query()]
) -> Page[InvocationSummary]:
    """Newest first, with all that were accepted before the question was asked."""
    client = door_of(request).live()
    rows = await client.query(
        "invocations",
        tenant=client.settings.tenant,
        job=filters.job,
        state=filters.state,
        worker=filters.worker,
        model=filters.model,
        before=filters.cursor,
        limit=filters.limit + 1,  # one more says whether there is a next page
    )
    found = [_summary(row) for row in rows.dicts()]
    page = found[: filters.limit]
    return Page(items=page, next_cursor=page[-1].id if len(found) > len(page) else None)


@router.get(
    "/v1/invocations/{id}",
    responses={200: _INVOCATION, **refusals_of(errors.InvalidRequest, *_READ_ERRORS)},
)
async def show_invocation(
    request: Request,
    id: str,
    wait_s: Annotated[
        float, Query(ge=0, le=MAX_WAIT_S, description="wait so long for its outcome, seconds")
    ] = 0,
) -> Response:
    """As of now, a just accepted one too; with its output or its failure when it ended."""
    client = door_of(request).live()
    view = await client.find(id)
    if wait_s > 0 and not view.ended:
        with suppress(OutcomePending):
            await client.outcome(id, wait_s)
        view = await client.find(id)  # started, or ended, meanwhile
    return await _answer(client, view)


@router.get(
    "/v1/invocations/{id}/stream",
    status_code=200,
    response_class=EventStream,
    responses={200: _STREAM, **refusals_of(*_READ_ERRORS, BlobUnreadable)},
)
async def stream_invocation(
    request: Request,
    id: str,
) -> Response:
    """Server-sent events. Chunks that came before are not repeated: the outcome has all of it."""
    client = door_of(request).live()
    view = await client.find(id)
    if view.outcome is not None:
        return EventStream(_only(await outcome_event(client, view.outcome)))
    chunks = client.chunks(id, gaps=True)
    return EventStream(run_events(client, chunks, partial(client.outcome, id)))


@router.post(
    "/v1/invocations/{id}/cancel",
    responses={
        200: {**_INVOCATION, "description": "Cancelled."},
        202: {**_INVOCATION, "description": "Asked for; its outcome follows."},
        **refusals_of(errors.InvalidRequest, *_READ_ERRORS, InvocationEnded, errors.LogFull),
    },
)
async def cancel_invocation(
    request: Request,
    id: str,
    reason: Annotated[str, Query(max_length=500, description="kept in the log")] = "",
) -> Response:
    """Cancel it, queued or running; 409 when it has ended already, be it cancelled."""
    client = door_of(request).live()
    try:
        view = await client.cancel(id, reason)
    except Conflict as conflict:
        raise InvocationEnded(str(conflict)) from None
    if view.ended and view.state != "cancelled":
        raise InvocationEnded(f"invocation {id} {view.state} before the cancellation reached it")
    return await _answer(client, view, 200 if view.ended else 202)


@router.get(
    "/v1/invocations/{id}/events",
    response_model=Page[TimelineEvent],
    responses=refusals_of(*_READ_ERRORS, errors.QueryUnavailable),
)
async def list_events(
    request: Request,
    id: str,
) -> Page[TimelineEvent]:
    """Its timeline: every event of it, oldest first, with what operators want to know."""
    client = door_of(request).live()
    await client.find(id)  # is it there, and ours?
    rows = await client.query("invocation_events", invocation=id)
    return Page(items=[TimelineEvent.model_validate(row) for row in rows.dicts()])


async def _answer(client: Client, view: InvocationView, status: int = 200) -> Response:
    output, lost = None, view.unreadable
    if isinstance(view.outcome, InvocationCompleted):
        try:
            output = await client.output(view.outcome)
        except BlobUnreadable as error:
            lost = str(error)
    fields = invocation_fields(view, output)
    return json_response(Invocation(**fields, output_lost=lost), status)


def _summary(row: Mapping[str, Any]) -> InvocationSummary:
    return InvocationSummary.model_validate({"id": row["invocation"], **row})


async def _only(event: bytes) -> Any:
    yield event
