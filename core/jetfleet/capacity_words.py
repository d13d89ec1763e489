"""Capacity in words, for explanations. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from jetfleet.capacity import CapacityState
from jetfleet.catalog import JobKey
from jetfleet.events import (
    AnyEvent,
    CapacityAccepted,
    CapacityOffered,
    CapacityRefused,
    CapacityReleased,
    CapacityRequested,
    CapacityStarted,
    CapacityStopped,
    CapacityWithheld,
)

STATES = {
    "asked": "not yet accepted",
    "accepted": "being started",
    "started": "started, and about to join",
}


def awaited(state: CapacityState, key: JobKey, now: datetime) -> tuple[str, str, datetime] | None:
    """Which workers are on their way for a job, or why none is asked for: code, words, since when.

    None: neither.
    """
    coming = [
        worker for worker in state.workers.values()
        if key in worker.jobs and worker.coming and now < worker.expires_at
    ]  # fmt: skip
    if coming:
        since = min(worker.asked_at for worker in coming)
        providers = " and ".join(sorted({worker.provider for worker in coming}))
        each = ", ".join(f"{w.worker} is {STATES[w.status]}" for w in coming[:3])
        count = "a worker is" if len(coming) == 1 else f"{len(coming)} workers are"
        return "capacity_requested", f"{count} asked of {providers}: {each}", since
    if key in state.withheld:
        why, since = state.withheld[key]
        return "capacity_withheld", f"no provider can give it a worker: {why}", since
    return None


def workers_of(event: AnyEvent) -> tuple[str, ...]:
    """The workers that a capacity event speaks of."""
    data: Any = event.data
    if isinstance(event, CapacityRequested | CapacityAccepted | CapacityRefused):
        return tuple(data.workers)
    if isinstance(event, CapacityStarted | CapacityStopped | CapacityReleased):
        return (data.worker,)
    return ()


def jobs_of(state: CapacityState, event: AnyEvent) -> frozenset[JobKey]:
    """The jobs for which a capacity event is of interest; ``state``: before it."""
    if isinstance(event, CapacityRequested | CapacityWithheld):
        return frozenset((need.tenant, need.job) for need in event.data.needs)
    known = (state.workers.get(name) for name in workers_of(event))
    return frozenset(key for worker in known if worker is not None for key in worker.jobs)


def words(event: AnyEvent) -> str:
    """What happened, in a few words; empty: it is no capacity event."""
    data: Any = event.data
    match event:
        case CapacityOffered():
            return f"{data.provider} offers {_count(data.most)}"
        case CapacityRequested():
            return f"{_count(data.count)} asked of {data.provider}"
        case CapacityWithheld():
            return "no worker is asked for"
        case CapacityAccepted():
            return f"{data.provider} accepts: {_listed(data.workers)}"
        case CapacityRefused():
            return f"{data.provider} refuses {_listed(data.workers)}: {data.reason}"
    return _of_one(event)


def _of_one(event: AnyEvent) -> str:
    if isinstance(event, CapacityStarted):
        return f"{event.data.provider} started {event.data.worker}"
    if isinstance(event, CapacityReleased):
        return f"{event.data.worker} is given back to {event.data.provider}"
    if isinstance(event, CapacityStopped):
        return f"{event.data.provider} stopped {event.data.worker}: {event.data.reason}"
    return ""


def _count(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
