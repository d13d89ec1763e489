"""Placement: given what people declared and what the fleet said, when deciding, then this."""

from __future__ import annotations

import pytest

import given
from given import (
    assigned,
    at,
    created,
    decide,
    deleted,
    draining,
    failed,
    gpu,
    in_words,
    job,
    joined,
    left,
    lost,
    model,
    obeyed,
    ready,
    released,
    serving,
    stopped,
    updated,
    world,
)  # fmt: skip
from jetfleet.events import Event
from jetfleet.policies.placement import RESERVED_MIB, Assign, place
from jetfleet.specs import JobSpec

ECHO = job("echo")


# -- where a replica goes


def test_a_new_job_goes_to_the_worker_there_is():
    assert decide([created(ECHO)], [joined("w1")]) == ["echo on w1"]


def test_without_workers_or_without_jobs_there_is_nothing_to_decide():
    assert decide([created(ECHO)], []) == []
    assert decide([], [joined("w1")]) == []


def test_a_worker_without_enough_memory_is_passed_over():
    big = job("big", memory_mib=2000)
    happened = [joined("small", memory_mib=2000), joined("large", memory_mib=4096)]
    assert decide([created(big)], happened) == ["big on large"]


def test_the_memory_that_the_system_needs_is_not_given_away():
    exact = joined("w1", memory_mib=1000 + RESERVED_MIB)
    assert decide([created(job("a", memory_mib=1000))], [exact]) == ["a on w1"]
    assert decide([created(job("a", memory_mib=1001))], [exact]) == []


def test_what_fits_nowhere_waits_and_does_not_stop_what_fits():
    huge, small = job("huge", memory_mib=100_000), job("small")
    assert decide([created(huge), created(small)], [joined("w1")]) == ["small on w1"]


def test_the_least_loaded_worker_is_preferred():
    other = job("other", memory_mib=1000)
    happened = [joined("w1"), joined("w2"), serving("r1", "w1", other)]
    assert decide([created(other), created(ECHO)], happened) == ["echo on w2"]


def test_replicas_of_one_job_spread_over_equal_workers():
    happened = [joined("w1"), joined("w2"), joined("w3")]
    placed = decide([created(job("echo", replicas=3))], happened)
    assert sorted(placed) == ["echo on w1", "echo on w2", "echo on w3"]


def test_a_round_does_not_fill_the_same_memory_twice():
    many = job("many", replicas=5, memory_mib=1000)
    happened = [joined("w1", memory_mib=2000 + RESERVED_MIB)]
    assert decide([created(many)], happened) == ["many on w1", "many on w1"]


def test_older_jobs_are_served_first():
    first, second = job("zz-first", memory_mib=1000), job("aa-second", memory_mib=1000)
    happened = [joined("w1", memory_mib=1000 + RESERVED_MIB)]
    assert decide([created(first), created(second)], happened) == ["zz-first on w1"]


def test_a_released_replica_holds_its_memory_until_it_has_stopped():
    old, new = job("old", memory_mib=1000), job("new", memory_mib=1000)
    declared = [created(old), created(new), deleted("old")]
    happened = [
        joined("w1", memory_mib=1000 + RESERVED_MIB),
        serving("r1", "w1", old),
        released("r1", "w1", "old"),
    ]
    assert decide(declared, happened) == []
    assert decide(declared, [*happened, stopped("r1", "w1", "old")]) == ["new on w1"]


# -- GPUs


def test_a_model_with_gpu_memory_needs_a_gpu_with_that_much_free():
    vision = job("vision", of=model("vision", gpu_memory_mib=8000))
    happened = [
        joined("none"),
        joined("small", gpus=(gpu(4000),)),
        joined("two-small", gpus=(gpu(4000), gpu(4000, index=1))),
        joined("large", gpus=(gpu(16000),)),
    ]
    assert decide([created(vision)], happened) == ["vision on large"]


def test_two_models_do_not_share_gpu_memory_that_one_has_taken():
    vision = job("vision", replicas=3, of=model("vision", gpu_memory_mib=6000))
    happened = [joined("w1", gpus=(gpu(8000), gpu(8000, index=1)))]
    assert decide([created(vision)], happened) == ["vision on w1", "vision on w1"]


