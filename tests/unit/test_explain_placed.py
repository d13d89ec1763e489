"""Explanations of preemption and of balancing: given what is told, then this is the cause."""

from __future__ import annotations

import pytest

from given import (
    assigned,
    balanced,
    created,
    job,
    joined,
    ready,
    released,
    room_for,
    serving,
    stopped,
)
from jetfleet.placement_specs import PlacementSpec
from jetfleet.specs import JobSpec
from told import Told, beats, queue

FAST_AND_SLOW = {"fast": None, "slow": 14}


def important(name: str, priority: int) -> JobSpec:
    return job(name, memory_mib=3000, placement=PlacementSpec(priority=priority))


LOW, HIGH = important("low", 0), important("high", 10)
LET_GO = released("r1", "w1", "low", 5, room_for("high"))


def two_jobs(about: str) -> Told:
    """Of which one fits; explained is this one."""
    return Told(about).then(
        0, created(LOW), joined("w1"), serving("r1", "w1", LOW), created(HIGH)
    )  # fmt: skip


# -- preemption


@pytest.mark.parametrize(("seconds", "code"), [(1, "deciding"), (20, "no_conductor")])
def test_less_important_replicas_could_make_room_and_whoever_decides_has_not(seconds, code):
    found = two_jobs("high").queued(0).why_invocation(seconds)
    assert found.cause.code == code
    assert "less important replicas" in found.cause.text


def test_room_is_being_made_for_it_and_by_whom():
    told = two_jobs("high").queued(1).then(5, LET_GO)
    found = told.why_invocation(9)
    assert found.cause.code == "making_room"
    assert found.cause.sentence(found.at) == (
        "less important replicas make room for it and end what they run: low on w1 (for 4.0 s)"
    )
    texts = [entry.text for entry in found.timeline]
    assert "the replica of low on w1 is let go, to make room for high" in texts


def test_its_place_was_taken_by_a_more_important_job():
    told = two_jobs("low").then(5, LET_GO).then(8, stopped("r1", "w1", "low", 8))
    told.then(9, assigned("r2", "w1", HIGH, 9), ready("r2", "w1", "high", 10)).queued(12)
    found = told.why_invocation(15)
    assert found.cause.code == "preempted"
    assert found.cause.sentence(found.at) == (
        "a replica on w1 made room for high (priority 10), and no worker can take another"
        " (for 10.0 s)"
    )
    assert found.cause.details == ("w1: 584 MiB free, 3000 needed",)
    assert told.why_job(15).cause.code == "preempted"


def test_while_it_is_kept_away_from_the_room_it_made_that_is_the_cause():
    told = two_jobs("low").then(5, LET_GO).then(8, stopped("r1", "w1", "low", 8))
    found = told.queued(9).why_invocation(12)
    assert found.cause.code == "preempted"
    assert found.cause.details == ("w1: made room there for high, waiting 30 s after the last",)
    assert told.why_invocation(36).cause.code == "deciding"


def test_a_job_that_has_other_replicas_says_why_it_has_no_more():
    two = LOW.model_copy(update={"min_replicas": 2, "max_replicas": 2})
    told = Told("low").then(0, created(two), joined("w1"), serving("r1", "w1", two))
    told.then(1, joined("w2"), serving("r2", "w2", two), created(HIGH)).then(5, LET_GO)
    cause = told.why_job(6, queue(1, running=1)).cause
    assert "no further replica: a replica on w1 made room for high" in "\n".join(cause.details)


def test_once_another_reason_keeps_it_out_preemption_is_not_blamed():
    told = two_jobs("low").then(5, LET_GO).then(8, stopped("r1", "w1", "low", 8))
    other = important("other", 0)
    told.then(9, created(other), serving("r3", "w1", other)).queued(50)
    assert told.why_invocation(60).cause.code == "no_fit"


# -- balancing


def fast_and_slow() -> Told:
    echo = job("echo", replicas=2)
    told = Told().then(0, created(echo), joined("fast"), joined("slow"))
    told.then(1, serving("r1", "fast", echo), serving("r2", "slow", echo))
    return told.then(2, balanced("echo", FAST_AND_SLOW)).queued(3)


def heard(fast: int, slow: int) -> dict:
    return {**beats("fast", 4, echo=fast), **beats("slow", 4, echo=slow)}


def test_slower_workers_leave_it_to_a_faster_one():
    waiting = queue(4, before=2, running=1)  # one runs on the fast worker, three wait
    found = fast_and_slow().why_invocation(5, waiting)
    assert found.cause.code == "left_to_faster"
    assert found.cause.text == (
        "it is 2 of 3 that slow (from 14 waiting on) leaves to the faster fast, whose slots are"
        " all busy; 1 of 2 slots are busy on fast, slow"
    )
    texts = [entry.text for entry in found.timeline]
    assert (
        "slower workers leave to faster ones what these get to sooner: slow from 14 waiting on"
        in texts
    )


@pytest.mark.parametrize(
    ("waiting", "told_by", "code"),
    [
        (queue(3, before=2, running=2), heard(fast=1, slow=1), "in_queue"),  # the slow one is busy
        (queue(3, before=0, running=0), heard(fast=0, slow=0), "next"),  # the fast one is free
        (queue(20, before=1, running=1), heard(fast=1, slow=0), "next"),  # enough wait for the slow
    ],
)
def test_it_is_told_only_where_it_is_so(waiting, told_by, code):
    found = fast_and_slow().why_invocation(5, waiting, told_by)
    assert found.cause.code == code


def test_what_a_worker_says_of_its_threshold_counts_before_what_was_decided():
    told_by = heard(fast=1, slow=0)  # the slow one has heard of no threshold, or it ran out
    found = fast_and_slow().why_invocation(5, queue(2, before=1, running=1), told_by)
    assert found.cause.code == "next"


def test_a_job_says_who_leaves_work_to_whom():
    cause = fast_and_slow().why_job(5, queue(2, running=1)).cause
    assert cause.details[-1] == (
        "slower workers leave to faster ones what these get to sooner: slow from 14 waiting on"
    )


def test_of_thresholds_that_change_again_and_again_the_last_is_shown():
    told = fast_and_slow()
    for second in range(3, 9):
        told.then(second, balanced("echo", {"fast": None, "slow": second}))
    shown = [e for e in told.why_job(10).timeline if e.type == "jetfleet.job.balanced"]
    assert [entry.text.rpartition(": ")[2] for entry in shown] == ["slow from 8 waiting on"]
