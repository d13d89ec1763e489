"""What fills in the envelopes of events: who, when, and because of what."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TypedDict

from jetfleet.clock import SYSTEM_CLOCK, Clock
from jetfleet.events import Event


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
