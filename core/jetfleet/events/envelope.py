"""The envelope that every event has (CloudEvents 1.0), and what fills it in."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypedDict

from pydantic import Field

from jetfleet.clock import SYSTEM_CLOCK, Clock
from jetfleet.specs import Frozen, Name


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
    traceparent: str | None = None


class EnvelopeFields(TypedDict):
    """The attributes that ``Stamp`` fills in."""

    id: str
    source: str
    time: datetime
    tenant: str
    correlationid: str | None
    causationid: str | None
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class Stamp:
    """Makes envelopes: ``JobEnabled(**stamp(tenant), data=...)``."""

    source: str
    clock: Clock = field(default=SYSTEM_CLOCK)

    def __call__(
        self,
        tenant: str,
        *,
        cause: Event | None = None,
        correlation: str | None = None,
        trace: str | None = None,
    ) -> EnvelopeFields:
        """``cause`` hands on its correlation and trace, unless these are given."""
        return {
            "id": self.clock.new_id(),
            "source": self.source,
            "time": self.clock.now(),
            "tenant": tenant,
            "correlationid": correlation or (cause.correlationid if cause else None),
            "causationid": cause.id if cause else None,
            "traceparent": trace or (cause.traceparent if cause else None),
        }
