"""What the conductor counts of a job, and which number it puts in the log."""

from __future__ import annotations

import pytest

from given import at
from jetfleet.policies.observation import JobObservation, Window
from jetfleet.policies.scaling import ScalingDecision
from jetfleet.scaling_specs import KpaScaling, LagScaling, SloScaling
from jetfleet_projections.observing import JobWatch, lengths
from jetfleet_projections.scaler import settle


def watch(*arrivals: float, since: float = 0.0) -> JobWatch:
    watched = JobWatch(since)
    for when in arrivals:
        watched.arrived(when)
    return watched


# -- counting


def test_a_window_has_what_came_in_it_and_is_no_longer_than_what_was_observed():
    watched = watch(0.1, 50.1, 50.2, 58.1)
    found = watched.windows((10, 30, 300), now=60.0)
    assert found == (Window(10, 3), Window(30, 3), Window(60, 4))


def test_what_is_older_than_the_longest_window_is_forgotten():
    watched = watch(*(n + 0.1 for n in range(1000)))
    assert watched.windows((10, 300), now=1000.0)[-1].arrivals == 300
    assert len(watched._buckets) == 300


def test_the_first_arrival_after_a_start_is_no_high_rate():
    (window,) = watch(100.5, since=100.0).windows((300,), now=101.0)
    assert window == Window(10, 1)
    (silent,) = watch(since=100.0).windows((300,), now=101.0)
    assert silent == Window(1, 0)


def test_concurrency_is_the_mean_over_time():
    watched = JobWatch(0.0)
    for when, depth in ((0.0, 0), (10.0, 4), (15.0, 8)):
        watched.told(depth, 0, when)
    (ten, twenty) = watched.windows((10, 20), now=20.0)
    assert ten.concurrency == pytest.approx(6)
    assert twenty.concurrency == pytest.approx(3)
    assert JobWatch(0.0).windows((10,), now=20.0)[0].concurrency is None


def test_arrivals_in_steps_count_each_once():
    watched = watch(*(n / 10 for n in range(1, 200)))
    counts = watched.counts(300, 2.0, now=20.0)
    assert len(counts) == 10
    assert sum(counts) == 199


def test_without_replicas_an_invocation_counts_before_its_queue_has_it():
    watched = watch(99.9)
    watched.told(0, 0, 100.0)
    assert watched.queued == 1
    watched.told(0, 0, 101.0)
    assert watched.queued == 0
    watched.asleep = False
    watched.arrived(101.9)
    watched.told(0, 0, 102.0)
    assert watched.queued == 0


def test_each_policy_gets_the_windows_of_its_own_parameters():
    assert 77 in lengths(LagScaling(down_window_s=77))
    assert {7, 70} <= set(lengths(KpaScaling(panic_window_s=7, stable_window_s=70)))
    assert {5, 500, 50} <= set(
        lengths(SloScaling(fast_window_s=5, slow_window_s=500, zero_after_s=50))
    )


# -- settling


def decided(desired: int, wanted: int) -> ScalingDecision:
    return ScalingDecision("lag", 1, desired, "", wanted)


@pytest.mark.parametrize(
    ("before", "desired", "wanted", "settled"),
    [
        (None, 3, 0, 3),  # nothing was decided yet
        (3, 1, 1, 1),  # fewer
        (1, 3, 3, 3),  # more, for the work there is
        (1, 3, 0, 1),  # more, for what is remembered alone
        (1, 5, 3, 3),
        (0, 1, 0, 0),
    ],
)
def test_what_is_remembered_keeps_replicas_and_adds_none(before, desired, wanted, settled):
    seen = JobObservation(at(0), 0, 9)
    assert settle(seen, decided(desired, wanted), before) == settled


def test_bounds_hold_whatever_was_decided_before():
    assert settle(JobObservation(at(0), 2, 9), decided(2, 0), 1) == 2
    assert settle(JobObservation(at(0), 0, 3), decided(3, 9), 5) == 3
    assert settle(JobObservation(at(0), 0, 9, queued=1), decided(1, 0), 0) == 1
