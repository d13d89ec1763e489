"""What policies infer from counts: given arrivals, then this rate, burstiness, length of a run."""

from __future__ import annotations

import random

import pytest
from hypothesis import given as generated
from hypothesis import strategies as st

from given import at
from jetfleet.policies.estimates import (
    arrival_rate,
    index_of_dispersion,
    peakedness,
    service_time,
)
from jetfleet.policies.observation import JobObservation, Service, Window


def seen(windows: dict[float, int], **more) -> JobObservation:
    found = tuple(Window(seconds, arrivals) for seconds, arrivals in windows.items())
    return JobObservation(at(0), 0, 100, windows=found, **more)


def rate(windows: dict[float, int], ahead_s: float = 0.0):
    return arrival_rate(seen(windows), fast_s=10, slow_s=300, ahead_s=ahead_s, significance=4)


def test_steady_arrivals_have_the_rate_of_the_slow_window_and_no_trend():
    steady = rate({10: 20, 30: 60, 60: 120, 300: 600}, ahead_s=45)
    assert steady.slow == steady.recent == steady.ahead == 2.0


def test_a_short_window_that_is_above_by_chance_does_not_count():
    assert rate({30: 36, 300: 300}, ahead_s=45).ahead == 1.0


def test_a_short_window_that_stands_out_counts_and_shows_a_trend():
    stepped = rate({10: 100, 30: 120, 300: 390}, ahead_s=45)
    assert stepped.recent == 10.0
    assert stepped.ahead == pytest.approx(10 + (10 - 1) / 150 * 45)


def test_a_trend_at_most_doubles_the_rate():
    assert rate({10: 100, 300: 100}, ahead_s=10_000).ahead == 20.0


def test_a_fall_is_not_extended_below_the_slow_rate():
    assert rate({10: 0, 30: 0, 300: 300}, ahead_s=45).ahead == 1.0


def test_windows_longer_than_the_slow_one_are_not_looked_at():
    assert rate({300: 300, 3600: 36_000}).recent == 1.0
    assert rate({3600: 3600}).recent == 1.0  # unless there is no other


def test_windows_too_short_to_tell_are_looked_at_only_where_there_are_no_longer_ones():
    assert rate({6: 600, 300: 300}).recent == 1.0
    assert rate({5: 10, 8: 40}).recent == 5.0


def test_without_windows_the_rate_is_zero():
    assert rate({}).ahead == 0.0


def test_poisson_counts_have_an_index_of_one_and_bursts_a_higher_one():
    draw = random.Random(4)
    poisson = [sum(draw.random() < 0.01 for _ in range(1000)) for _ in range(30)]
    assert index_of_dispersion(poisson) == 1.0
    assert index_of_dispersion([0, 50, 0, 0, 60, 0, 0, 40, 0, 0] * 3) > 8


def test_a_step_of_the_rate_is_hardly_taken_for_burstiness():
    step = [10] * 15 + [100] * 15
    plain = sum((n - 55) ** 2 for n in step) / 29 / 55  # the usual variance over the mean
    assert plain > 35
    assert index_of_dispersion(step) < 3


def test_too_few_counts_say_nothing():
    assert index_of_dispersion([]) == index_of_dispersion([0] * 9) == 1.0
    assert index_of_dispersion([0, 90] * 3) == 1.0


def test_peakedness_is_between_one_and_its_bound():
    assert peakedness(0.2) == 1.0
    assert peakedness(5.0) == 3.0
    assert peakedness(500.0) == 8.0


def test_gpus_of_different_speed_add_up_as_rates():
    both = {"fast": Service(1.0, 100, replicas=1), "slow": Service(3.0, 100, replicas=1)}
    assert service_time(seen({}, services=both)) == pytest.approx(1.5)  # (1/s + 1/3 s) / 2 = 2/3 s


def test_without_replicas_past_runs_tell_and_without_runs_nothing():
    past = {"fast": Service(1.0, 300), "slow": Service(3.0, 100)}
    assert service_time(seen({}, services=past)) == 1.5
    assert service_time(seen({}, services={"new": Service(0.0, 0, replicas=2)})) is None


@pytest.mark.parametrize("replicas", [0, 1])
def test_in_which_order_types_of_gpu_were_told_of_changes_no_digit(replicas):
    told = {f"gpu{mean}": Service(mean, 1, replicas) for mean in (0.1, 0.2, 0.3)}
    other = dict(reversed(told.items()))
    assert service_time(seen({}, services=told)) == service_time(seen({}, services=other))


@generated(
    st.lists(st.integers(0, 3000), min_size=4, max_size=4), st.integers(1, 100), st.floats(0, 300)
)
def test_more_new_arrivals_never_lower_the_rate(counts, more, ahead):
    nested = [sum(counts[: n + 1]) for n in range(4)]
    few = dict(zip((10, 30, 60, 300), nested, strict=True))
    many = {seconds: arrivals + more for seconds, arrivals in few.items()}
    assert rate(many, ahead).ahead >= rate(few, ahead).ahead
