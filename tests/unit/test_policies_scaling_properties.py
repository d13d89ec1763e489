"""Scaling: what holds for every policy, whatever a job looks like (hypothesis)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given as generated
from hypothesis import settings
from hypothesis import strategies as st

from given import at
from jetfleet.policies.observation import JobObservation, Past, Service, Window
from jetfleet.policies.scaling import memory_s, remember, scale
from jetfleet.scaling_specs import KpaScaling, LagScaling, SloScaling, StaticScaling

SPECS = [
    StaticScaling(replicas=7),
    LagScaling(),
    LagScaling(threshold=3, tolerance=0, down_window_s=0),
    KpaScaling(),
    KpaScaling(down_delay_s=120),
    SloScaling(),
    SloScaling(wait_s=0, lease_s=0, hold_cold_starts=0, late_share=0.2, max_peakedness=1),
]
every_policy = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.policy)


@st.composite
def observations(draw) -> JobObservation:
    """Any job: also contradictory ones, as counters are read one after the other."""
    least = draw(st.integers(0, 20))
    ages = st.lists(st.floats(0, 2000), max_size=30).map(tuple)
    counts = draw(st.lists(st.integers(0, 500), min_size=5, max_size=5))
    at_once = draw(st.lists(st.none() | st.floats(0, 100), min_size=5, max_size=5))
    windows = tuple(
        Window(seconds, sum(counts[: n + 1]), at_once[n])
        for n, seconds in enumerate((6.0, 10.0, 30.0, 60.0, 300.0))
    )
    pasts = draw(
        st.lists(st.tuples(st.floats(0, 400), st.integers(0, 60), st.booleans()), max_size=8)
    )
    return JobObservation(
        now=at(1000),
        min_replicas=least,
        max_replicas=least + draw(st.integers(0, 200)),
        slots=draw(st.integers(1, 16)),
        queued=draw(st.integers(0, 5000)),
        in_flight=draw(st.integers(0, 200)),
        windows=draw(st.sampled_from([windows, windows[2:], ()])),
        dispersion=draw(st.floats(0, 50)),
        ready_ages_s=draw(ages),
        booting_ages_s=draw(ages),
        services=draw(
            st.dictionaries(
                st.sampled_from(["", "T4", "H100"]),
                st.builds(Service, st.floats(0.001, 100), st.integers(0, 1000), st.integers(0, 30)),
            )
        ),
        cold_start_s=draw(st.none() | st.floats(0, 600)),
        history=tuple(
            Past(at(1000 - age), wanted, wanted, surge)
            for age, wanted, surge in sorted(pasts, reverse=True)
        ),
    )


@every_policy
@generated(seen=observations())
def test_the_bounds_of_the_job_hold_and_the_same_is_decided_again(spec, seen):
    decision = scale(seen, spec)
    assert seen.min_replicas <= decision.desired <= seen.max_replicas
    assert scale(seen, spec) == decision
    assert scale(replace(seen), spec.model_copy()) == decision


@every_policy
@generated(seen=observations(), more=st.integers(1, 1000))
def test_a_deeper_queue_never_means_fewer_replicas(spec, seen, more):
    deeper = replace(seen, queued=seen.queued + more)
    assert scale(deeper, spec).desired >= scale(seen, spec).desired


@every_policy
@generated(seen=observations(), more=st.integers(1, 500))
def test_more_arrivals_never_mean_fewer_replicas(spec, seen, more):
    def busier(window: Window) -> Window:  # just now: in every window
        at_once = None if window.concurrency is None else window.concurrency + more
        return Window(window.seconds, window.arrivals + more, at_once)

    faster = replace(seen, windows=tuple(map(busier, seen.windows)))
    assert scale(faster, spec).desired >= scale(seen, spec).desired


@every_policy
@generated(seen=observations())
def test_work_gets_at_least_one_replica_where_one_is_allowed(spec, seen):
    if seen.unfinished and seen.max_replicas:
        assert scale(seen, spec).desired >= 1


@pytest.mark.parametrize("spec", SPECS[1:], ids=lambda spec: spec.policy)
@settings(max_examples=40)
@generated(seen=observations())
def test_without_demand_a_job_comes_to_its_minimum_and_stays_there(spec, seen):
    quiet = tuple(Window(s, 0, 0.0) for s in (6.0, 10.0, 30.0, 60.0, 300.0))
    seen = replace(seen, queued=0, in_flight=0, windows=quiet)
    since, decided = 1000.0, []
    while since <= 1420:  # rounds of 20 s, past every window that remembers demand
        seen = replace(seen, now=at(since))
        decision = scale(seen, spec)
        kept = (seen.ready_ages_s + seen.booting_ages_s)[: decision.desired]
        history = remember(seen.history, decision, seen.now, memory_s(spec, seen.cold_start_s))
        seen = replace(seen, ready_ages_s=kept, booting_ages_s=(), history=history)
        decided.append(decision.desired)
        since += 20
    assert decided[-1] == seen.min_replicas
    assert decided == sorted(decided, reverse=True)  # once on the way down, never up again
