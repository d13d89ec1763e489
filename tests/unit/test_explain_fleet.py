"""Explanations of jobs and workers."""

from __future__ import annotations

import given
from given import (
    assigned,
    created,
    deleted,
    disabled,
    job,
    joined,
    lost,
    scaled,
    serving,
)  # fmt: skip
from jetfleet.commands.explain import lines
from jetfleet.events import Candidate
from jetfleet.scaling_specs import LagScaling
from told import Told, beats, queue

ECHO = job("echo")
ZERO = job("echo", replicas=0).model_copy(update={"max_replicas": 2, "scaling": LagScaling()})


# -- jobs


def test_a_job_says_what_serves_and_what_is_missing():
    three = job("echo", replicas=3, memory_mib=2000)
    told = Told().then(0, created(three), joined("w1"), serving("r1", "w1", three))
    found = told.why_job(5, queue(4, running=1, oldest_at=given.at(1)), beats("w1", 5, echo=1))
    assert (found.cause.code, found.state) == ("serving", "enabled")
    assert found.cause.text == "1 of 3 replicas are ready; 1 of 1 slots are busy on w1"
    assert found.cause.details == (
        "3 waiting, 1 running",
        "no further replica: the only worker cannot take it; its model needs memory_mib 2000",
        "w1: 1584 MiB free, 2000 needed",
    )
    assert told.why_job(5, queue(0)).cause.code == "idle"
    # What is queued and what is handed out are not counted in the same moment.
    assert told.why_job(5, queue(1, running=4)).cause.details[0] == "0 waiting, 4 running"


def test_a_disabled_job_takes_nothing_new_and_ends_what_it_has():
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO))
    told.then(3, disabled("echo"))
    off = told.why_job(5, queue(0))
    assert (off.cause.code, off.state) == ("job_disabled", "disabled")
    busy = told.why_job(5, queue(1, running=1))
    assert busy.cause.code == "serving"
    assert busy.cause.details[1].startswith("it takes no new invocations: the job was disabled")
    assert told.then(6, deleted("echo")).why_job(7).state == "deleted"


def test_a_job_tells_of_the_last_decision_on_its_number():
    told = Told().then(0, created(ZERO), joined("w1")).then(1, scaled("echo", 0))
    found = told.why_job(4, queue(0))
    assert found.cause.code == "idle"
    assert found.cause.details == (
        "the job scales to 0 replicas 3.0 s ago by test: the test says so",
    )


# -- workers


def test_a_worker_says_what_it_runs():
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO))
    found = told.why_worker("w1", 3, beats("w1", 3, echo=1))
    assert (found.cause.code, found.state) == ("serving", "joined")
    assert found.cause.details == ("echo: ready, 1 of 1 slots busy",)
    assert told.why_worker("w1", 60, beats("w1", 3)).cause.code == "no_conductor"
    gone = told.then(9, lost("w1")).why_worker("w1", 12)
    assert (gone.cause.code, gone.cause.text) == ("lost", "w1 was lost, silent for 9.0 s")


def test_an_idle_worker_says_why_nothing_is_placed_on_it():
    told = Told().then(0, created(ECHO), joined("w1"))
    told.then(0, assigned("r1", "w1", ECHO), joined("w2"))
    assert told.why_worker("w2", 1).cause.text == "no job wants more replicas than it has"
    huge = job("huge", memory_mib=99_000)
    cause = told.then(2, created(huge)).why_worker("w2", 3).cause
    assert cause.code == "idle"
    assert cause.details == ("huge: 3584 MiB free, 99000 needed",)


def test_a_worker_sees_the_decisions_that_passed_it_over():
    event = assigned("r1", "w1", ECHO)
    chosen, passed = Candidate(worker="w1", score=0.9), Candidate(worker="w2", rejected="too small")
    why = given.WHY.model_copy(update={"candidates": (chosen, passed)})
    passing = event.model_copy(update={"data": event.data.model_copy(update={"why": why})})
    told = Told().then(0, created(ECHO), joined("w1"), joined("w2")).then(1, passing)
    found = told.why_worker("w2", 2)
    assert [e.text for e in found.timeline] == ["w2 joined", "a replica of echo is given to w1"]
    assert any("w1: 0.9; w2: too small" in line for line in lines(found))


def test_a_worker_that_was_let_in_has_not_joined_yet():
    found = Told().then(0, given.admitted("w1", "t1")).why_worker("w1", 5)
    assert (found.cause.code, found.state) == ("admitted", "admitted")
