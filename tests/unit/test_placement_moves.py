"""Rebalancing: when a replica moves, when it stays, and what happens on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given as generated
from hypothesis import strategies as st

from given import (
    assigned,
    at,
    created,
    decide,
    failed,
    fleet,
    job,
    joined,
    lost,
    obeyed,
    ready,
    released,
    serving,
    stopped,
    took,
    updated,
    world,
)  # fmt: skip
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies.placement import Assign, Release, place
from jetfleet.policies.placement_moves import COST, EVERY, SETTLED

ECHO = job("echo")
LATER = SETTLED.total_seconds() + 10
FASTER = [took("w1", 0.3), took("w2", 0.1)]  # on w2 the speed is worth 0.2 more


def two_workers(*more: Any) -> list[Any]:
    return [joined("w1"), serving("r1", "w1", ECHO), joined("w2"), *more]


def test_a_replica_moves_to_a_worker_that_is_much_better():
    seen = world([created(ECHO)], two_workers(), FASTER)
    (decision,) = place(seen, at(LATER))
    assert isinstance(decision, Assign)
    assert (decision.worker, decision.replaces) == ("w2", "r1")
    assert decision.reason.startswith("0.20 better than w1: ")
    assert place(obeyed(seen, [decision], LATER), at(LATER)) == ()


def test_a_gain_that_does_not_pay_for_the_move_is_left():
    heard = [took("w1", 0.15), took("w2", 0.1)]  # worth 0.1
    assert decide([created(ECHO)], two_workers(), LATER, heard) == []
    assert COST > 0.1


def test_a_replica_that_has_not_served_for_long_stays():
    assert decide([created(ECHO)], two_workers(), LATER - 20, FASTER) == []


def test_a_job_that_asks_to_stay_is_not_moved():
    stays = job("echo", placement=PlacementSpec(stay=True))
    assert decide([created(stays)], two_workers(), LATER, FASTER) == []


def test_the_old_replica_goes_when_the_new_one_serves():
    moving = assigned("r2", "w2", ECHO, LATER, replaces="r1")
    happened = two_workers(moving)
    assert decide([created(ECHO)], happened, LATER + 1, FASTER) == []
    happened.append(ready("r2", "w2", seconds=LATER + 2))
    (decision,) = place(world([created(ECHO)], happened, FASTER), at(LATER + 3))
    assert isinstance(decision, Release)
    assert (decision.replica.id, decision.reason) == ("r1", "it has moved to w2")
    happened += [released("r1", "w1"), stopped("r1", "w1")]
    assert decide([created(ECHO)], happened, LATER + 4, FASTER) == []


def test_a_move_that_fails_leaves_the_old_replica_and_is_not_tried_again():
    happened = two_workers(
        assigned("r2", "w2", ECHO, LATER, replaces="r1"), failed("r2", "w2", seconds=LATER + 1)
    )
    assert decide([created(ECHO)], happened, LATER + 500, FASTER) == []


def test_when_the_old_replica_is_lost_on_the_way_the_new_one_takes_its_place():
    happened = two_workers(assigned("r2", "w2", ECHO, LATER, replaces="r1"), lost("w1"))
    assert decide([created(ECHO)], happened, LATER + 1, FASTER) == []


def test_a_job_scaled_down_on_the_way_lets_the_new_one_go_first():
    two = job("echo", replicas=2)
    happened = [
        joined("w1"), serving("r1", "w1", two), serving("r3", "w1", two), joined("w2"),
        assigned("r2", "w2", two, LATER, replaces="r1"),
    ]  # fmt: skip
    declared = [created(two), updated(ECHO)]
    assert decide(declared, happened, LATER + 1, FASTER) == ["release r2", "release r3"]


def test_replicas_kept_apart_by_owner_may_move_within_their_owner():
    apart = job("echo", placement=PlacementSpec(apart="owners"))
    happened = [joined("w1", owner="ann"), serving("r1", "w1", apart), joined("w2", owner="ann")]
    seen = world([created(apart)], happened, FASTER)
    seen = obeyed(seen, place(seen, at(LATER)), LATER)
    assert place(seen, at(LATER + 1)) == ()
    assert sorted(r.worker for r in seen.fleet.replicas.values()) == ["w1", "w2"]


def test_replicas_that_share_a_worker_part_when_another_owner_comes():
    two = job("echo", replicas=2)
    happened = [
        joined("w1", owner="ann"), serving("r1", "w1", two), serving("r2", "w1", two),
        joined("w2", owner="bob"),
    ]  # fmt: skip
    assert decide([created(two)], happened, LATER) == ["echo on w2"]


def test_one_move_at_a_time():
    jobs = [job(f"j{n}") for n in range(3)]
    happened = [joined("w1"), *(serving(f"r{n}", "w1", spec) for n, spec in enumerate(jobs))]
    happened.append(joined("w2"))
    heard = [
        took(worker, seconds, of=jobs[0].model.ref) for worker, seconds in (("w1", 1), ("w2", 0.1))
    ]
    seen = world([created(spec) for spec in jobs], happened, heard)
    first = place(seen, at(LATER))
    assert len(first) == 1
    old, moving = first[0].replaces, first[0].spec.name
    seen = obeyed(seen, first, LATER)
    assert place(seen, at(LATER + 20)) == ()
    (moved,) = [r.id for r in seen.fleet.replicas.values() if r.replaces]
    serves = ready(moved, "w2", moving, seconds=LATER + 25)
    went = (released(old, "w1", moving), stopped(old, "w1", moving))
    served = fleet(serves, went, onto=seen.fleet)
    seen = replace(seen, fleet=served)
    assert place(seen, at(LATER + EVERY.total_seconds() - 1)) == ()
    assert len(place(seen, at(LATER + EVERY.total_seconds()))) == 1


@generated(
    st.lists(st.floats(0.01, 5), min_size=2, max_size=5),
    st.lists(st.sampled_from([0.0, 0.5, 2.0]), min_size=5, max_size=5),
    st.integers(1, 4),
)
def test_a_fleet_that_does_not_change_comes_to_rest(seconds, prices, replicas):
    """Every move raises a score by more than it costs, so moves cannot go in circles."""
    spec = job("echo", replicas=replicas)
    names = [f"w{n}" for n in range(len(seconds))]
    happened = [
        joined(name, price_per_hour=price) for name, price in zip(names, prices, strict=False)
    ]
    happened += [serving(f"r{n}", names[0], spec) for n in range(replicas)]
    heard = [took(name, taken) for name, taken in zip(names, seconds, strict=True)]
    seen, now, moves = world([created(spec)], happened, heard), LATER, 0
    for _ in range(12):
        decisions = place(seen, at(now))
        assert len(decisions) <= 1
        moves += any(isinstance(d, Assign) for d in decisions)
        if not decisions:
            break
        seen = obeyed(seen, decisions, now)
        seen = settled(seen, now)
        now += LATER + EVERY.total_seconds()
    else:
        raise AssertionError("it goes on moving")
    assert moves <= replicas
    assert len(seen.fleet.replicas) == replicas


def settled(seen: Any, now: float) -> Any:
    """What was assigned serves, what was released has stopped, and so it goes on until calm."""
    for _ in range(3):
        said = [
            stopped(r.id, r.worker, r.job)
            if r.status == "releasing"
            else ready(r.id, r.worker, r.job, seconds=now + 1)
            for r in seen.fleet.replicas.values()
            if r.status != "ready"
        ]
        seen = replace(seen, fleet=fleet(*said, onto=seen.fleet))
        seen = obeyed(seen, [d for d in place(seen, at(now + 2)) if isinstance(d, Release)], now)
    return seen
