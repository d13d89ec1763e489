"""The envelope that every event has (CloudEvents 1.0)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from jetfleet.specs import Frozen, Name, TraceParent


class InvalidEvent(ValueError):
    """A message that should be an event is not one; it is set aside and counted, never obeyed."""


class Event(Frozen):
    """The envelope that every event has (CloudEvents 1.0)."""

    specversion: Literal["1.0"] = "1.0"
    id: str = Field(description="UUIDv7 of this event")
    source: str = Field(min_length=1, description="who says so: gateway/…, worker/…, conductor/…")
    type: str
    time: datetime = Field(description="when it was said, UTC")
    dataversion: int = Field(1, description="version of the shape of data")
    tenant: Name
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: TraceParent | None = None
