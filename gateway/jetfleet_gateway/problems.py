"""Every refusal and failure as an RFC 9457 problem document, from one table.

``TABLE`` is the only place where an error class meets an HTTP status. Text of a refusal is written
for users and goes out as it is; text of what broke on our side is for operators and goes to the
log, while the row's ``public`` text goes out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from jetfleet import errors
from jetfleet.blobs import BlobUnreadable
from jetfleet.errors import JetfleetError
from jetfleet.events import Failure, InvocationFailed
from jetfleet_gateway import refusals

logger = logging.getLogger("jetfleet.gateway")

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:jetfleet:problem:"
TRACE_KEY = "jetfleet.traceparent"  # where a request's scope keeps its trace
RETRY_AFTER_S = 1.0

_AGAIN = "Try again; with an Idempotency-Key a repeat is safe."


@dataclass(frozen=True, slots=True)
class Row:
    """How one class of errors looks from outside.

    Args:
        public: what users read in place of the error's own text, which is logged instead.
        retry: whether the answer names a Retry-After.
    """

    status: int
    title: str
    public: str | None = None
    retry: bool = False


TABLE: Mapping[type[JetfleetError], Row] = {
    # what the caller can mend
    errors.InvalidRequest: Row(400, "The request is malformed"),
    errors.BeyondLimits: Row(400, "The input is beyond what is taken"),
    refusals.NotJson: Row(400, "The body is not JSON"),
    refusals.ForeignOrigin: Row(403, "A page of another site may not act here"),
    errors.NotFound: Row(404, "Not found"),
    errors.ModelNotFound: Row(404, "No such model"),
    errors.JobNotFound: Row(404, "No such inference job"),
    errors.InvocationNotFound: Row(404, "No such invocation"),
    errors.WorkerNotFound: Row(404, "No such worker"),
    refusals.RouteNotFound: Row(404, "No such address"),
    refusals.MethodNotAllowed: Row(405, "Method not allowed"),
    errors.Conflict: Row(409, "The request contradicts the current state"),
    errors.JobDisabled: Row(409, "The inference job is disabled"),
    errors.TrialFailed: Row(409, "The model failed its trial"),
    errors.AlreadyExists: Row(409, "It exists already, and differs"),
    refusals.InvocationEnded: Row(409, "The invocation has ended already"),
    errors.EventUnreadable: Row(410, "An event of the invocation cannot be read"),
    BlobUnreadable: Row(410, "The payload cannot be read any more"),
    errors.PayloadTooLarge: Row(413, "The payload is too large"),
    refusals.UnsupportedMedia: Row(415, "The body is not of a type taken here"),
    refusals.UnsupportedEncoding: Row(415, "The body's compression is not known here"),
    refusals.UnknownHost: Row(421, "Not a host name of this gateway"),
    errors.IdempotencyMismatch: Row(422, "The idempotency key belongs to another request"),
    errors.QueueFull: Row(429, "The job's queue is full", retry=True),
    errors.Refused: Row(400, "The request cannot be accepted"),
    # how an accepted invocation ended (run_sync answers for the model, as a gateway does)
    errors.InvocationFailed: Row(502, "The invocation failed"),
    errors.InvocationCancelled: Row(409, "The invocation was cancelled"),
    errors.InvocationExpired: Row(504, "The invocation expired before a worker started it"),
    errors.InvocationError: Row(502, "The invocation did not complete"),
    # what is broken on this side
    errors.Unavailable: Row(
        503, "A part of the service is unavailable", f"The service is not ready. {_AGAIN}", True
    ),
    errors.BrokerUnavailable: Row(
        503, "The broker is unavailable", f"Nothing can be accepted right now. {_AGAIN}", True
    ),
    errors.LogFull: Row(
        503, "The log is full", "The log has no room; its operator has to make some.", True
    ),
    errors.QueryUnavailable: Row(
        503, "Lists are unavailable", "Nobody can answer this question right now. Try again.", True
    ),
    errors.QueryFailed: Row(
        500, "The question failed", "A list could not be made; it has been logged with this trace."
    ),
    refusals.InternalError: Row(
        500, "Internal error", "Something went wrong here; it has been logged with this trace."
    ),
}
# Failures of an invocation that are not the model's fault in the sense of 502.
FAILURE_STATUS: Mapping[str, int] = {"timeout": 504}


class FieldError(BaseModel):
    """One wrong field."""

    field: str = Field(description="its path in the body, a parameter's or a header's name")
    message: str


class PublicFailure(BaseModel):
    """Why an invocation failed, for its caller; tracebacks are in its events."""

    code: str = Field(description="model_error, model_exited, timeout, invalid_output, …")
    message: str
    history: tuple[str, ...] = Field((), description="what ended each earlier attempt")

    @classmethod
    def of(cls, failure: Failure) -> PublicFailure:
        return cls(code=failure.code, message=failure.message, history=failure.history)


class Problem(BaseModel):
    """A problem document (RFC 9457, ``application/problem+json``)."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="urn:jetfleet:problem:<code>")
    title: str = Field(description="the same for every problem of this type")
    status: int
    detail: str = Field(description="what happened this time, and what to do")
    code: str = Field(description="to branch on; the last part of type")
    instance: str | None = Field(None, description="path of the invocation this is about")
    invocation: str | None = None
    failure: PublicFailure | None = Field(None, description="with code invocation_failed")
    errors: list[FieldError] | None = Field(None, description="with 400: what to mend")


