"""Events of trials for given / when / then tests; see ``given``."""

from __future__ import annotations

from typing import Any

from given import WHY, assigned, envelope, ready
from jetfleet.events import Event, JobTried, ReplicaTried
from jetfleet.specs import JobSpec


def tried(replica: str, worker: str, of: str = "echo", *, why_not: str = "") -> Event:
    """What a worker says of a trial: it passed, or why it did not."""
    data = {
        "worker": worker, "job": of, "replica": replica, "passed": not why_not, "reason": why_not,
    }  # fmt: skip
    return ReplicaTried(**envelope(), data=data)


def concluded(of: str, ref: str, status: str = "verified", **more: Any) -> Event:
    """What the conductor says of it."""
    data = {
        "job": of, "model": ref, "status": status, "worker": "w1", "replica": "r1",
        "registry_seq": 9, "why": WHY, **more,
    }  # fmt: skip
    return JobTried(**envelope(), data=data)


def on_trial(replica: str, worker: str, spec: JobSpec, seconds: float = 0) -> Event:
    """A replica is assigned that is to run the example first."""
    return assigned(replica, worker, spec, seconds, trial=True, registry_seq=9)


def passed(replica: str, worker: str, spec: JobSpec) -> tuple[Event, ...]:
    """A replica from its assignment on trial until it serves."""
    return (
        on_trial(replica, worker, spec),
        tried(replica, worker, spec.name),
        ready(replica, worker, spec.name),
    )
