"""Every error of jetfleet. The docstring of a class is its message for people.

JetfleetError
├── Refused                 the request cannot be accepted; nothing was stored
│   ├── InvalidRequest        400
│   │   └── BeyondLimits
│   ├── NotFound              404
│   │   ├── ModelNotFound
│   │   ├── JobNotFound
│   │   ├── InvocationNotFound
│   │   └── WorkerNotFound
│   ├── Conflict              409
│   │   ├── JobDisabled
│   │   ├── TrialFailed
│   │   └── AlreadyExists
│   ├── IdempotencyMismatch   422
│   ├── PayloadTooLarge       413
│   └── QueueFull             429, with retry_after_s
├── Unavailable             503: a part of the system cannot be reached; try again
│   ├── BrokerUnavailable
│   │   └── NoResponders        nobody answers a request
│   ├── LogFull
│   └── QueryUnavailable
├── QueryFailed             400: the SQL was refused, or ended with an error
├── InvocationError         the invocation was accepted and ended otherwise than completed
│   ├── InvocationFailed
│   ├── InvocationCancelled
│   └── InvocationExpired
├── OutcomePending          no outcome yet after the time given; the invocation goes on
├── MissingExtra            an optional package is not installed
├── StartupError            a process cannot start: port taken, second start, bad settings
├── ApiError                JetStream refused a request
│   └── WrongSequence         somebody else wrote first
└── EventUnreadable         what the log holds of an invocation cannot be read
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jetfleet.events import OutcomeEvent


class JetfleetError(Exception):
    """Something went wrong in jetfleet."""

    code = "error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class Refused(JetfleetError):
    """The request cannot be accepted; nothing was stored."""

    code = "refused"


class InvalidRequest(Refused):
    """The request is malformed."""

    code = "invalid_request"

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class BeyondLimits(InvalidRequest):
    """The input nests deeper, or has longer numbers, than is taken here."""

    code = "beyond_limits"


class NotFound(Refused):
    """There is no such thing."""

    code = "not_found"


class ModelNotFound(NotFound):
    """There is no such model; register it first."""

    code = "model_not_found"


class JobNotFound(NotFound):
    """There is no such inference job; create it first."""

    code = "job_not_found"


class InvocationNotFound(NotFound):
    """There is no such invocation, or it is older than the log."""

    code = "invocation_not_found"


class WorkerNotFound(NotFound):
    """There is no such worker."""

    code = "worker_not_found"


class Conflict(Refused):
    """The request contradicts the current state."""

    code = "conflict"


class JobDisabled(Conflict):
    """The job is disabled; enable it to accept invocations."""

    code = "job_disabled"


class TrialFailed(Conflict):
    """The job's model failed on its example input, so it runs nowhere; register a new version."""

    code = "trial_failed"


class AlreadyExists(Conflict):
    """It exists already, and is different."""

    code = "already_exists"


class IdempotencyMismatch(Refused):
    """The idempotency key was used before, with a different request; use a new key."""

    code = "idempotency_mismatch"


class PayloadTooLarge(Refused):
    """The payload is larger than this installation allows."""

    code = "payload_too_large"


class QueueFull(Refused):
    """The job's queue is at its cap; try again later."""

    code = "queue_full"

    def __init__(self, message: str | None = None, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(JetfleetError):
    """A part of the system cannot be reached; try again."""

    code = "unavailable"


class BrokerUnavailable(Unavailable):
    """The broker cannot be reached, so nothing can be accepted; try again."""

    code = "broker_unavailable"


class NoResponders(BrokerUnavailable):
    """Nobody answers this request; try again."""

    code = "no_responders"


class LogFull(Unavailable):
    """The log refuses new events (full, or its disk is); free space or raise its limits."""

    code = "log_full"


class QueryUnavailable(Unavailable):
    """No projector answers; is `jetfleet projector` running?"""

    code = "query_unavailable"


class QueryFailed(JetfleetError):
    """The query was refused, or ended with an error."""

    code = "query_failed"


class InvocationError(JetfleetError):
    """The invocation was accepted and ended otherwise than completed."""

    code = "invocation_error"

    def __init__(self, message: str, *, outcome: OutcomeEvent) -> None:
        super().__init__(message)
        self.outcome = outcome


class InvocationFailed(InvocationError):
    """The invocation failed; `outcome.data.error` says why."""

    code = "invocation_failed"


class InvocationCancelled(InvocationError):
    """The invocation was cancelled."""

    code = "invocation_cancelled"


class InvocationExpired(InvocationError):
    """No worker started the invocation before its time-to-live in the queue ended."""

    code = "invocation_expired"


class OutcomePending(JetfleetError):
    """No outcome yet; the invocation goes on and can be asked for by its id."""

    code = "outcome_pending"

    def __init__(self, message: str | None = None, *, invocation: str) -> None:
        super().__init__(message)
        self.invocation = invocation


class MissingExtra(JetfleetError):
    """An optional package is not installed."""

    code = "missing_extra"

    def __init__(self, extra: str, why: str) -> None:
        super().__init__(f"{why} needs an optional package: pip install 'jetfleet[{extra}]'")
        self.extra = extra


class StartupError(JetfleetError):
    """A process cannot start."""

    code = "startup_error"


class ApiError(JetfleetError):
    """JetStream refused a request."""

    code = "jetstream_error"

    def __init__(self, status: int, err_code: int, description: str) -> None:
        super().__init__(f"JetStream answered {status}: {description} (error {err_code})")
        self.status = status
        self.err_code = err_code


class WrongSequence(ApiError):
    """Somebody else wrote to the subject first; fold what is new and decide again."""

    code = "wrong_sequence"


class EventUnreadable(JetfleetError):
    """An event of this invocation cannot be read, so what became of it is not known."""

    code = "event_unreadable"
