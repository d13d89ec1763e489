"""Running a job: ``run`` answers when the log has the invocation, ``run_sync`` when it has ended.

``run_sync`` is the measured path: one pass to parse, one to encode, no dependency injection, and
routes that hand FastAPI's request straight to the function (``RawRoute``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from jetfleet import errors
from jetfleet.client import Client, Gap, Handle, outcome_error
from jetfleet.errors import InvocationNotFound, JobNotFound, ModelNotFound, OutcomePending
from jetfleet.events import InvocationCompleted, OutcomeEvent
from jetfleet.submit import Request
from jetfleet.views import InvocationView
from jetfleet_gateway import openapi, refusals, sse
from jetfleet_gateway.bodies import ENVELOPE_BYTES, read_model
from jetfleet_gateway.door import door_of
from jetfleet_gateway.openapi import EXAMPLE_ID, answer, refusals_of
from jetfleet_gateway.responses import Accepted, RunOutcome, json_response, outcome_fields
from jetfleet_gateway.sse import EventStream
from jetfleet_gateway.tracing import trace_of

# A hung model is ended at timeout_s; so much longer is waited, for its typed failure to arrive.
WAIT_MARGIN_S = 10.0


class RunRequest(BaseModel):
    """What to run, and how long it may take."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    input: Any = Field(description="any JSON; handed to the model as it is")
    timeout_s: float | None = Field(
        None, gt=0, le=86_400, description="longest run of one attempt, seconds; at most the job's"
    )
    ttl_s: float | None = Field(
        None, gt=0, le=86_400, description="longest wait for a start, seconds; at most the job's"
    )
    priority: str | None = Field(
        None, description="one of the job's priority_classes; left out: its priority_class"
    )
    stream: bool = Field(False, description="output is wanted as it comes")
    wait_s: float | None = Field(
        None,
        ge=0,
        le=86_400,
        description="run_sync: answer 202 with the id after this many seconds without an outcome; "
        f"default: timeout_s plus {WAIT_MARGIN_S:.0f}, for streams until the outcome",
    )
    cancel_on_disconnect: bool = Field(
        False, description="run_sync: cancel the invocation when the client goes away"
    )


