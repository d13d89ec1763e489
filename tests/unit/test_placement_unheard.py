"""Placement: decisions that a worker seems not to have heard."""

from __future__ import annotations

from given import assigned, created, decide, deleted, job, joined, preparing, released, serving

ECHO = job("echo")


def test_what_was_let_go_before_its_worker_joined_anew_is_let_go_again_once():
    happened = [
        joined("w1"), serving("r1", "w1", ECHO), released("r1", "w1", "echo"),
        joined("w1", session="s2", replicas=("r1",)),
    ]  # fmt: skip
    declared = [created(ECHO), deleted("echo")]
    assert decide(declared, happened) == ["release r1"]
    assert decide(declared, [*happened, released("r1", "w1", "echo")]) == []


def test_an_assignment_that_nothing_comes_of_is_taken_back_after_a_while():
    happened = [joined("w1"), assigned("r1", "w1", ECHO)]
    assert decide([created(ECHO)], happened, 29) == []
    assert decide([created(ECHO)], happened, 40) == ["release r1", "echo on w1"]
    begun = [*happened, preparing("r1", "w1")]
    assert decide([created(ECHO)], begun, 4000) == []