def test_a_gpu_that_is_too_old_or_does_not_say_is_not_used():
    modern = job("modern", of=model("modern", gpu_memory_mib=1000, gpu_capability=8.0))
    happened = [
        joined("old", gpus=(gpu(16000, 7.5),)),
        joined("silent", gpus=(gpu(16000, None),)),
    ]
    assert decide([created(modern)], happened) == []
    assert decide([created(modern)], [*happened, joined("new", gpus=(gpu(8000, 8.0),))]) == [
        "modern on new"
    ]


def test_two_jobs_of_24_gb_never_share_a_gpu_of_40_gb():
    large = [job(name, of=model(name, gpu_memory_mib=24_000)) for name in ("one", "two")]
    declared = [created(each) for each in large]
    happened = [joined("w1", gpus=(gpu(40_000, uuid="GPU-a"),))]
    assert decide(declared, happened) == ["one on w1"]
    small = job("small", of=model("small", gpu_memory_mib=16_000))
    assert decide([*declared, created(small)], happened) == ["one on w1", "small on w1"]


def test_a_decision_names_the_gpu_and_later_ones_count_by_that_name():
    vision = job("vision", replicas=2, of=model("vision", gpu_memory_mib=6000))
    gpus = (gpu(8000, uuid="GPU-a"), gpu(8000, index=1, uuid="GPU-b"))
    seen = world([created(vision)], [joined("w1", gpus=gpus)])
    assert [decision.gpus for decision in place(seen, at(0))] == [("GPU-a",), ("GPU-b",)]
    # The first fit would be GPU-a; what runs on GPU-b is where the log says that it is.
    happened = [joined("w1", gpus=gpus), assigned("r1", "w1", vision, gpus=("GPU-b",))]
    (second,) = place(world([created(vision)], happened), at(0))
    assert second.gpus == ("GPU-a",)


def test_a_gpu_without_a_uuid_is_named_by_its_index():
    vision = job("vision", of=model("vision", gpu_memory_mib=6000))
    happened = [joined("w1", gpus=(gpu(4000), gpu(8000, index=1)))]
    (only,) = place(world([created(vision)], happened), at(0))
    assert only.gpus == ("1",)


def test_a_gpu_that_is_split_is_not_used_as_a_whole():
    vision = job("vision", of=model("vision", gpu_memory_mib=1000))
    split = gpu(80_000).model_copy(update={"mig": True})
    assert decide([created(vision)], [joined("w1", gpus=(split,))]) == []


def test_a_replica_of_which_no_gpu_was_recorded_counts_where_it_would_be_put():
    vision = job("vision", replicas=3, of=model("vision", gpu_memory_mib=6000))
    gpus = (gpu(8000), gpu(8000, index=1))
    happened = [joined("w1", gpus=gpus), assigned("r1", "w1", vision)]
    (second,) = place(world([created(vision)], happened), at(0))
    assert second.gpus == ("1",)


def test_a_model_without_gpu_memory_needs_no_gpu():
    assert decide([created(job("cpu", of=model(gpu_capability=9.0)))], [joined("w1")]) == [
        "cpu on w1"
    ]


# -- manual assignment


def test_a_manually_assigned_job_runs_only_where_it_was_assigned():
    mine = job("mine", assignment="manual", workers=("w2",))
    assert decide([created(mine)], [joined("w1")]) == []
    assert decide([created(mine)], [joined("w1"), joined("w2")]) == ["mine on w2"]


def test_a_job_moved_by_hand_to_another_worker_serves_there_before_it_leaves_the_old_one():
    moved = job("echo", assignment="manual", workers=("w2",))
    declared = [created(ECHO), updated(moved)]
    happened = [joined("w1"), joined("w2"), serving("r1", "w1", ECHO)]
    assert decide(declared, happened) == ["echo on w2"]
    happened.append(assigned("r2", "w2", moved))
    assert decide(declared, happened) == []
    happened.append(ready("r2", "w2"))
    assert decide(declared, happened) == ["release r1"]