class RawRoute(APIRoute):
    """A documented route without FastAPI's parameter solving: path parameters go in as they are."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint

        async def handle(request: HttpRequest) -> Response:
            response: Response = await endpoint(request, **request.path_params)
            return response

        return handle


@dataclass(frozen=True, slots=True)
class Call:
    """A request to run something."""

    body: RunRequest
    key: str | None
    trace: str
    streams: bool  # answer with server-sent events

    async def submit(self, client: Client, job: str) -> Handle:
        body = self.body
        return await client.submit(
            job,
            body.input,
            stream=body.stream or self.streams,
            timeout_s=body.timeout_s,
            ttl_s=body.ttl_s,
            idempotency_key=self.key,
            trace=self.trace,
            priority=body.priority,
        )

    async def run(self, client: Client, job: str) -> OutcomeEvent:
        body = self.body
        request = Request(
            job, body.input, False, body.timeout_s, body.ttl_s, None, self.trace, body.priority
        )
        return await client.run_to_outcome(request, _wait_s(body, client, job))


async def read_call(request: HttpRequest) -> Call:
    """Headers and body of ``run`` and ``run_sync``; raises what ``read_model`` raises."""
    headers = dict(request.scope["headers"])
    key = headers.get(b"idempotency-key")
    accepts_events = b"text/event-stream" in headers.get(b"accept", b"")
    trace = trace_of(request.scope, headers.get(b"traceparent", b"").decode("latin-1"))
    limit = door_of(request).settings.payload_limit + ENVELOPE_BYTES
    body = await read_model(request, RunRequest, limit)
    text = None if key is None else key.decode("latin-1")
    return Call(body, text, trace, body.stream or accepts_events)


# -- routes ----------------------------------------------------------------------------------------

_SUBMIT_ERRORS = (
    errors.InvalidRequest, errors.BeyondLimits, refusals.NotJson, errors.JobNotFound,
    errors.JobDisabled, errors.TrialFailed, errors.PayloadTooLarge, refusals.UnsupportedMedia,
    errors.IdempotencyMismatch, errors.QueueFull, errors.BrokerUnavailable, errors.LogFull,
)  # fmt: skip
_SYNC_ERRORS = (
    errors.InvocationFailed, errors.InvocationExpired, errors.InvocationCancelled,
)  # fmt: skip
_BODY = openapi.body_of(
    RunRequest,
    {
        "text": {"input": {"text": "hello"}},
        "limits": {"input": [1, 2, 3], "timeout_s": 30, "ttl_s": 60},
        "streaming": {"input": {"prompt": "Once upon a time"}, "stream": True},
    },
)
_HEADERS = [
    openapi.header(
        "Idempotency-Key", "the same key within ten minutes means the same invocation, run once"
    ),
    openapi.header(
        "traceparent", "W3C trace context; made when absent, returned, and in every event"
    ),
]
_EXTRA = {**_BODY, "parameters": _HEADERS}
_ACCEPTED = answer(
    Accepted,
    "Accepted: it is in the log. `Location` names the invocation.",
    {"id": EXAMPLE_ID, "job": "classify", "state": "queued", "duplicate": False},
)
_COMPLETED = answer(
    RunOutcome,
    "Completed. With `stream` or `Accept: text/event-stream`: events `chunk`, then one `outcome` "
    "(or `pending`, when `wait_s` passed).",
    {
        "id": EXAMPLE_ID, "job": "classify", "state": "completed", "worker": "gpu-1",
        "attempts": 1, "run_s": 0.012, "output": {"label": "greeting"},
    },
)  # fmt: skip
_COMPLETED["content"]["text/event-stream"] = {
    "schema": {"type": "string"},
    "example": sse.EXAMPLE,
}
_RUN: openapi.Responses = {202: _ACCEPTED, **refusals_of(*_SUBMIT_ERRORS)}
_RUN_SYNC: openapi.Responses = {
    200: _COMPLETED,
    202: {**_ACCEPTED, "description": "No outcome within the wait; the invocation goes on."},
    **refusals_of(*_SUBMIT_ERRORS, *_SYNC_ERRORS),
}
_MODEL_RUN = {**_RUN, **refusals_of(*_SUBMIT_ERRORS, ModelNotFound)}
_MODEL_RUN_SYNC = {
    **_RUN_SYNC, **refusals_of(*_SUBMIT_ERRORS, ModelNotFound, *_SYNC_ERRORS)
}  # fmt: skip

router = APIRouter(
    route_class=RawRoute,
    default_response_class=Response,
    generate_unique_id_function=openapi.operation_name,
)


@router.post(
    "/v1/inference_jobs/{job}/run_sync", status_code=200, tags=["inference_jobs"],
    summary="Run a job and wait for the output", responses=_RUN_SYNC, openapi_extra=_EXTRA,
)  # fmt: skip
async def run_job_sync(request: HttpRequest, job: str) -> Response:
    """200 with the output; a problem when it ended otherwise; 202 when it takes too long."""
    call = await read_call(request)
    return await _run_sync(request, call, door_of(request).live(), job)


@router.post(
    "/v1/inference_jobs/{job}/run", status_code=202, tags=["inference_jobs"],
    summary="Submit an invocation to a job", responses=_RUN, openapi_extra=_EXTRA,
)  # fmt: skip
async def run_job(request: HttpRequest, job: str) -> Response:
    """202 as soon as the log has it; ask for the outcome by its id."""
    call = await read_call(request)
    return await _run(call, door_of(request).live(), job)


@router.post(
    "/v1/models/{model}/run_sync", status_code=200, tags=["models"],
    summary="Run a model through its default job and wait", responses=_MODEL_RUN_SYNC,
    openapi_extra=_EXTRA,
)  # fmt: skip
async def run_model_sync(request: HttpRequest, model: str) -> Response:
    """Like `run_sync` of the job of the model's name, or else of the model's oldest job."""
    call = await read_call(request)
    client = door_of(request).live()
    return await _run_sync(request, call, client, default_job(client, model))


@router.post(
    "/v1/models/{model}/run", status_code=202, tags=["models"],
    summary="Submit an invocation to a model's default job", responses=_MODEL_RUN,
    openapi_extra=_EXTRA,
)  # fmt: skip
async def run_model(request: HttpRequest, model: str) -> Response:
    """Like `run` of the job of the model's name, or else of the model's oldest job."""
    call = await read_call(request)
    client = door_of(request).live()
    return await _run(call, client, default_job(client, model))


def routes() -> list[APIRoute]:
    """The routes of this module, for ``direct.Direct``."""
    return [route for route in router.routes if isinstance(route, APIRoute)]


def default_job(client: Client, model: str) -> str:
    """The name of the job that running ``model`` means.

    Raises:
        ModelNotFound, JobNotFound.
    """
    tenant = client.settings.tenant
    job = client.registry.default_job(tenant, model)
    if job is not None:
        return job.spec.name
    if client.registry.model(tenant, model) is None:
        raise ModelNotFound(f"there is no model {model!r}; register it first")
    raise JobNotFound(f"model {model!r} has no inference job to run it; create one first")


# -- doing it --------------------------------------------------------------------------------------


async def _run(call: Call, client: Client, job: str) -> Response:
    handle = await call.submit(client, job)
    await handle.waiter.stop()  # nobody listens for chunks here; /stream does
    view = await _view(client, handle.invocation) if handle.duplicate else None
    fields = _accepted_fields(handle.invocation, job, view, handle.duplicate)
    return _accepted(fields, call.trace)


async def _run_sync(request: HttpRequest, call: Call, client: Client, job: str) -> Response:
    handle: Handle | None = None
    try:
        if not _plain(call, client, job):
            handle = await call.submit(client, job)
            if call.streams:
                return _stream(call, client, handle)
            outcome = await _outcome(request, call.body, client, handle)
        else:
            outcome = await call.run(client, job)
    except OutcomePending as error:
        view = await _view(client, error.invocation)
        if view is None or view.outcome is None:
            duplicate = handle is not None and handle.duplicate
            return _accepted(_accepted_fields(error.invocation, job, view, duplicate), call.trace)
        outcome = view.outcome  # it ended while we looked
    if not isinstance(outcome, InvocationCompleted):
        raise outcome_error(outcome)
    data = outcome.data
    output = data.output if data.output_ref is None else await client.output(outcome)
    return json_response(outcome_fields(outcome, output), 200, {"traceparent": call.trace})


def _plain(call: Call, client: Client, job: str) -> bool:
    """Whether nothing but the outcome is of interest, of a job whose limits are known here."""
    if call.streams or call.key is not None or call.body.cancel_on_disconnect:
        return False
    return client.registry.job(client.settings.tenant, job) is not None


def _wait_s(body: RunRequest, client: Client, job: str) -> float:
    if body.wait_s is not None:
        return body.wait_s
    if body.timeout_s is not None:
        return body.timeout_s + WAIT_MARGIN_S
    state = client.registry.job(client.settings.tenant, job)
    if state is None:  # deleted since it accepted this: it is being cancelled
        return WAIT_MARGIN_S
    return state.spec.timeout_s + WAIT_MARGIN_S


def _accepted(fields: dict[str, Any], trace: str) -> Response:
    """202 with where to ask."""
    headers = {"Location": f"/v1/invocations/{fields['id']}", "traceparent": trace}
    return json_response(fields, 202, headers)


def _accepted_fields(
    invocation: str, job: str, view: InvocationView | None, duplicate: bool
) -> dict[str, Any]:
    state = view.state if view is not None else "queued"
    return {"id": invocation, "job": job, "state": state, "duplicate": duplicate}


async def _view(client: Client, invocation: str) -> InvocationView | None:
    """The invocation as it is now; None: accepted it is, but how far cannot be told right now."""
    try:
        return await client.find(invocation)
    except (errors.Unavailable, errors.QueryFailed, InvocationNotFound):
        return None


async def _outcome(
    request: HttpRequest, body: RunRequest, client: Client, handle: Handle
) -> OutcomeEvent:
    """The outcome; if so asked, the invocation is cancelled when the client goes away first."""
    wait_s = _wait_s(body, client, handle.job)
    if not body.cancel_on_disconnect:
        return await handle.outcome(wait_s)
    outcome = asyncio.ensure_future(handle.outcome(wait_s))
    gone = asyncio.ensure_future(sse.until_gone(request.receive))
    try:
        await asyncio.wait({outcome, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not outcome.done():
            await _cancel(client, handle.invocation)
        return await outcome
    finally:
        await sse.cancel_all(outcome, gone)


async def _cancel(client: Client, invocation: str) -> None:
    try:
        await client.cancel(invocation, "the client disconnected")
    except errors.Conflict:
        return  # it ended meanwhile


def _stream(call: Call, client: Client, handle: Handle) -> EventStream:
    async def pending() -> AsyncIterator[bytes]:
        view = await _view(client, handle.invocation)
        if view is not None and view.outcome is not None:
            yield await outcome_event(client, view.outcome)
        else:
            fields = _accepted_fields(handle.invocation, handle.job, view, handle.duplicate)
            yield sse.event("pending", fields)

    async def gone() -> None:
        await handle.waiter.stop()
        if call.body.cancel_on_disconnect:
            await _cancel(client, handle.invocation)

    location = f"/v1/invocations/{handle.invocation}"
    return EventStream(
        run_events(client, handle.chunks(gaps=True), partial(handle.outcome, None)),
        headers={"Location": location, "traceparent": call.trace},
        limit_s=call.body.wait_s,
        at_limit=pending,
        on_gone=gone,
    )


async def run_events(
    client: Client,
    chunks: Any,
    outcome: Callable[[], Coroutine[Any, Any, OutcomeEvent]],
) -> AsyncGenerator[bytes, None]:
    """Events ``chunk`` (or ``gap``) as they come, then one ``outcome``.

    ``chunks``: an async generator, with gaps.
    """
    async with aclosing(chunks):
        async for chunk in chunks:
            if isinstance(chunk, Gap):
                yield sse.event("gap", {"chunk": chunk.number, "detail": str(chunk)})
            else:
                yield sse.event("chunk", chunk)
    ended = await outcome()
    yield await outcome_event(client, ended)


async def outcome_event(client: Client, outcome: OutcomeEvent) -> bytes:
    """The last event of a stream: how it ended, with the whole output."""
    completed = isinstance(outcome, InvocationCompleted)
    output = await client.output(outcome) if completed else None
    return sse.event("outcome", outcome_fields(outcome, output))
