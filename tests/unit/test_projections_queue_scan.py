"""What is kept in mind of a queue: of which jobs, and how little a look at a deep one costs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from given import at, created, deleted, fleet, job, registry
from jetfleet.errors import Unavailable
from jetfleet.settings import Settings
from jetfleet.stamp import Stamp
from jetfleet_projections.freshness import Freshness
from jetfleet_projections.queue_scan import Queued, QueueScan
from jetfleet_projections.reaper import Reaper

pytestmark = pytest.mark.anyio


def queued(seq: int, of: str = "echo") -> Queued:
    return Queued(0, seq, "default", of, "normal", f"i{seq}", "e", "o", at(0), None)


def test_what_is_gone_is_forgotten_and_so_is_a_job_of_which_nothing_is_left():
    scan = QueueScan(None, 0)
    items = [queued(1, "a"), queued(2, "b"), queued(3, "a")]
    for item in items:
        scan._keep(item)
    scan._forget_below(2)
    scan.forget(items[0])  # once more
    assert (list(scan.items), dict(scan.jobs)) == (
        [2, 3],
        {("default", "a"): 1, ("default", "b"): 1},
    )
    scan._forget_below(4)
    assert (scan.items, scan.by_invocation, scan.jobs) == ({}, {}, {})
    assert scan.take_new() == items


async def test_a_deep_queue_is_gone_through_only_when_it_holds_something_of_a_deleted_job():
    looks = 0
    declared = registry(created(job("echo")), created(job("other")))

    def known():
        nonlocal looks
        looks += 1
        return declared

    away = Freshness(SimpleNamespace(connected=False), lambda: (0, 0))
    reaper = Reaper(None, Settings(), Stamp("conductor/1"), known, fleet, away)
    for n in range(1, 1001):
        reaper.scans[0]._keep(queued(n, "other" if n == 700 else "echo"))
    await reaper._sweep_deleted()
    assert looks <= len(reaper.scans)
    declared = registry(created(job("echo")), created(job("other")), deleted("other"))
    with pytest.raises(Unavailable):  # it is about to end one, and asks whether that is so still
        await reaper._sweep_deleted()