# -- failures


def test_after_a_failure_the_next_worker_is_tried_at_once():
    happened = [joined("w1"), joined("w2"), assigned("r1", "w1", ECHO), failed("r1", "w1")]
    assert decide([created(ECHO)], happened) == ["echo on w2"]


def test_on_the_only_worker_a_failed_job_is_tried_again_after_a_back_off_that_doubles():
    happened = [joined("w1"), assigned("r1", "w1", ECHO), failed("r1", "w1", seconds=10)]
    assert decide([created(ECHO)], happened, seconds=10.9) == []
    assert decide([created(ECHO)], happened, seconds=11) == ["echo on w1"]
    happened += [assigned("r2", "w1", ECHO), failed("r2", "w1", seconds=20)]
    assert decide([created(ECHO)], happened, seconds=21.9) == []
    assert decide([created(ECHO)], happened, seconds=22) == ["echo on w1"]


def test_the_back_off_ends_at_a_minute():
    happened: list[Event | tuple[Event, ...]] = [joined("w1")]
    for n in range(30):
        happened += [assigned(f"r{n}", "w1", ECHO), failed(f"r{n}", "w1", seconds=n)]
    assert decide([created(ECHO)], happened, seconds=88.9) == []
    assert decide([created(ECHO)], happened, seconds=89) == ["echo on w1"]


def test_a_job_that_failed_on_a_worker_does_not_keep_other_jobs_from_it():
    happened = [joined("w1"), assigned("r1", "w1", ECHO), failed("r1", "w1")]
    assert decide([created(ECHO), created(job("other"))], happened) == ["other on w1"]


# -- how many


def test_what_is_wanted_and_there_is_left_alone():
    assert decide([created(ECHO)], [joined("w1"), serving("r1", "w1", ECHO)]) == []


def test_a_replica_on_its_way_counts():
    assert decide([created(ECHO)], [joined("w1"), assigned("r1", "w1", ECHO)]) == []


def test_a_job_scaled_up_gets_the_difference():
    declared = [created(ECHO), updated(job("echo", replicas=3))]
    happened = [joined("w1"), serving("r1", "w1", ECHO)]
    assert decide(declared, happened) == ["echo on w1", "echo on w1"]


def test_a_job_scaled_down_loses_those_not_yet_ready_and_then_the_youngest():
    three = job("echo", replicas=3)
    happened = [
        joined("w1"),
        serving("oldest", "w1", three),
        assigned("unready", "w1", three),
        serving("youngest", "w1", three),
    ]
    declared = [created(three), updated(job("echo", replicas=2))]
    assert decide(declared, happened) == ["release unready"]
    declared.append(updated(job("echo", replicas=1)))
    assert decide(declared, happened) == ["release unready", "release youngest"]


def test_desired_replicas_say_how_many_between_the_bounds():
    spec = JobSpec(name="echo", model=model(), min_replicas=0, max_replicas=5, desired_replicas=2)
    assert decide([created(spec)], [joined("w1")]) == ["echo on w1", "echo on w1"]


def test_a_deleted_job_lets_all_of_its_replicas_go():
    happened = [joined("w1"), serving("r1", "w1", ECHO), assigned("r2", "w1", ECHO)]
    assert decide([created(ECHO), deleted("echo")], happened) == ["release r1", "release r2"]


def test_a_disabled_job_keeps_its_replicas_for_what_is_queued():
    declared = [created(ECHO), given.disabled("echo")]
    assert decide(declared, [joined("w1"), serving("r1", "w1", ECHO)]) == []


def test_jobs_of_the_same_name_in_two_tenants_are_two_jobs():
    declared = [created(ECHO), created(ECHO, tenant="other")]
    decisions = place(world(declared, [joined("w1"), serving("r1", "w1", ECHO)]), at(0))
    assert [d.tenant for d in decisions if isinstance(d, Assign)] == ["other"]


# -- changing what runs


