"""Scaling: given what a job looks like, when deciding, then this many replicas, for this reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import TypeAdapter, ValidationError

from given import at
from jetfleet.policies.observation import JobObservation, Past, Service, Window
from jetfleet.policies.scaling import memory_s, remember, scale
from jetfleet.scaling_specs import (
    KpaScaling,
    LagScaling,
    ScalingSpec,
    SloScaling,
    StaticScaling,
)

QUIET = tuple(Window(s, 0, 0.0) for s in (6, 10, 30, 60, 300))
OLD = 10_000.0  # seconds: the age of a replica past any lease
ADAPTIVE = [LagScaling(), KpaScaling(), SloScaling()]


def steady(per_s: float) -> tuple[Window, ...]:
    return tuple(replace(w, arrivals=round(per_s * w.seconds), concurrency=per_s) for w in QUIET)


def seen(*, ready: int = 0, booting: int = 0, per_s: float = 0.0, **more) -> JobObservation:
    """A job of 1 s runs, replicas long ready, booting ones 5 s old, under steady arrivals."""
    usual = {
        "now": at(1000), "min_replicas": 0, "max_replicas": 100,
        "windows": steady(per_s),
        "ready_ages_s": (OLD,) * ready, "booting_ages_s": (5.0,) * booting,
        "services": {"": Service(1.0, 50)}, "cold_start_s": 45.0,
    }  # fmt: skip
    return JobObservation(**{**usual, **more})


def before(*wanted: int, every_s: float = 10.0, surges: tuple[int, ...] = ()) -> tuple[Past, ...]:
    """Decisions taken every so often until now, the last one just before; surges by position."""
    count = len(wanted)
    return tuple(
        Past(at(1000 - every_s * (count - n)), number, number, n in surges)
        for n, number in enumerate(wanted)
    )


def desired(observation: JobObservation, spec: ScalingSpec) -> int:
    return scale(observation, spec).desired


# -- static


def test_static_is_the_number_declared_or_else_the_minimum():
    assert desired(seen(queued=50), StaticScaling(replicas=3)) == 3
    assert desired(seen(queued=50, min_replicas=2), StaticScaling()) == 2
    assert desired(seen(min_replicas=2, max_replicas=4), StaticScaling(replicas=9)) == 4


# -- lag


def test_lag_counts_what_is_queued_and_what_is_running_over_the_slots_of_a_replica():
    busy = seen(queued=5, in_flight=4, slots=4)
    assert desired(busy, LagScaling()) == 3
    assert desired(busy, LagScaling(threshold=2)) == 5
    assert scale(busy, LagScaling()).reason == "9 queued or running at 4 a replica need 3"


def test_lag_leaves_a_difference_within_its_tolerance():
    known = before(*[20] * 40)
    assert desired(seen(ready=20, queued=1, in_flight=20, history=known), LagScaling()) == 20
    assert desired(seen(ready=20, queued=3, in_flight=20, history=known), LagScaling()) == 23


def test_lag_goes_down_only_to_the_most_wanted_over_its_window():
    recent = seen(ready=8, in_flight=2, per_s=2, history=before(*[8] * 20, *[2] * 20))
    assert desired(recent, LagScaling()) == 8
    passed = replace(recent, history=before(*[8] * 20, *[2] * 31))
    assert desired(passed, LagScaling()) == 2


# -- kpa


def test_kpa_divides_the_mean_concurrency_by_seven_tenths_of_the_slots():
    assert desired(seen(ready=10, per_s=7), KpaScaling()) == 10
    assert desired(seen(ready=10, per_s=7.1), KpaScaling()) == 11


def rising(stable: float, panic: float, **more) -> JobObservation:
    return seen(windows=(Window(6, 60, panic), Window(60, 100, stable)), **more)


def test_kpa_panics_when_the_short_window_wants_twice_what_is_ready():
    panics = scale(rising(2, 14, ready=10), KpaScaling())
    assert (panics.desired, panics.surge) == (20, True)
    assert "panic: 14 at once over 6 s against 10 ready" in panics.reason
    calm = scale(rising(7, 13, ready=10), KpaScaling())
    assert (calm.desired, calm.surge) == (10, False)


def test_kpa_lets_nothing_go_until_a_stable_window_after_the_last_surge():
    during = rising(3, 3, ready=20, history=before(20, 20, 20, surges=(0,)))
    assert desired(during, KpaScaling()) == 20
    after = replace(during, history=before(*[20] * 8, surges=(0,)))
    assert desired(after, KpaScaling()) == 10  # and then at most by half


def test_kpa_forgets_what_it_wanted_in_an_earlier_panic():
    again = rising(3, 30, ready=20, history=before(90, *[20] * 8, surges=(0,)))
    assert desired(again, KpaScaling()) == 43


def test_kpa_without_measured_concurrency_takes_what_is_there_now():
    unmeasured = seen(queued=10, in_flight=4, windows=(Window(60, 14),), ready=8)
    assert desired(unmeasured, KpaScaling()) == 20


# -- slo


def test_slo_asks_erlang_c_for_the_replicas_that_keep_the_objective():
    # 10 erlangs: of the waits for 12 servers 6.1% are above 1 s, for 13 servers 1.4%
    busy = seen(ready=13, per_s=10, in_flight=10)
    assert desired(busy, SloScaling(wait_s=1, late_share=0.05)) == 13
    assert scale(busy, SloScaling(wait_s=1)).reason == (
        "10/s of 1 s runs need 13 for 95% of waits under 1 s"
    )


def test_slo_counts_slots_not_replicas():
    busy = seen(ready=4, per_s=10, slots=4, in_flight=10)
    assert desired(busy, SloScaling(wait_s=1)) == 4


def test_slo_asks_for_more_when_arrivals_are_bursty():
    bursty = replace(seen(ready=13, per_s=10), dispersion=9.0)
    assert desired(bursty, SloScaling(wait_s=1)) == 19


def test_slo_starts_what_drains_a_backlog_that_outlives_a_cold_start():
    late = seen(ready=2, per_s=2, queued=200)
    # 200 queued and no surplus, of which two end 10 in half of 10 s: 190 s of work in 10 s, and 2
    # for what arrives
    decision = scale(late, SloScaling(wait_s=10))
    assert decision.desired == 21
    assert "200 queued, 200 when more could be ready, need 21" in decision.reason
    assert decision.inputs["backlog"] == 200


def test_slo_leaves_a_backlog_that_is_gone_before_a_cold_start_would_end():
    soon = scale(seen(ready=8, per_s=2, queued=100, history=before(*[3] * 20)), SloScaling())
    assert soon.inputs["backlog"] == 0  # 6/s of surplus end 270 in 45 s
    assert soon.desired == soon.wanted == soon.inputs["for_rate"]


def test_slo_takes_no_queue_for_a_backlog_that_is_gone_within_half_the_objective():
    busy = replace(seen(ready=62, per_s=60.5, queued=125), cold_start_s=45.0)
    assert scale(busy, SloScaling(patience=0)).inputs["for_backlog"] > 62
    decision = scale(busy, SloScaling())  # 57 of them are left then: 1 s of what 62 end
    assert decision.inputs["for_backlog"] == 61
    longer = scale(replace(busy, queued=500), SloScaling())  # 432 are left, more than 310
    assert longer.inputs["for_backlog"] == 73


def test_slo_goes_down_only_when_fewer_were_wanted_for_three_cold_starts():
    shortly = seen(ready=9, per_s=2, history=before(*[9] * 5, *[3] * 13))  # 9 wanted 140 s ago
    assert desired(shortly, SloScaling()) == 3
    held = seen(ready=9, per_s=2, history=before(*[9] * 5, *[3] * 12))
    assert desired(held, SloScaling()) == 9
    assert "held at 9 until fewer were wanted for 135 s" in scale(held, SloScaling()).reason


def test_slo_lets_nothing_go_that_the_error_of_the_rate_may_need_again():
    # 2850 arrivals in 300 s: 9.5/s; its error is 0.18/s, so it may be 10.2/s, which needs 13
    unsure = seen(ready=14, per_s=9.5)
    decision = scale(replace(unsure, history=before(*[12] * 20, 14)), SloScaling(wait_s=1))
    assert decision.desired == 14  # held: just wanted
    settled = replace(unsure, history=(*before(*[12] * 20), Past(at(999), 12, 14)))
    decision = scale(settled, SloScaling(wait_s=1))
    assert (decision.wanted, decision.desired) == (12, 13)
    assert "13 are kept: fewer are not surely enough" in decision.reason


def test_slo_lets_go_no_twentieth_of_a_fleet_and_then_all_that_is_too_much():
    large = seen(ready=64, per_s=60, history=(*before(*[62] * 20), Past(at(999), 62, 64)))
    assert desired(large, SloScaling()) == 64
    larger = replace(large, history=(*before(*[62] * 20), Past(at(999), 62, 80)))
    assert desired(larger, SloScaling()) < 66


def test_slo_keeps_a_replica_for_the_length_of_its_lease():
    fresh = seen(per_s=1, ready_ages_s=(OLD, 200.0, 250.0, 299.0), history=before(*[2] * 20))
    decision = scale(fresh, SloScaling())
    assert decision.desired == 3
    assert "3 are kept: started less than 300 s ago" in decision.reason
    assert desired(fresh, SloScaling(lease_s=0)) == 2


def test_slo_without_a_measured_run_or_start_says_what_it_assumed():
    new = seen(per_s=1, services={}, cold_start_s=None)
    decision = scale(new, SloScaling(assumed_service_s=3))
    assert "1/s of 3 s runs (assumed)" in decision.reason
    assert decision.inputs["cold_start_s"] == 45


# -- what users of other systems suffered


@pytest.mark.parametrize("spec", ADAPTIVE, ids=lambda spec: spec.policy)
def test_replicas_that_are_booting_are_neither_started_twice_nor_let_go(spec):
    work = {"queued": 4, "in_flight": 0, "windows": QUIET[:0]}
    first = scale(seen(**work), spec)
    assert first.desired >= 1
    past = (Past(at(995), first.wanted, first.desired, first.surge),)
    later = seen(booting=first.desired, history=past, **work)
    assert desired(later, spec) == first.desired


@pytest.mark.parametrize("spec", ADAPTIVE, ids=lambda spec: spec.policy)
def test_from_zero_the_first_invocation_gets_a_replica(spec):
    windows = tuple(replace(w, arrivals=1, concurrency=0.0) for w in QUIET)
    assert desired(seen(queued=1, windows=windows), spec) == 1


@pytest.mark.parametrize("spec", ADAPTIVE, ids=lambda spec: spec.policy)
def test_a_drained_job_has_no_demand_whatever_it_wanted_before(spec):
    drained = seen(ready=1, windows=QUIET, history=before(*[40] * 3, *[1] * 40))
    assert desired(drained, spec) == 0
    assert desired(replace(drained, min_replicas=1), spec) == 1


def test_a_drained_job_goes_to_zero_past_hold_and_lease():
    drained = seen(windows=QUIET, ready_ages_s=(10.0,) * 5, history=before(40))
    decision = scale(drained, SloScaling())
    assert (decision.wanted, decision.desired) == (0, 0)
    assert decision.reason == "nothing queued, running or arrived for 300 s"


@pytest.mark.parametrize("spec", ADAPTIVE, ids=lambda spec: spec.policy)
def test_a_job_whose_work_still_runs_is_not_at_zero(spec):
    assert desired(seen(ready=1, in_flight=1, windows=QUIET), spec) == 1


@pytest.mark.parametrize("spec", [LagScaling(), SloScaling()], ids=lambda spec: spec.policy)
def test_a_conductor_that_has_just_started_lets_nothing_go_on_what_it_has_not_seen(spec):
    amnesia = seen(ready=9, per_s=1, in_flight=1, windows=(Window(5, 1, 0.2),))
    assert desired(amnesia, spec) == 9


def test_unacknowledged_work_is_demand():  # KEDA's scaler ignored it in some versions
    assert desired(seen(in_flight=7), LagScaling()) == 7


def test_a_job_that_cannot_be_seen_does_not_go_to_its_maximum():
    for spec in ADAPTIVE:  # KEDA scaled to the maximum where the consumer was missing
        assert desired(seen(windows=(), services={}, cold_start_s=None), spec) == 0


@pytest.mark.parametrize("spec", [StaticScaling(replicas=1), *ADAPTIVE], ids=lambda s: s.policy)
def test_every_decision_says_why_from_what_and_by_whom(spec):
    decision = scale(seen(queued=3, oldest_wait_s=7.5, ready=1, draining=2, per_s=1), spec)
    assert decision.policy == spec.policy
    assert decision.version >= 1
    assert decision.reason
    assert decision.inputs["oldest_wait_s"] == 7.5
    assert {"queued", "in_flight", "ready", "booting", "draining"} <= set(decision.inputs)


def test_the_bounds_of_a_job_are_named_when_they_decide():
    assert "max_replicas is 4" in scale(seen(queued=90, max_replicas=4), LagScaling()).reason
    assert "min_replicas is 2" in scale(seen(min_replicas=2), LagScaling()).reason


# -- history and parameters


def test_the_history_is_as_long_as_the_policy_needs():
    history: tuple[Past, ...] = ()
    decision = scale(seen(), SloScaling())
    for n in range(100):
        history = remember(history, decision, at(10 * n), 60)
    assert [p.at for p in history] == [at(10 * n) for n in range(93, 100)]
    assert memory_s(StaticScaling(), None) == 0
    assert memory_s(LagScaling(), None) == 300
    assert memory_s(KpaScaling(), None) == 60
    assert memory_s(SloScaling(), None) == 135
    assert memory_s(SloScaling(), 10.0) == 30


def test_parameters_are_chosen_by_the_name_of_the_policy_and_checked():
    read = TypeAdapter(ScalingSpec).validate_python
    assert read({"policy": "slo", "wait_s": 2}) == SloScaling(wait_s=2)
    assert read({"policy": "static"}) == StaticScaling()
    for wrong in (
        {"policy": "magic"},
        {"policy": "lag", "wait_s": 2},
        {"policy": "slo", "late_share": 1},
    ):
        with pytest.raises(ValidationError):
            read(wrong)
