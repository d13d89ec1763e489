"""Invocation events: queued, started, and exactly one outcome that counts."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from jetfleet.events.envelope import Event
from jetfleet.specs import Frozen, Name, Token

LONGEST_RUN_S = 1e9  # what claims more is no event


class BlobRef(Frozen):
    """A payload over the inline limit: JSON bytes in pieces in the PAYLOADS stream."""

    blob: Token = Field(description="its id, a token of the subject of its pieces")
    pieces: int = Field(ge=1)
    size: int = Field(ge=0, description="bytes of JSON text")
    sha256: str = Field(description="hex digest of the JSON text")
    worker: Name | None = Field(None, description="who wrote it; None: the caller (an input)")


class InvocationQueued(Event):
    """An invocation was accepted. The event is the work item."""

    class Data(Frozen):
        invocation: Token = Field(description="UUIDv7 of the invocation")
        job: Name
        input: Any = None
        input_ref: BlobRef | None = Field(None, description="set when the input is not inline")
        origin: Token = Field(description="token of whoever waits for the outcome")
        stream: bool = Field(False, description="the caller wants output as it comes")
        timeout_s: float = Field(gt=0, description="longest run of one attempt, seconds")
        expires_at: datetime = Field(description="not started by then: expired")
        priority_class: Name = "normal"
        idempotency_key: str | None = None

    type: Literal["jetfleet.invocation.queued"] = "jetfleet.invocation.queued"
    data: Data


class InvocationCancelRequested(Event):
    """Somebody asked to cancel; the outcome follows as its own event."""

    class Data(Frozen):
        invocation: Token
        job: Name
        queued_seq: int = Field(ge=1, description="position of its queued event in INVOCATIONS")
        origin: Token = Field(description="origin token of the queued event")
        reason: str = ""

    type: Literal["jetfleet.invocation.cancel_requested"] = "jetfleet.invocation.cancel_requested"
    data: Data


class InvocationStarted(Event):
    """An attempt goes on; one that ends sooner is told of by its outcome alone."""

    class Data(Frozen):
        invocation: Token
        job: Name
        worker: Name
        replica: Token
        attempt: int = Field(ge=1)
        run_s: float = Field(
            0, ge=0, le=LONGEST_RUN_S, description="seconds it had run when this was said"
        )

    type: Literal["jetfleet.invocation.started"] = "jetfleet.invocation.started"
    data: Data


class Failure(Frozen):
    """Why an invocation failed: a code to branch on, words for users, detail for operators."""

    code: Literal[
        "model_error",  # the model raised or answered with an error
        "model_exited",  # its process ended during the call
        "timeout",  # it ran longer than timeout_s
        "invalid_output",  # what it returned is not JSON, or is too large
        "invalid_input",  # the input could not be read (lost or corrupt payload)
        "attempts_exhausted",  # more attempts were lost than retry_limit allows
    ]
    message: str
    detail: str = Field("", description="traceback or last log lines, for whoever runs the model")
    history: tuple[str, ...] = Field(
        (), description="what ended each earlier attempt, oldest first"
    )


class Outcome(Frozen):
    """What all outcomes say."""

    invocation: Token
    job: Name
    worker: Name | None = Field(None, description="who ran it; None when nobody did")
    replica: str | None = None
    attempt: int = Field(0, ge=0, description="attempts begun")
    run_s: float | None = Field(
        None, ge=0, le=LONGEST_RUN_S, description="seconds the last attempt ran"
    )
    chunks: int = Field(0, ge=0, description="output chunks streamed before this event")


class InvocationCompleted(Event):
    """The model answered; ``output`` is the whole of it."""

    class Data(Outcome):
        output: Any = None
        output_ref: BlobRef | None = None

    type: Literal["jetfleet.invocation.completed"] = "jetfleet.invocation.completed"
    data: Data


class InvocationFailed(Event):
    """The invocation ended without an answer."""

    class Data(Outcome):
        error: Failure

    type: Literal["jetfleet.invocation.failed"] = "jetfleet.invocation.failed"
    data: Data


class InvocationCancelled(Event):
    """The invocation ended because somebody asked."""

    class Data(Outcome):
        reason: str = ""

    type: Literal["jetfleet.invocation.cancelled"] = "jetfleet.invocation.cancelled"
    data: Data


class InvocationExpired(Event):
    """Nobody started the invocation before its time-to-live in the queue ended."""

    class Data(Outcome):
        expires_at: datetime

    type: Literal["jetfleet.invocation.expired"] = "jetfleet.invocation.expired"
    data: Data
