"""Capacity: given what fits nowhere and what providers offer, this is asked for or given back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

import given
from capacity_made import A100, BIG, GIB, SMALL, decided, happened, lacks, offered, requested, said
from given import assigned, at, envelope, gpu, job, joined, left, lost, model, stopped, world
from jetfleet.events import (
    CapacityAccepted,
    CapacityRefused,
    CapacityReleased,
    CapacityStarted,
    CapacityStopped,
    CapacityWithheld,
)
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies import placement
from jetfleet.policies.capacity import ANSWER_S, LATE_S, Ask, CapacityObservation, decide

# -- how many of which


def test_a_replica_that_fits_nowhere_asks_for_one_worker():
    assert decided(lacks(), after=[offered()]) == ["1 of cloud"]


def test_nobody_is_asked_where_nobody_offers():
    assert decided(lacks()) == []


def test_replicas_share_workers_as_far_as_they_fit():
    assert decided(lacks(replicas=5, memory_mib=1 * GIB), after=[offered()]) == ["2 of cloud"]
    assert decided(
        lacks("a", 2, 1 * GIB), lacks("b", 1, 1 * GIB), lacks("c", 1, 1 * GIB), after=[offered()]
    ) == ["2 of cloud"]


def test_replicas_on_gpus_fill_one_gpu_after_the_other():
    after = [offered(shape=A100)]
    assert decided(lacks(replicas=4, gpu_memory_mib=40_000), after=after) == ["1 of cloud"]
    assert decided(lacks(replicas=5, gpu_memory_mib=40_000), after=after) == ["2 of cloud"]


def test_replicas_that_are_kept_apart_each_need_a_worker():
    apart = PlacementSpec(apart="workers")
    missing = lacks(replicas=3, memory_mib=256, placement=apart)
    assert decided(missing, after=[offered()]) == ["3 of cloud"]


def test_of_replicas_kept_apart_by_owner_one_goes_to_a_provider():
    apart = PlacementSpec(apart="owners")
    missing = lacks(replicas=3, memory_mib=256, placement=apart)
    told = decided(missing, after=[offered()])
    assert told == ["1 of cloud", "cloud: its owner has a replica: they are kept apart by owners"]
    there = replace(missing, owners=frozenset({""}))
    assert decided(there, after=[offered()]) == told[1:]


def test_the_cheapest_that_fits_is_asked():
    after = [offered("big", BIG), offered("small", SMALL)]
    assert decided(lacks(), after=after) == ["1 of small"]
    assert decided(lacks(memory_mib=8 * GIB), after=after) == ["1 of big"]


def test_what_one_has_not_is_asked_of_the_next():
    after = [offered("big", BIG), offered("small", SMALL, most=1)]
    assert decided(lacks(replicas=3), after=after) == ["1 of small", "1 of big"]


def test_who_does_not_fit_is_said_with_the_reason():
    gpus = lacks(gpu_memory_mib=40_000)
    assert decided(gpus, after=[offered()]) == [
        "cloud: its workers: no GPU with 40000 MiB free and the capability needed"
    ]
    wishes = PlacementSpec(trusted=True)
    assert decided(lacks(placement=wishes), after=[offered()]) == ["cloud: not trusted"]
    cheap = PlacementSpec(max_price_per_hour=1)
    assert decided(lacks(memory_mib=8 * GIB, placement=cheap), after=[offered(shape=BIG)]) == [
        "cloud: costs 2 an hour, at most 1 is paid"
    ]
    zone = PlacementSpec(labels={"zone": "eu"})
    assert decided(lacks(placement=zone), after=[offered()]) == [
        "cloud: its label zone is not set, not eu"
    ]
    by_hand = lacks(assignment="manual", workers=("w1",))
    assert decided(by_hand, after=[offered()]) == [
        "cloud: not among the workers this job is assigned to"
    ]


def test_a_machine_that_is_represented_already_offers_nothing():
    assert decided(lacks(), after=[offered(most=0)]) == ["cloud: it offers none now"]


def test_what_was_said_is_not_said_again():
    event = CapacityWithheld(
        **envelope(),
        data={
            "needs": [{"tenant": given.TENANT, "job": "echo", "replicas": 1, "resources": {}}],
            "why": given.WHY.model_copy(update={"reason": "cloud: it offers none now"}),
        },
    )
    assert decided(lacks(), after=[offered(most=0), event]) == []
    assert decided(lacks("other"), after=[offered(most=0), event]) == ["cloud: it offers none now"]


def test_what_is_missing_for_a_moment_is_not_asked_for():
    assert decided(lacks(for_s=1.9), after=[offered()]) == []


# -- what is on its way


@pytest.mark.parametrize(
    "further",
    [
        [],
        [said(CapacityAccepted, "cloud-1", "cloud-2")],
        [said(CapacityAccepted, "cloud-1", "cloud-2"), said(CapacityStarted, "cloud-1")],
    ],
    ids=["asked", "accepted", "started"],
)
def test_workers_on_their_way_count(further):
    after = [offered(), requested("cloud-1", "cloud-2"), *further]
    assert decided(lacks(replicas=2), after=after, now=9) == []
    assert decided(lacks(replicas=3), after=after, now=9) == ["1 of cloud"]


def test_a_worker_that_joined_is_no_longer_on_its_way():
    after = [offered(), requested("cloud-1"), said(CapacityAccepted, "cloud-1"),
             joined("cloud-1"), assigned("r1", "cloud-1", job())]  # fmt: skip
    assert decided(lacks(), after=after, now=9) == ["1 of cloud"]


def test_nothing_more_is_asked_of_whom_an_idle_worker_is_of_no_use():
    after = [offered(), requested("cloud-1"), joined("cloud-1")]
    assert decided(lacks(), after=after, now=9) == [
        "cloud: nothing fits on cloud-1 either, which it started"
    ]
    assert decided(lacks(), after=after, now=9, taken=["cloud-1"]) == ["1 of cloud"]


# -- who fails


def test_a_provider_that_does_not_answer_is_passed_over_for_another():
    after = [offered("cheap"), offered("dear", BIG), requested("cheap-1", provider="cheap")]
    assert decided(lacks(), after=after, now=ANSWER_S - 1) == []
    assert decided(lacks(), after=after, now=ANSWER_S) == ["1 of dear"]


def test_a_provider_that_never_answered_is_asked_again_after_its_workers_were_due():
    after = [offered(), requested("cloud-1")]
    assert decided(lacks(), after=after, now=100) == [
        "cloud: it does not answer; it is asked again 10 s after that"
    ]
    assert decided(lacks(), after=after, now=110) == ["1 of cloud"]


def test_after_a_refusal_it_is_left_alone_for_longer_each_time():
    after: list[Any] = [offered()]
    for n, (wait, paused) in enumerate([(9, True), (10, False), (19, True), (20, False)]):
        if n in (0, 2):
            after += [requested("cloud-1"), said(CapacityRefused, "cloud-1", reason="sold out")]
        told = decided(lacks(), after=after, now=wait)
        why = f"cloud: it refused: sold out; it is asked again {10 * 2 ** (n // 2)} s after that"
        assert told == ([why] if paused else ["1 of cloud"])


def test_a_replica_on_one_of_its_workers_ends_the_pause():
    refused = said(CapacityRefused, "cloud-1", reason="sold out")
    after = [offered(), requested("cloud-1", "cloud-2"), refused, joined("cloud-2"),
             assigned("r1", "cloud-2", job())]  # fmt: skip
    assert decided(lacks(), after=after, now=1) == ["1 of cloud"]


def test_a_provider_that_came_anew_is_not_blamed_for_what_was():
    refused = said(CapacityRefused, "cloud-1", reason="sold out")
    after = [offered(), requested("cloud-1"), refused]
    assert decided(lacks(), after=[*after, offered(most=8)], now=1) != ["1 of cloud"]
    assert decided(lacks(), after=[*after, offered(session="p2")], now=1) == ["1 of cloud"]


def test_a_worker_that_did_not_join_is_a_failure_once_its_provider_gave_it_back():
    after: list[Any] = [offered(), requested("cloud-1"), said(CapacityAccepted, "cloud-1")]
    assert decided(lacks(), after=after, now=101) == ["1 of cloud"]
    assert decided(lacks(), after=after, now=100 + LATE_S) == [
        "cloud: cloud-1 did not join in time, and it does not say why"
    ]
    after.append((105, said(CapacityStopped, "cloud-1", reason="it did not join")))
    assert decided(lacks(), after=after, now=106) == [
        "cloud: cloud-1: it did not join; it is asked again 10 s after that"
    ]
    assert decided(lacks(), after=after, now=115) == ["1 of cloud"]


def test_a_worker_that_nothing_ran_on_is_a_failure_too():
    released = CapacityReleased(
        **envelope(),
        data={"request": "q1", "provider": "cloud", "worker": "cloud-1", "session": "s1",
              "why": given.WHY},
    )  # fmt: skip
    after = [offered(), requested("cloud-1"), joined("cloud-1"), (60, released)]
    assert decided(lacks(), after=after, now=61) == [
        "cloud: nothing came to run on cloud-1; it is asked again 10 s after that"
    ]


# -- ceilings


def test_the_ceiling_of_workers_holds_for_all_providers_together():
    after = [offered(), requested("cloud-1", "cloud-2"), joined("cloud-1"),
             assigned("r1", "cloud-1", job())]  # fmt: skip
    assert decided(lacks(replicas=9), after=after, now=9, workers=3) == [
        "1 of cloud", "cloud: the fleet's providers may have 3 workers"
    ]  # fmt: skip
    full = decided(lacks(replicas=9), after=after, now=9, workers=2)
    assert full == ["cloud: the fleet's providers may have 2 workers"]


def test_the_ceiling_of_money_holds():
    after = [offered(shape=BIG)]
    assert decided(lacks(replicas=99, memory_mib=60 * GIB), after=after, per_hour=5) == [
        "2 of cloud", "cloud: the fleet's providers may cost 5 an hour"
    ]  # fmt: skip


def test_a_tenant_at_its_ceiling_leaves_the_rest_to_others():
    missing = (lacks(replicas=9, tenant="acme"), lacks("other", 2, tenant="rival"))
    assert decided(*missing, after=[offered()], tenant_workers=1) == [
        "1 of cloud", "cloud: tenant acme's providers may have 1 worker",
        "1 of cloud", "cloud: tenant rival's providers may have 1 worker",
    ]  # fmt: skip
    assert decided(*missing, after=[offered(shape=BIG)], tenant_per_hour=1) == [
        "cloud: tenant acme's providers may cost 1 an hour",
        "cloud: tenant rival's providers may cost 1 an hour",
    ]


def test_a_worker_counts_until_its_provider_has_stopped_it():
    gone: list[Any] = [offered(), requested("cloud-1"), joined("cloud-1"), lost("cloud-1")]
    assert decided(lacks(), after=gone, workers=1) == [
        "cloud: the fleet's providers may have 1 worker"
    ]
    gone.append(said(CapacityStopped, "cloud-1", reason="it was lost"))
    assert decided(lacks(), after=gone, workers=1) == ["1 of cloud"]


# -- giving back


USED = (offered(), requested("cloud-1"), joined("cloud-1"), assigned("r1", "cloud-1", job()))


def test_a_worker_with_a_replica_is_kept():
    assert decided(after=USED, now=10_000) == []


@pytest.mark.parametrize(("free_at", "until"), [(5, 60), (50, 80)], ids=["lease", "idle"])
def test_an_idle_worker_goes_once_its_lease_and_its_idle_time_are_over(free_at, until):
    after = [*USED, (free_at, stopped("r1", "cloud-1"))]
    assert decided(after=after, now=until - 1) == []
    assert decided(after=after, now=until) == ["give back cloud-1"]
    assert decided(after=after, now=until, taken=["cloud-1"]) == []


def test_workers_that_no_provider_started_are_nobodys_to_give_back():
    assert decided(after=[offered(), joined("w1")], now=10_000) == []


def test_what_has_left_or_is_leaving_is_not_given_back_again():
    assert decided(after=[*USED, left("cloud-1")], now=10_000) == []


# -- what placement says is missing


def test_placement_tells_what_fits_nowhere():
    big = job("big", memory_mib=8 * GIB)
    seen = world([given.created(big), given.created(job("echo", replicas=2))], [joined("w1")])
    assert placement.placed(seen, at(0)).unplaced == {(given.TENANT, "big"): 1}


def test_what_only_waits_after_a_failure_is_not_missing():
    happened_there = [joined("w1"), assigned("r1", "w1", job()), given.failed("r1", "w1")]
    seen = world([given.created(job())], happened_there)
    assert placement.placed(seen, at(0.5)).unplaced == {}


def test_a_new_version_that_waits_for_the_old_one_to_go_is_not_missing():
    old, new = job(memory_mib=3 * GIB), job(of=model(version="2", memory_mib=3 * GIB))
    there = [joined("w1"), given.serving("r1", "w1", old)]
    seen = world([given.created(old), given.updated(new)], there)
    work = placement.placed(seen, at(0))
    assert given.in_words(work.decisions) == ["release r1"]
    assert work.unplaced == {}


def test_gpus_that_are_offered_are_seen_as_placement_sees_real_ones():
    wants = lacks(memory_mib=256, gpu_memory_mib=80_000)
    seen = world(
        [given.created(wants.spec)],
        [joined("w1", memory_mib=64 * GIB, gpus=(gpu(80_000, 8.0), gpu(80_000, 8.0, 1)))],
    )
    assert placement.placed(seen, at(0)).unplaced == {}
    assert decided(wants, after=[offered(shape=A100)]) == ["1 of cloud"]


def test_time_is_handed_in() -> None:
    """Whoever asks again later gets what holds then: the policy keeps nothing."""
    state = happened(offered(), requested("cloud-1"))
    moments: list[datetime] = [at(5), at(500), at(5)]
    first, second, third = (decide(CapacityObservation(now, (lacks(),), state)) for now in moments)
    assert first == third == ()
    assert isinstance(second[0], Ask)
