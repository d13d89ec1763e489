"""Placement: what a job asks of workers, and which of those that may run it is liked best."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from given import (
    TENANT,
    assigned,
    at,
    created,
    decide,
    draining,
    failed,
    gpu,
    in_words,
    job,
    joined,
    model,
    obeyed,
    ready,
    serving,
    stopped,
    took,
    updated,
    world,
)  # fmt: skip
from jetfleet.images import KEPT, Images, evolve_images
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies import placement_search as search
from jetfleet.policies.placement import RESERVED_MIB, consider, place
from jetfleet.specs import JobSpec, ModelSpec

ECHO = job("echo")


def wishing(name: str = "echo", replicas: int = 1, **wishes: Any) -> JobSpec:
    return job(name, replicas=replicas, placement=PlacementSpec(**wishes))


def in_image(image: str) -> ModelSpec:
    return ModelSpec(name="cog", runtime="docker", contract="cog", image=image)


def rejections(decision: Any) -> dict[str, str]:
    return {c.worker: c.rejected for c in decision.candidates if c.rejected}


def scores(decision: Any) -> dict[str, float]:
    return {c.worker: c.score for c in decision.candidates if c.score is not None}


# -- filters


def test_a_job_that_asks_for_trusted_workers_runs_on_no_other():
    secret = wishing("secret", trusted=True)
    assert decide([created(secret)], [joined("general")]) == []
    happened = [joined("general"), joined("managed", trusted=True)]
    assert decide([created(secret)], happened) == ["secret on managed"]


def test_a_job_runs_only_where_all_labels_are_as_it_asks():
    picky = wishing("picky", labels={"zone": "eu", "disk": "ssd"})
    happened = [
        joined("elsewhere", labels={"zone": "us", "disk": "ssd"}),
        joined("slow", labels={"zone": "eu"}),
        joined("right", labels={"zone": "eu", "disk": "ssd", "rack": "7"}),
    ]
    (decision,) = place(world([created(picky)], happened), at(0))
    assert decision.worker == "right"
    assert rejections(decision) == {
        "elsewhere": "its label zone is us, not eu",
        "slow": "its label disk is not set, not ssd",
    }


def test_a_worker_above_the_price_that_is_paid_is_not_used():
    thrifty = wishing("thrifty", max_price_per_hour=2)
    happened = [joined("dear", price_per_hour=2.5)]
    assert decide([created(thrifty)], happened) == []
    assert decide([created(thrifty)], [*happened, joined("fair", price_per_hour=2)]) == [
        "thrifty on fair"
    ]


def test_replicas_kept_apart_by_worker_wait_for_a_second_worker():
    apart = wishing("apart", replicas=2, apart="workers")
    happened = [joined("w1"), serving("r1", "w1", apart)]
    assert decide([created(apart)], happened) == []
    assert decide([created(apart)], [*happened, joined("w2")]) == ["apart on w2"]


def test_replicas_kept_apart_by_owner_wait_for_a_second_owner():
    apart = wishing("apart", replicas=2, apart="owners")
    happened = [joined("w1", owner="ann"), joined("w2", owner="ann")]
    assert decide([created(apart)], happened) == ["apart on w1"]
    happened.append(joined("w3", owner="bob"))
    assert decide([created(apart)], happened) == ["apart on w1", "apart on w3"]


def test_a_new_version_of_a_job_kept_apart_may_start_beside_the_old_one():
    first = wishing("apart", apart="workers")
    second = job("apart", of=model(version="2"), placement=first.placement)
    happened = [joined("w1"), serving("r1", "w1", first)]
    assert decide([created(first), updated(second)], happened) == ["apart on w1"]


# -- wishes that change while a job serves


@pytest.mark.parametrize(
    "wishes", [{"labels": {"zone": "eu"}}, {"max_price_per_hour": 1}, {"trusted": False}]
)
def test_a_wish_that_its_worker_fulfils_restarts_nothing(wishes):
    happened = [joined("w1", labels={"zone": "eu"}), serving("r1", "w1", ECHO)]
    assert decide([created(ECHO), updated(wishing(**wishes))], happened) == []


def test_a_replica_where_the_job_no_longer_wants_it_goes_once_another_serves():
    moved = wishing(labels={"zone": "eu"})
    declared = [created(ECHO), updated(moved)]
    happened = [joined("w1"), serving("r1", "w1", ECHO)]
    assert decide(declared, happened) == []  # nowhere else to go
    happened.append(joined("w2", labels={"zone": "eu"}))
    assert decide(declared, happened) == ["echo on w2"]
    happened += serving("r2", "w2", moved)
    assert decide(declared, happened) == ["release r1"]


def test_from_a_worker_that_is_not_trusted_it_goes_at_once():
    declared = [created(ECHO), updated(wishing(trusted=True))]
    happened = [joined("w1"), serving("r1", "w1", ECHO)]
    assert decide(declared, happened) == ["release r1"]


def test_two_replicas_that_are_to_be_apart_from_now_on_stay_until_one_can_move():
    declared = [created(job("echo", replicas=2))]
    declared.append(updated(wishing(replicas=2, apart="workers")))
    two = [serving("r1", "w1", ECHO), serving("r2", "w1", ECHO)]
    happened = [joined("w1"), *two]
    assert decide(declared, happened) == []
    happened.append(joined("w2"))
    assert decide(declared, happened) == ["echo on w2"]
    happened += [assigned("r3", "w2", ECHO), ready("r3", "w2")]
    assert decide(declared, happened) == ["release r2"]


# -- scores


def test_the_worker_that_runs_this_model_fastest_is_preferred():
    happened = [joined("w1"), joined("w2"), joined("w3")]
    heard = [took("w1", 0.1), took("w2", 0.005), took("w3", 0.02)]
    assert decide([created(ECHO)], happened, heard=heard) == ["echo on w2"]


def test_a_type_of_gpu_known_from_another_worker_counts():
    vision = job("vision", of=model("vision", gpu_memory_mib=1000))
    slow, fast = gpu(8000, uuid="a"), gpu(8000, uuid="b").model_copy(update={"name": "H100"})
    happened = [joined("a-slow", gpus=(slow,)), joined("fast", gpus=(fast,))]
    heard = [
        took("gone", 0.4, of="vision:1", on="GPU"), took("lost", 0.1, of="vision:1", on="H100"),
    ]  # fmt: skip
    (decision,) = place(world([created(vision)], happened, heard), at(0))
    assert decision.worker == "fast"
    assert "speed 1," in decision.reason
    assert scores(decision)["fast"] - scores(decision)["a-slow"] == pytest.approx(0.3 * 0.75)


def test_the_cheaper_of_two_equal_workers_is_preferred():
    happened = [joined("dear", price_per_hour=3), joined("fair", price_per_hour=1)]
    assert decide([created(ECHO)], happened) == ["echo on fair"]


def test_twice_the_speed_is_worth_a_moderate_price():
    happened = [joined("own"), joined("rented", price_per_hour=1)]
    heard = [took("own", 0.2), took("rented", 0.1)]
    assert decide([created(ECHO)], happened, heard=heard) == ["echo on rented"]


def test_where_the_image_has_run_before_a_replica_starts_sooner():
    spec = job("cog", of=in_image("registry.example/cog:1"))
    happened = [
        joined("w1"), joined("w2"), serving("r1", "w2", spec), stopped("r1", "w2", "cog"),
    ]  # fmt: skip
    (decision,) = place(world([created(spec)], happened), at(0))
    assert decision.worker == "w2"
    assert decision.reason.endswith("image 1")


def test_replicas_of_one_job_spread_over_owners_before_workers_of_one():
    happened = [
        joined("a1", owner="ann"), joined("a2", owner="ann"), joined("b1", owner="bob"),
        joined("c1", owner="cat", price_per_hour=1),
    ]  # fmt: skip
    assert decide([created(job("echo", replicas=4))], happened) == [
        "echo on a1", "echo on b1", "echo on c1", "echo on a2",
    ]  # fmt: skip


def test_a_job_that_prefers_to_pack_fills_one_worker_before_the_next():
    packed = job("packed", replicas=3, memory_mib=1000, placement=PlacementSpec(prefer="pack"))
    happened = [
        joined("w1", memory_mib=2000 + RESERVED_MIB), joined("w2", memory_mib=2000 + RESERVED_MIB),
    ]  # fmt: skip
    assert decide([created(packed)], happened) == ["packed on w1", "packed on w1", "packed on w2"]


def test_a_failure_weighs_more_than_all_that_is_liked():
    happened = [
        joined("w1"), joined("w2", price_per_hour=9), assigned("r1", "w1", ECHO),
        failed("r1", "w1", seconds=0),
    ]  # fmt: skip
    (decision,) = place(world([created(ECHO)], happened, [took("w1", 0.1)]), at(100))
    assert decision.worker == "w2"
    assert scores(decision)["w1"] < 0 < scores(decision)["w2"]


def test_of_many_workers_the_best_and_some_of_those_rejected_are_published(monkeypatch):
    happened = [
        joined(
            f"w{n:02}", owner=f"o{n % 7}", price_per_hour=n * 7 % 11, memory_mib=4000 + n * 13 % 50,
            trusted=n % 3 > 0,
        )
        for n in range(100)
    ]  # fmt: skip
    heard = [took(f"w{n:02}", 0.1 + n % 4) for n in range(0, 100, 9)]
    seen = world([created(wishing(replicas=5, trusted=True))], happened, heard)
    some = place(seen, at(0))
    assert {len(scores(d)) for d in some} == {search.SCORED}
    assert all(len(rejections(d)) == search.REJECTED for d in some)
    monkeypatch.setattr(search, "SCORED", 1000)
    every = place(seen, at(0))
    assert [d.worker for d in some] == [d.worker for d in every]
    for few, all_ in zip(some, every, strict=True):
        best = sorted(scores(all_).values(), reverse=True)
        assert len(best) == 66
        assert list(scores(few).values()) == best[: len(scores(few))]


def test_why_a_replica_has_no_place_can_be_asked_of_every_worker():
    picky = wishing("picky", trusted=True, labels={"zone": "eu"})
    happened = [joined("w1"), joined("w2", trusted=True), joined("w3", memory_mib=600)]
    seen = world([created(picky)], happened)
    assert place(seen, at(0)) == ()
    found = consider(seen, (TENANT, "picky"), at(0))
    assert [(c.worker, c.rejected) for c in found] == [
        ("w1", "not trusted"), ("w2", "its label zone is not set, not eu"), ("w3", "not trusted"),
    ]  # fmt: skip


def test_what_is_considered_is_what_is_decided():
    happened = [joined("w1"), serving("r1", "w1", ECHO), joined("w2"), joined("w3", memory_mib=600)]
    seen = world([created(job("echo", replicas=2))], happened)
    (decision,) = place(seen, at(0))
    assert consider(seen, (TENANT, "echo"), at(0)) == decision.candidates


# -- images


def test_of_a_worker_the_images_that_ran_last_are_remembered():
    state = Images()
    for n in (*range(KEPT + 1), 5):
        image = f"registry.example/m{n}:1"
        spec = job("cog", of=in_image(image))
        fleet = world([], [joined("w1"), assigned("r1", "w1", spec)]).fleet
        state = evolve_images(state, ready("r1", "w1", "cog"), fleet)
    assert len(state.workers["w1"]) == KEPT
    assert state.workers["w1"][-1] == "registry.example/m5:1"
    ran = state.by_image()
    assert len(ran) == KEPT
    assert ran["registry.example/m1:1"] == {"w1"}
    assert "registry.example/m0:1" not in ran


def test_what_another_worker_says_of_a_replica_is_not_believed():
    spec = job("cog", of=in_image("registry.example/m:1"))
    fleet = world([], [joined("w1"), joined("w2"), assigned("r1", "w1", spec)]).fleet
    assert evolve_images(Images(), ready("r1", "w2", "cog"), fleet) == Images()
    assert evolve_images(Images(), ready("r9", "w1", "cog"), fleet) == Images()
    assert evolve_images(Images(), draining("w1"), fleet) == Images()


# -- declaring


@pytest.mark.parametrize(
    "wrong", [{"trust": True}, {"max_price_per_hour": -1}, {"apart": "racks"}, {"prefer": ""}]
)
def test_a_wish_that_does_not_exist_is_refused(wrong):
    with pytest.raises(ValidationError):
        PlacementSpec(**wrong)


def test_the_wishes_are_in_the_events_of_a_job():
    spec = wishing(trusted=True, labels={"zone": "eu"}, apart="owners", prefer="pack")
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    old = spec.model_dump(exclude={"placement"})  # of before there was placement
    assert JobSpec(**old).placement == PlacementSpec()


def test_in_a_round_that_is_obeyed_nothing_is_left_to_decide():
    seen = world([created(wishing(replicas=3, apart="owners"))], [joined("w1"), joined("w2")])
    assert in_words(place(seen, at(0))) == ["echo on w1"]
    assert place(obeyed(seen, place(seen, at(0))), at(0)) == ()
