"""Preemption: who makes room for whom, how many, and what happens while the room is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from given import (
    assigned,
    at,
    created,
    decide,
    failed,
    gpu,
    in_words,
    job,
    joined,
    model,
    obeyed,
    ready,
    released,
    room_for,
    scaled,
    serving,
    stopped,
    updated,
    world,
)  # fmt: skip
from jetfleet.events import Event
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies.placement import RESERVED_MIB, Release, place
from jetfleet.policies.placement_filters import YIELDED_S
from jetfleet.policies.placement_preempt import CHAIN
from jetfleet.scaling_specs import LagScaling
from jetfleet.specs import JobSpec


def of(priority: int, name: str, memory_mib: int = 1000, **more: Any) -> JobSpec:
    """A job of a priority; ``preempt`` and other wishes go to its placement."""
    wishes = {k: more.pop(k) for k in list(more) if k in PlacementSpec.model_fields}
    placement = PlacementSpec(priority=priority, **wishes)
    spec = more.pop("of", None) or model(name, memory_mib=memory_mib)
    return job(name, of=spec, placement=placement, **more)


def full(*replicas: tuple[str, JobSpec], worker: str = "w1", free: int = 0) -> list[Any]:
    """A worker whose memory these replicas fill, and some that is free."""
    needs = sum(spec.model.resources.memory_mib for _, spec in replicas)
    events: list[Any] = [joined(worker, memory_mib=RESERVED_MIB + needs + free)]
    return events + [serving(name, worker, spec) for name, spec in replicas]


LOW, HIGH = of(0, "low"), of(10, "high")
BOTH = [created(LOW), created(HIGH)]


# -- who makes room for whom


def test_a_less_important_replica_makes_room_where_there_is_none():
    (decision,) = place(world(BOTH, full(("r1", LOW))), at(0))
    assert isinstance(decision, Release)
    assert decision.replica.id == "r1"
    assert decision.room_for == room_for("high", 10)
    assert decision.reason == (
        "makes room for high (priority 10, its own is 0): that fits nowhere else"
    )


@pytest.mark.parametrize("mine", [0, 10])
def test_nobody_makes_room_for_a_job_that_is_no_more_important(mine):
    other = of(10, "other")
    wants = of(mine, "wants")
    assert decide([created(other), created(wants)], full(("r1", other))) == []


def test_a_job_that_preempts_never_waits_for_room():
    patient = of(10, "high", preempt="never")
    assert decide([created(LOW), created(patient)], full(("r1", LOW))) == []


def test_where_it_fits_nobody_has_to_go():
    assert decide(BOTH, [*full(("r1", LOW)), joined("w2")]) == ["high on w2"]


def test_the_more_important_job_is_placed_first():
    young, old = of(1, "young"), of(0, "old")
    happened = [joined("w1", memory_mib=1000 + RESERVED_MIB)]
    assert decide([created(old), created(young)], happened) == ["young on w1"]


def test_a_job_that_lost_its_place_gets_another_at_once_where_there_is_one():
    small = of(0, "low", 500)
    happened = [*full(("r1", small), free=500), joined("w2", memory_mib=500 + RESERVED_MIB)]
    assert decide([created(small), created(HIGH)], happened) == ["release r1", "low on w2"]


def test_a_minimum_of_the_less_important_job_does_not_save_it():
    least = of(0, "low", replicas=2)
    happened = full(("r1", least), ("r2", least))
    assert decide([created(least), created(HIGH)], happened) == ["release r2"]


# -- how many, and which


def test_no_more_go_than_make_room():
    small = of(0, "low", 400, replicas=5)
    happened = full(*((f"r{n}", small) for n in range(5)), free=100)
    assert decide([created(small), created(HIGH)], happened) == [
        "release r4", "release r3", "release r2",
    ]  # fmt: skip


def test_what_is_free_counts():
    small = of(0, "low", 400, replicas=5)
    happened = full(*((f"r{n}", small) for n in range(5)), free=600)
    assert decide([created(small), created(HIGH)], happened) == ["release r4"]


def test_one_that_is_enough_goes_rather_than_two_that_are_less_important():
    small, large = of(0, "small", 500, replicas=2), of(5, "large", 1000)
    happened = full(("r1", small), ("r2", small), ("r3", large))
    declared = [created(small), created(large), created(HIGH)]
    assert decide(declared, happened) == ["release r3"]


def test_of_as_many_the_least_important_goes():
    five, three = of(5, "five"), of(3, "three")
    happened = [*full(("r1", five)), *full(("r2", three), worker="w2")]
    declared = [created(five), created(three), created(HIGH)]
    assert decide(declared, happened) == ["release r2"]


def test_what_does_not_serve_yet_goes_before_what_serves():
    two = of(0, "low", replicas=2)
    happened = [joined("w1", memory_mib=2000 + RESERVED_MIB), assigned("r1", "w1", two)]
    happened.append(serving("r2", "w1", two))
    assert decide([created(two), created(HIGH)], happened) == ["release r1"]


def test_one_of_many_goes_before_the_last_that_serves():
    many, single = of(0, "many", replicas=2), of(0, "single")
    happened = full(("r1", many), ("r2", many), ("r3", single))
    declared = [created(many), created(single), created(HIGH)]
    assert decide(declared, happened) == ["release r2"]


def test_of_alike_the_youngest_goes():
    two = of(0, "low", replicas=2)
    happened = [*full(("r1", two)), *full(("r2", two), worker="w2")]
    assert decide([created(two), created(HIGH)], happened) == ["release r2"]


def test_two_replicas_that_are_missing_take_two_places():
    low, high = of(0, "low", replicas=3), of(10, "high", replicas=2)
    happened = full(*((f"r{n}", low) for n in range(3)))
    assert decide([created(low), created(high)], happened) == ["release r2", "release r1"]


def test_only_what_runs_on_the_gpu_that_is_needed_goes():
    light = of(0, "light", of=model("light", gpu_memory_mib=2000))
    heavy = of(0, "heavy", of=model("heavy", gpu_memory_mib=7000))
    high = of(10, "high", of=model("high", gpu_memory_mib=6000, gpu_capability=8.0))
    gpus = (gpu(8000, 7.0, uuid="GPU-old"), gpu(8000, 9.0, index=1, uuid="GPU-new"))
    happened = [
        joined("w1", gpus=gpus),
        assigned("r1", "w1", heavy, gpus=("GPU-old",)),
        assigned("r2", "w1", light, gpus=("GPU-new",)),
        assigned("r3", "w1", light.model_copy(update={"name": "other"}), gpus=("GPU-new",)),
    ]
    declared = [
        created(light), created(heavy), created(light.model_copy(update={"name": "other"})),
        created(high),
    ]  # fmt: skip
    assert decide(declared, happened) == ["release r3"]


def test_what_turns_out_not_to_be_needed_is_spared():
    low = [of(0, f"low{n}", of=model("low", gpu_memory_mib=m)) for n, m in enumerate((5, 4, 4))]
    equal = of(10, "equal", of=model("equal", gpu_memory_mib=3))
    high = of(10, "high", of=model("high", gpu_memory_mib=7))
    happened = [
        joined("w1", gpus=(gpu(8, uuid="A"), gpu(8, index=1, uuid="B"))),
        assigned("r9", "w1", equal, gpus=("B",)),
        assigned("r1", "w1", low[1], gpus=("A",)),
        assigned("r2", "w1", low[2], gpus=("A",)),
        assigned("r0", "w1", low[0], gpus=("B",)),
    ]
    declared = [created(spec) for spec in (*low, equal, high)]
    assert decide(declared, happened) == ["release r2", "release r1"]  # r0 is younger and larger


# -- where


@pytest.mark.parametrize(
    "wish",
    [{"trusted": True}, {"labels": {"zone": "eu"}}, {"max_price_per_hour": 1}],
    ids=lambda wish: next(iter(wish)),
)
def test_nobody_makes_room_on_a_worker_that_the_job_does_not_take(wish):
    high = of(10, "high", **wish)
    no = joined("w1", memory_mib=1000 + RESERVED_MIB, price_per_hour=2)
    happened = [no, serving("r1", "w1", LOW)]
    assert decide([created(LOW), created(high)], happened) == []
    yes = joined("w2", memory_mib=1000 + RESERVED_MIB, trusted=True, labels={"zone": "eu"})
    happened += [yes, serving("r2", "w2", LOW)]
    low = LOW.model_copy(update={"min_replicas": 2, "max_replicas": 2})
    assert decide([created(low), created(high)], happened) == ["release r2"]


def test_replicas_kept_apart_get_room_on_different_workers():
    low, high = of(0, "low", replicas=4), of(10, "high", replicas=2, apart="workers")
    happened = [
        *full(("r1", low), ("r2", low)),
        *full(("r3", low), ("r4", low), worker="w2"),
    ]
    assert decide([created(low), created(high)], happened) == ["release r4", "release r2"]


def test_nobody_makes_room_where_the_job_failed():
    happened = [*full(("r1", LOW), free=1000), assigned("r2", "w1", HIGH), failed("r2", "w1")]
    happened.append(serving("r3", "w1", LOW))  # it came while that one paused
    two = LOW.model_copy(update={"min_replicas": 2, "max_replicas": 2})
    assert decide([created(two), created(HIGH)], happened, seconds=300) == []


def test_nobody_makes_room_on_a_worker_that_may_be_lost():
    seen = replace(world(BOTH, full(("r1", LOW))), silent={"w1"})
    assert place(seen, at(0)) == ()


def test_the_decision_says_where_else_room_could_be_made_and_why_not():
    five, three, equal = of(5, "five"), of(3, "three"), of(10, "equal")
    happened = [
        *full(("r1", five)), *full(("r2", three), worker="w2"), *full(("r3", equal), worker="w3"),
    ]  # fmt: skip
    declared = [created(five), created(three), created(equal), created(HIGH)]
    (decision,) = place(world(declared, happened), at(0))
    best, *others = decision.candidates
    assert (best.worker, best.rejected) == ("w2", "")
    assert best.score is not None
    assert {c.worker: c.rejected for c in others} == {
        "w1": "of priority 5 is what would have to go",
        "w3": "nothing there is less important",
    }


# -- while room is made


def test_while_a_replica_ends_what_it_runs_nobody_else_has_to_go():
    two = of(0, "low", replicas=2)
    seen = world([created(two), created(HIGH)], full(("r1", two), ("r2", two)))
    seen = obeyed(seen, place(seen, at(0)))
    assert place(seen, at(1)) == ()
    assert place(seen, at(3600)) == ()


def test_what_was_let_go_for_another_reason_makes_room_too():
    two = of(0, "low", replicas=2)
    happened = [*full(("r1", two), ("r2", two)), released("r2", "w1", "low")]
    fewer = of(0, "low", replicas=1)
    assert decide([created(two), updated(fewer), created(HIGH)], happened) == []


def test_a_replica_that_goes_in_the_same_round_makes_room_too():
    two, one = of(0, "low", replicas=2), of(0, "low", replicas=1)
    happened = full(("r1", two), ("r2", two))
    declared = [created(two), updated(one), created(HIGH)]
    assert decide(declared, happened) == ["release r2"]  # as one is wanted; r1 stays


def test_once_it_has_stopped_the_job_gets_the_place():
    happened = [*full(("r1", LOW)), released("r1", "w1", "low", room_for=room_for("high"))]
    assert decide(BOTH, happened) == []
    happened.append(stopped("r1", "w1", "low"))
    assert decide(BOTH, happened) == ["high on w1"]


def test_nobody_takes_a_part_of_the_room_meanwhile():
    small, third = of(0, "low", 500, replicas=2), of(0, "third", 500)
    for_high = room_for("high")
    happened = [
        *full(("r1", small), ("r2", small)),
        released("r1", "w1", "low", room_for=for_high),
        released("r2", "w1", "low", room_for=for_high),
        stopped("r1", "w1", "low"),
    ]
    declared = [created(small), created(third), created(HIGH)]
    assert decide(declared, happened) == []
    assert decide(declared, [*happened, stopped("r2", "w1", "low")]) == ["high on w1"]


def test_an_older_job_of_the_same_priority_does_not_take_the_room_either():
    older = of(10, "older", preempt="never")
    declared = [created(LOW), created(older), created(HIGH)]
    happened = [*full(("r1", LOW)), released("r1", "w1", "low", room_for=room_for("high"))]
    assert decide(declared, happened) == []
    happened.append(stopped("r1", "w1", "low", seconds=200))
    assert decide(declared, happened, seconds=201) == ["high on w1"]


def test_a_still_more_important_job_may_take_the_room():
    higher = of(20, "higher", preempt="never")
    happened = [
        *full(("r1", LOW)), released("r1", "w1", "low", room_for=room_for("high")),
        stopped("r1", "w1", "low"),
    ]  # fmt: skip
    assert decide([*BOTH, created(higher)], happened) == ["higher on w1"]


def test_a_worker_that_joined_anew_is_told_again_for_whom():
    happened = [
        *full(("r1", LOW)), released("r1", "w1", "low", room_for=room_for("high")),
        joined("w1", session="s2", replicas=("r1",), memory_mib=1000 + RESERVED_MIB),
    ]  # fmt: skip
    seen = world(BOTH, happened)
    decisions = place(seen, at(1))
    assert in_words(decisions) == ["release r1"]
    again = obeyed(seen, decisions, 1)
    assert again.fleet.replicas["r1"].yields_to == ("default", "high")
    assert len(again.fleet.yielded[("default", "low"), "w1"].times) == 1


# -- afterwards


def test_who_made_room_is_not_put_back_at_once_and_later_each_time():
    happened: list[Any] = full(("r1", LOW))
    for_high = room_for("high")
    happened += [released("r1", "w1", "low", room_for=for_high), stopped("r1", "w1", "low")]
    alone = [created(LOW)]
    assert decide(alone, happened, seconds=YIELDED_S - 0.1) == []
    assert decide(alone, happened, seconds=YIELDED_S) == ["low on w1"]
    happened += [serving("r2", "w1", LOW)]
    happened += [
        released("r2", "w1", "low", seconds=100, room_for=for_high), stopped("r2", "w1", "low"),
    ]  # fmt: skip
    assert decide(alone, happened, seconds=100 + 2 * YIELDED_S - 0.1) == []
    assert decide(alone, happened, seconds=100 + 2 * YIELDED_S) == ["low on w1"]


def test_who_made_room_makes_nobody_make_room():
    middle, low = of(5, "middle"), of(0, "low")
    happened = [
        *full(("r1", middle)), released("r1", "w1", "middle", room_for=room_for("high")),
        stopped("r1", "w1", "middle"), serving("r2", "w1", HIGH),
        *full(("r3", low), worker="w2"),
    ]  # fmt: skip
    declared = [created(middle), created(low), created(HIGH)]
    later = CHAIN.total_seconds()
    assert decide(declared, happened, seconds=later - 1) == []
    assert decide(declared, happened, seconds=later) == ["release r3"]


def test_in_one_round_nobody_who_has_to_go_makes_others_go():
    middle, low = of(5, "middle", 2000), of(0, "low", 1000)
    high = of(10, "high", 2000)
    happened = [*full(("r1", middle)), *full(("r2", low), worker="w2", free=1000)]
    assert decide([created(middle), created(low), created(high)], happened) == ["release r2"]
    happened = [*full(("r1", middle)), *full(("r2", low), worker="w2")]
    assert decide([created(middle), created(low), created(high)], happened) == ["release r1"]


def test_a_new_version_makes_no_other_job_go():
    old = of(10, "high", of=model("high", memory_mib=1000))
    new = of(10, "high", of=model("high", version="2", memory_mib=1000))
    happened = full(("r1", LOW), ("r2", old))
    declared = [created(LOW), created(old), updated(new)]
    assert decide(declared, happened) == ["release r2"]


def test_a_job_that_scales_up_takes_places_and_down_gives_them_back():
    spec = of(10, "high").model_dump() | {
        "min_replicas": 0, "max_replicas": 2, "scaling": LagScaling(),
    }  # fmt: skip
    high = JobSpec.model_validate(spec)
    declared: list[Event] = [created(LOW), created(high)]
    happened = [*full(("r1", LOW)), scaled("high", 0)]
    assert decide(declared, happened) == []
    happened.append(scaled("high", 1))
    assert decide(declared, happened) == ["release r1"]
    happened += [
        released("r1", "w1", "low", room_for=room_for("high")), stopped("r1", "w1", "low"),
        assigned("r2", "w1", high), ready("r2", "w1", "high"), scaled("high", 0),
        released("r2", "w1", "high"), stopped("r2", "w1", "high"),
    ]  # fmt: skip
    assert decide(declared, happened, seconds=YIELDED_S) == ["low on w1"]
