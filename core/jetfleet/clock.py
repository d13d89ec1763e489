"""Time and identifiers, handed in where needed, so that tests and the simulator own them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import uuid_utils


def utc_now() -> datetime:
    """Wall-clock time in UTC; used to stamp events, never to measure a duration."""
    return datetime.now(UTC)


def new_id() -> str:
    """A UUIDv7: unique, and sortable by the millisecond it was made in."""
    return str(uuid_utils.uuid7())


def id_time(uuid7: str) -> datetime:
    """When a UUIDv7 was made (UTC, millisecond precision)."""
    return datetime.fromtimestamp((uuid_utils.UUID(uuid7).int >> 80) / 1000, UTC)


@dataclass(frozen=True, slots=True)
class Clock:
    """What a component may know about time: the wall (for stamps) and the monotonic (for waits)."""

    now: Callable[[], datetime] = utc_now
    monotonic: Callable[[], float] = time.monotonic
    new_id: Callable[[], str] = new_id


SYSTEM_CLOCK = Clock()
