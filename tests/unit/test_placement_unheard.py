"""Placement: decisions that a worker seems not to have heard."""

from __future__ import annotations

from dataclasses import replace

from given import (
    TENANT,
    assigned,
    at,
    created,
    decide,
    deleted,
    in_words,
    job,
    joined,
    model,
    preparing,
    released,
    serving,
    updated,
    world,
)
from jetfleet.policies.placement import consider, place

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


def test_nothing_is_placed_where_nobody_was_heard_for_a_while():
    happened = [joined("w1", memory_mib=60_000), joined("w2")]
    seen = replace(world([created(job("echo", replicas=3))], happened), silent={"w1"})
    decisions = place(seen, at(0))
    assert in_words(decisions) == ["echo on w2"] * 3
    (told,) = (c.rejected for c in decisions[0].candidates if c.worker == "w1")
    assert told == "has not been heard of for a while"
    assert consider(seen, (TENANT, "echo"), at(0))[-1].rejected == told


def test_a_job_waits_for_a_silent_worker_and_lets_nothing_go_to_make_room_elsewhere():
    new = job("echo", of=model(version="2", memory_mib=3000))
    declared = [created(ECHO), updated(new)]
    there = [joined("w2", memory_mib=3512), serving("r1", "w2", ECHO)]
    assert decide(declared, there) == ["release r1"]
    seen = world(declared, [*there, joined("w1")])
    assert in_words(place(seen, at(0))) == ["echo on w1"]
    assert place(replace(seen, silent={"w1"}), at(0)) == ()
