"""Who made room for whom: what the fold of the fleet remembers of preemption.

Times are the events'. Values in, values out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from jetfleet.catalog import JobKey
from jetfleet.persistent import drop, put

KEPT = 8  # times per job and worker; more do not change the back-off
REMEMBERED = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Yielded:
    """When replicas of a job made room on a worker, oldest first, and for which job the last did.

    ``priority``: of that job.
    """

    times: tuple[datetime, ...]
    to: JobKey
    priority: int

    @property
    def at(self) -> datetime:
        """When it last did."""
        return self.times[-1]


Yields = Mapping[tuple[JobKey, str], Yielded]  # by job and worker
Freed = Mapping[tuple[JobKey, str], datetime]  # when room was made for a job on a worker


def yields(known: Yields, job: JobKey, worker: str, *, last: Yielded) -> Yields:
    """With one more; what lies longer back than ``REMEMBERED`` is forgotten."""
    key, since = (job, worker), last.at - REMEMBERED
    for old in [k for k, each in known.items() if each.at < since]:
        known = drop(known, old)
    times = known[key].times if key in known else ()
    kept = (*(at for at in times if at >= since), *last.times)[-KEPT:]
    return put(known, key, replace(last, times=kept))


def frees(known: Freed, job: JobKey | None, worker: str, at: datetime) -> Freed:
    """With the room that has just been made for a job; None: for none."""
    if job is None:
        return known
    since = at - REMEMBERED
    for old in [k for k, then in known.items() if then < since]:
        known = drop(known, old)
    return put(known, (job, worker), at)
