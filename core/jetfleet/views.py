"""What asking for one invocation gives: a fold of its own few events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from jetfleet.events import (
    OUTCOMES,
    AnyEvent,
    InvalidEvent,
    InvocationCancelled,
    InvocationCompleted,
    InvocationExpired,
    InvocationFailed,
    InvocationQueued,
    InvocationStarted,
    OutcomeEvent,
    decode,
)

InvocationStatus = Literal["queued", "started", "completed", "failed", "cancelled", "expired"]
_STATUS: Mapping[type, InvocationStatus] = {
    InvocationCompleted: "completed",
    InvocationFailed: "failed",
    InvocationCancelled: "cancelled",
    InvocationExpired: "expired",
}


@dataclass(frozen=True, slots=True)
class InvocationView:
    """An invocation as it is now. Times are UTC."""

    invocation: str
    tenant: str
    job: str
    state: InvocationStatus
    queued_seq: int
    origin: str
    stream: bool
    queued_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    worker: str | None = None
    attempts: int = 0
    outcome: OutcomeEvent | None = None
    unreadable: str | None = None
    """Why its outcome, which the log has, cannot be read."""

    @property
    def ended(self) -> bool:
        return self.outcome is not None or self.unreadable is not None


def evolve_view(view: InvocationView | None, event: AnyEvent, seq: int) -> InvocationView | None:
    """Fold one event of this invocation; the first outcome counts."""
    if isinstance(event, InvocationQueued):
        if view is not None:
            return view
        data = event.data
        return InvocationView(
            data.invocation, event.tenant, data.job, "queued", seq, data.origin, data.stream,
            event.time,
        )  # fmt: skip
    if view is None or view.ended:
        return view
    if isinstance(event, InvocationStarted):
        return replace(
            view, state="started", started_at=_began(event), worker=event.data.worker,
            attempts=max(view.attempts, event.data.attempt),
        )  # fmt: skip
    if isinstance(event, OUTCOMES):
        return replace(
            view, state=_STATUS[type(event)], finished_at=event.time, outcome=event,
            started_at=_began(event) or view.started_at,
            worker=event.data.worker or view.worker,
            attempts=max(view.attempts, event.data.attempt),
        )  # fmt: skip
    return view


def view_of_row(row: Mapping[str, Any]) -> InvocationView:
    """The view that the projection's row of the named query ``invocation`` stands for."""
    outcome, event, unreadable = row["outcome"], None, None
    if outcome is not None:
        try:
            event = decode(_text(outcome))
        except InvalidEvent as error:
            unreadable = str(error)
    return InvocationView(
        invocation=str(row["invocation"]),
        tenant=row["tenant"],
        job=row["job"],
        state=row["state"],
        queued_seq=row["queued_seq"],
        origin=row["origin"],
        stream=bool(row["stream"]),
        queued_at=datetime.fromisoformat(row["queued_at"]),
        started_at=_time(row["started_at"]),
        finished_at=_time(row["finished_at"]),
        worker=row["worker"],
        attempts=row["attempts"] or 0,
        outcome=event if isinstance(event, OUTCOMES) else None,
        unreadable=unreadable,
    )


def _began(event: InvocationStarted | OutcomeEvent) -> datetime | None:
    """When the last attempt began; None when there was none, or the claim is of no calendar."""
    if event.data.run_s is None:
        return None
    try:
        return event.time - timedelta(seconds=event.data.run_s)
    except OverflowError:
        return None


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
