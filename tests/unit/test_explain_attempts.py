"""Explanations of what was started: the attempt goes on, or was lost, and with what."""

from __future__ import annotations

import pytest

import given
from given import (
    created,
    failed,
    job,
    joined,
    left,
    lost,
    released,
    serving,
    started,
    stopped,
)  # fmt: skip
from told import ID, Told, beats, queue

ECHO = job("echo")


def test_the_first_attempt_was_lost_with_its_worker():
    spec = job("echo", ack_wait_s=10)
    told = Told().then(0, created(spec), joined("w1"), serving("r1", "w1", spec)).queued(1)
    told.invocation(2, started(ID, "w1"))
    assert told.why_invocation(3, queue(), beats("w1", 3, echo=1)).cause.code == "running"
    told.then(8, lost("w1"))
    cause = told.why_invocation(10, queue()).cause
    assert cause.code == "redelivery"
    assert cause.text.startswith("attempt 1 was lost: w1 was lost, silent for 9.0 s, 2.0 s ago")
    cause = told.why_invocation(20, queue()).cause
    assert cause.code == "no_worker"
    assert cause.text.startswith("attempt 1 was lost: w1 was lost, silent for 9.0 s, 12.0 s ago")
    assert "attempt 2 waits: no worker is at work" in cause.text


def test_what_a_worker_handed_back_waits_at_once_like_any_other():
    told = Told().then(0, created(ECHO), joined("w1"), joined("w2"))
    told.then(0, serving("r1", "w1", ECHO)).queued(1).invocation(2, started(ID, "w1"))
    told.then(3, stopped("r1", "w1"), left("w1"), serving("r2", "w2", ECHO))
    cause = told.why_invocation(3.5, queue(5, before=2, running=1)).cause
    assert cause.code == "in_queue"
    assert cause.text.startswith("attempt 1 was lost: the replica of echo on w1 has stopped")
    assert "attempt 2 waits: it is 2 of 4" in cause.text


@pytest.mark.parametrize("why", [stopped("r1", "w1"), failed("r1", "w1")])
def test_what_was_handed_back_is_in_nobodys_hands_while_all_slots_are_busy(why):
    told = Told().then(0, created(ECHO), joined("w1"), joined("w2"), serving("r1", "w1", ECHO))
    told.then(0, serving("r2", "w2", ECHO)).queued(1).invocation(2, started(ID, "w1")).then(3, why)
    # Of what is handed out and not acknowledged one runs on w2, and one is this.
    held = queue(5, before=1, running=2, handed_out=True)
    cause = told.why_invocation(3.5, held, beats("w2", 3, echo=1)).cause
    assert cause.code == "in_queue"
    assert "attempt 2 waits: it is 1 of 4 in the queue of echo; 1 of 1 slots are bus" in cause.text


def test_an_attempt_is_lost_with_its_agent_though_its_container_lives_on():
    spec = job("echo", ack_wait_s=10)
    told = Told().then(0, created(spec), joined("w1"), serving("r1", "w1", spec)).queued(1)
    told.invocation(2, started(ID, "w1"))
    told.then(3, joined("w1", replicas=("r1",)))  # the same agent, on other GPUs
    assert told.why_invocation(4, queue(), beats("w1", 4, echo=1)).cause.code == "running"
    told.then(5, joined("w1", session="s2", replicas=("r1",)))
    cause = told.why_invocation(6, queue(handed_out=True, running=1), {}).cause
    assert cause.code == "redelivery"
    assert cause.text.startswith("attempt 1 was lost: w1 began anew, 1.0 s ago")


def test_the_model_ended_under_an_attempt():
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO)).queued(1)
    told.invocation(2, started(ID, "w1", seconds=2))
    before = told.why_invocation(3, queue(), beats("w1", 1, echo=-1))
    assert before.cause.code == "running"
    cause = told.why_invocation(5, queue(), beats("w1", 4, echo=-1)).cause
    assert cause.code == "restarting"
    assert cause.text == "the model ended under attempt 1 and is being started again on w1"
    told.then(5, released("r1", "w1"))  # then it has no slots either, and what runs may end
    assert told.why_invocation(6, queue(), beats("w1", 5, echo=-1)).cause.code == "running"


def test_a_cancellation_and_an_expiry_are_on_their_way():
    told = Told().then(0, created(ECHO)).queued(1, expires_at=given.at(10))
    assert told.why_invocation(11).cause.code == "expiring"
    told.invocation(2, given.cancel_requested(ID, reason="enough"))
    found = told.why_invocation(3)
    assert found.cause.code == "cancelling"
    assert found.timeline[-1].text == "a cancellation was asked for: enough"
    assert found.cause.text.endswith("it is taken from the queue")


def test_who_ends_what_is_to_be_cancelled():
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO)).queued(1)
    told.invocation(2, started(ID, "w1")).invocation(3, given.cancel_requested(ID))
    running = told.why_invocation(4, queue(), beats("w1", 4, echo=1)).cause
    assert running.text == "a cancellation was asked for: w1 stops it"
    silent = told.why_invocation(12, queue(), beats("w1", 4, echo=1)).cause
    assert "w1 stops it; attempt 1 runs on w1, as far as is known: nothing is heard" in silent.text
    gone = told.then(13, lost("w1")).why_invocation(14, queue()).cause
    assert gone.text == "a cancellation was asked for: it is taken from the queue"


def test_an_outcome_says_why():
    told = Told().then(0, created(ECHO)).queued(1)
    error = {"code": "model_error", "message": "Traceback\nValueError: no"}
    told.invocation(2, given.failed_with(ID, error, worker="w1", run_s=0.5, attempt=3))
    cause = told.why_invocation(4).cause
    assert cause.text == (
        "failed on w1 in 0.5 s: model_error: ValueError: no, after a wait of 0.5 s and 3 attempts"
    )