def test_a_new_model_version_serves_before_the_old_one_goes():
    second = job("echo", of=model(version="2"))
    declared = [created(ECHO), updated(second)]
    happened = [joined("w1"), serving("r1", "w1", ECHO)]
    assert decide(declared, happened) == ["echo on w1"]
    happened.append(assigned("r2", "w1", second))
    assert decide(declared, happened) == []
    happened.append(ready("r2", "w1"))
    assert decide(declared, happened) == ["release r1"]


def test_without_room_for_both_versions_only_as_many_old_replicas_give_way_as_new_ones_need():
    first = job("echo", replicas=3, memory_mib=1000)
    second = job("echo", replicas=3, of=model(version="2", memory_mib=1000))
    seen = world(
        [created(first), updated(second)],
        [
            joined("w1", memory_mib=4000 + RESERVED_MIB),
            *(serving(f"r{n}", "w1", first) for n in range(3)),
        ],
    )
    assert in_words(place(seen, at(0))) == ["echo on w1", "release r2", "release r1"]
    seen = obeyed(seen, place(seen, at(0)))
    assert place(seen, at(0)) == ()  # what was asked to go has not gone yet: nothing more goes


def test_a_new_version_that_does_not_start_leaves_the_old_one_serving():
    second = job("echo", of=model(version="2"))
    declared = [created(ECHO), updated(second)]
    happened = [
        joined("w1"),
        serving("r1", "w1", ECHO),
        assigned("r2", "w1", second),
        failed("r2", "w1", seconds=10),
    ]
    assert decide(declared, happened, seconds=10) == []
    assert decide(declared, happened, seconds=11) == ["echo on w1"]


def test_a_new_version_that_fits_nowhere_leaves_the_old_one_serving():
    second = job("echo", of=model(version="2", memory_mib=100_000))
    declared = [created(ECHO), updated(second)]
    assert decide(declared, [joined("w1"), serving("r1", "w1", ECHO)]) == []


def test_a_job_assigned_by_hand_to_a_worker_that_is_not_there_goes_on_where_it_is():
    declared = [created(ECHO), updated(job("echo", assignment="manual", workers=("w9",)))]
    assert decide(declared, [joined("w1"), serving("r1", "w1", ECHO)]) == []


@pytest.mark.parametrize("change", [{"queue_cap": 5}, {"timeout_s": 5}, {"labels": {"a": "b"}}])
def test_a_setting_that_a_replica_does_not_see_restarts_nothing(change):
    declared = [created(ECHO), updated(job("echo", **change))]
    assert decide(declared, [joined("w1"), serving("r1", "w1", ECHO)]) == []


# -- workers that go


@pytest.mark.parametrize("gone", [draining, left, lost])
def test_replicas_of_a_worker_that_goes_are_replaced_elsewhere(gone):
    happened = [joined("w1"), joined("w2"), serving("r1", "w1", ECHO), gone("w1")]
    assert decide([created(ECHO)], happened) == ["echo on w2"]


@pytest.mark.parametrize("gone", [draining, left, lost])
def test_a_worker_that_goes_gets_nothing_new(gone):
    assert decide([created(ECHO)], [joined("w1"), gone("w1")]) == []


def test_a_worker_that_comes_back_empty_is_used_again():
    happened = [joined("w1"), serving("r1", "w1", ECHO), lost("w1"), joined("w1", session="s2")]
    assert decide([created(ECHO)], happened) == ["echo on w1"]


# -- why


def test_a_decision_says_who_was_considered_and_why_not_taken():
    big = job("big", memory_mib=2000)
    seen = world([created(big)], [joined("small", memory_mib=2000), joined("large")])
    (decision,) = place(seen, at(0))
    assert isinstance(decision, Assign)
    assert decision.reason == ("best of 2 workers: apart 1, speed 0.5, price 1, room 0.88, image 1")
    small = next(c for c in decision.candidates if c.worker == "small")
    assert small.rejected == "1488 MiB free, 2000 needed"
    large = next(c for c in decision.candidates if c.worker == "large")
    assert large.score is not None
    assert not large.rejected