def row_of(error: type[JetfleetError]) -> Row:
    """The row of the nearest listed ancestor; what has none is a defect of ours."""
    listed = (TABLE[cls] for cls in error.__mro__ if cls in TABLE)
    return next(listed, TABLE[refusals.InternalError])


def problem_of(error: JetfleetError) -> Problem:
    """The document that users see of an error."""
    row = row_of(type(error))
    extra: dict[str, Any] = {}
    status = row.status
    if isinstance(error, errors.InvocationError):
        invocation = error.outcome.data.invocation
        extra |= {"invocation": invocation, "instance": f"/v1/invocations/{invocation}"}
        if isinstance(error.outcome, InvocationFailed):
            failure = error.outcome.data.error
            status = FAILURE_STATUS.get(failure.code, status)
            extra["failure"] = PublicFailure.of(failure)
    elif isinstance(error, refusals.InvalidFields):
        extra["errors"] = [FieldError(field=f, message=m) for f, m in error.fields]
    elif isinstance(error, errors.InvalidRequest) and error.field:
        extra["errors"] = [FieldError(field=error.field, message=str(error))]
    elif isinstance(error, refusals.HttpRefused):
        status = error.status
    internal = row is TABLE[refusals.InternalError]
    code = refusals.InternalError.code if internal else error.code
    return Problem(
        type=TYPE_PREFIX + code,
        title=row.title,
        status=status,
        detail=row.public or str(error),
        code=code,
        **extra,
    )


def problem_response(error: JetfleetError, scope: Mapping[str, Any]) -> Response:
    """The answer to a request that met this error; the operator's part goes to the log."""
    row, problem = row_of(type(error)), problem_of(error)
    headers: dict[str, str] = {}
    if row.retry:
        seconds = getattr(error, "retry_after_s", RETRY_AFTER_S)
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    if isinstance(error, refusals.MethodNotAllowed) and error.allow:
        headers["Allow"] = error.allow
    if isinstance(error, refusals.UnsupportedEncoding):
        headers["Accept-Encoding"] = "gzip, deflate, identity"
    if isinstance(error, errors.PayloadTooLarge):
        headers["Connection"] = "close"  # the rest of the body is not read
    if trace := scope.get(TRACE_KEY):
        headers["traceparent"] = trace
    if row.public is not None:
        logger.warning(
            "%s %s: %d %s: %s (trace %s)",
            scope.get("method"), scope.get("path"), problem.status, error.code, error, trace or "-",
        )  # fmt: skip
    body = problem.model_dump_json(exclude_none=True)
    return Response(body, problem.status, headers, MEDIA_TYPE)


def unexpected(error: Exception, scope: Mapping[str, Any]) -> Response:
    """The answer to a request that met a defect of ours."""
    return problem_response(refusals.InternalError(f"{type(error).__name__}: {error}"), scope)


# -- handlers, as the application installs them ----------------------------------------------------


async def on_jetfleet_error(request: Request, error: JetfleetError) -> Response:
    return problem_response(error, request.scope)


async def on_invalid_parameters(request: Request, error: RequestValidationError) -> Response:
    """What FastAPI found wrong with path, query or header parameters."""
    fields = [(_parameter(e["loc"]), plain(e)) for e in error.errors()]
    return problem_response(refusals.InvalidFields(fields), request.scope)


async def on_http_exception(request: Request, error: HTTPException) -> Response:
    """What the router or the framework refuses by itself."""
    refusal: JetfleetError
    if error.status_code == 404:
        refusal = refusals.RouteNotFound()
    elif error.status_code == 405:
        refusal = refusals.MethodNotAllowed(allow=(error.headers or {}).get("Allow", ""))
    else:
        refusal = refusals.HttpRefused(error.status_code, str(error.detail))
    return problem_response(refusal, request.scope)


async def on_disconnect(_request: Request, _error: Exception) -> Response:
    """The client went away in the middle of its body; nobody reads this."""
    return Response(status_code=400)


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A defect of ours: users get the trace, operators the traceback (uvicorn logs it)."""
    return unexpected(error, request.scope)


HANDLERS: Mapping[type[Exception], Any] = {
    JetfleetError: on_jetfleet_error,
    RequestValidationError: on_invalid_parameters,
    HTTPException: on_http_exception,
    ClientDisconnect: on_disconnect,
    Exception: on_unexpected,
}


def plain(error: Mapping[str, Any]) -> str:
    """pydantic's message in the words of these documents."""
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    if error["type"] == "missing":
        return "is required"
    text: str = error["msg"]
    return text.removeprefix("Value error, ")


def _parameter(location: tuple[int | str, ...]) -> str:
    """``("query", "limit")`` is the parameter ``limit``."""
    return ".".join(str(part) for part in location[1:]) or str(location[0])
