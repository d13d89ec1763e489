"""What answers look like: the models of the OpenAPI document, and answers made of bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.responses import Response

from jetfleet.catalog import JobState
from jetfleet.events import (
    InvocationCancelled,
    InvocationExpired,
    InvocationFailed,
    OutcomeEvent,
)
from jetfleet.specs import JobSpec
from jetfleet.views import InvocationStatus, InvocationView
from jetfleet_gateway.problems import PublicFailure

Item = TypeVar("Item")
STATES: Mapping[str, InvocationStatus] = {
    "jetfleet.invocation.completed": "completed",
    "jetfleet.invocation.failed": "failed",
    "jetfleet.invocation.cancelled": "cancelled",
    "jetfleet.invocation.expired": "expired",
}


class Answer(BaseModel):
    """Base of what is answered; fields that an older projector does not know stay empty."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Page(Answer, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    next_cursor: str | None = Field(None, description="give it as `cursor` for the next page")


class Job(Answer):
    """An inference job as it is now."""

    name: str
    tenant: str
    enabled: bool
    created_at: datetime
    created_seq: int = Field(description="position of its created event in REGISTRY")
    updated_seq: int = Field(description="position of its last event in REGISTRY")
    spec: JobSpec

    @classmethod
    def of(cls, state: JobState) -> Job:
        return cls(
            name=state.spec.name,
            tenant=state.tenant,
            enabled=state.enabled,
            created_at=state.created_at,
            created_seq=state.created_seq,
            updated_seq=state.updated_seq,
            spec=state.spec,
        )


class Accepted(Answer):
    """An invocation that is in the log; its outcome follows."""

    id: str
    job: str
    state: InvocationStatus
    duplicate: bool = Field(False, description="the idempotency key had made it before")


class RunOutcome(Answer):
    """How an invocation ended."""

    id: str
    job: str
    state: InvocationStatus
    worker: str | None = Field(None, description="who ran it; null when nobody did")
    attempts: int = Field(0, description="attempts begun")
    run_s: float | None = Field(None, description="seconds the last attempt ran")
    output: Any = Field(None, description="what the model returned, whole, when completed")
    failure: PublicFailure | None = Field(None, description="when failed")
    reason: str | None = Field(None, description="when cancelled or expired")


class Invocation(Answer):
    """An invocation as it is now. Times are UTC."""

    id: str
    tenant: str
    job: str
    state: InvocationStatus
    stream: bool
    queued_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker: str | None = None
    attempts: int = Field(0, description="attempts begun")
    queued_seq: int = Field(description="position of its queued event in INVOCATIONS")
    run_s: float | None = Field(None, description="seconds the last attempt ran")
    output: Any = Field(None, description="what the model returned, whole, when completed")
    output_lost: str | None = Field(
        None, description="why the output, or the outcome, cannot be read"
    )
    failure: PublicFailure | None = Field(None, description="when failed")
    reason: str | None = Field(None, description="when cancelled or expired")


def outcome_fields(outcome: OutcomeEvent, output: Any) -> dict[str, Any]:
    """The fields of ``RunOutcome``; ``output`` is the whole output of a completed one."""
    data = outcome.data
    fields: dict[str, Any] = {
        "id": data.invocation,
        "job": data.job,
        "state": STATES[outcome.type],
        "worker": data.worker,
        "attempts": data.attempt,
        "run_s": data.run_s,
    }
    if isinstance(outcome, InvocationFailed):
        fields["failure"] = PublicFailure.of(outcome.data.error)
    elif isinstance(outcome, InvocationCancelled):
        fields["reason"] = outcome.data.reason
    elif isinstance(outcome, InvocationExpired):
        fields["reason"] = "no worker started it before its time-to-live ended"
    else:
        fields["output"] = output
    return fields


def invocation_fields(view: InvocationView, output: Any) -> dict[str, Any]:
    """The fields of ``Invocation``."""
    ended = {} if view.outcome is None else outcome_fields(view.outcome, output)
    return {
        **ended,
        "id": view.invocation,
        "tenant": view.tenant,
        "job": view.job,
        "state": view.state,
        "stream": view.stream,
        "queued_at": view.queued_at,
        "started_at": view.started_at,
        "finished_at": view.finished_at,
        "worker": view.worker,
        "attempts": view.attempts,
        "queued_seq": view.queued_seq,
    }


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer of JSON bytes, made in one pass (pydantic's encoder, in Rust)."""
    return _Json(to_json(content, inf_nan_mode="null"), status, headers or {})


class _Json(Response):
    """A response whose few headers are known: Starlette looks through them for what it may add."""

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code, self.background, self.body = status, None, body
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ]
        for name, value in headers.items():
            self.raw_headers.append((name.lower().encode("latin-1"), value.encode("latin-1")))


def page_of(
    items: Sequence[Item], key: Callable[[Item], str], cursor: str | None, limit: int
) -> tuple[list[Item], str | None]:
    """The items after ``cursor`` in order of ``key``, at most ``limit``, and the next cursor."""
    after = sorted((i for i in items if cursor is None or key(i) > cursor), key=key)
    page = after[:limit]
    return page, key(page[-1]) if len(after) > limit else None
