"""Erlang-C: the known values, and what holds for any number of servers."""

from __future__ import annotations

from math import factorial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet.policies.queueing import (
    erlang_b,
    erlang_c,
    late_share,
    replicas_needed,
)


def close(value: float):
    """To the digits of the reference."""
    return pytest.approx(value, rel=2e-5)


@pytest.mark.parametrize(
    ("servers", "load", "waiting", "p95", "p99"),
    [
        (1, 0.8, 0.8, 13.863, 21.91013),
        (5, 4.0, 0.554113, 2.40534, 4.01478),
        (50, 45.0, 0.363864, 0.396952, 0.718839),
    ],
)
def test_the_reference_values_of_known_queues(servers, load, waiting, p95, p99):
    assert erlang_c(servers, load) == close(waiting)
    assert late_share(servers, load, 1.0, p95) == close(0.05)
    assert late_share(servers, load, 1.0, p99) == close(0.01)
    assert late_share(servers, load, 1.0, 0.0) == close(waiting)


@given(st.integers(1, 60), st.floats(0.01, 1.0))
def test_whole_servers_agree_with_the_textbook_sum(servers, share):
    load = servers * share
    terms = [load**n / factorial(n) for n in range(servers + 1)]
    assert erlang_b(servers, load) == pytest.approx(terms[-1] / sum(terms), rel=1e-9)


@given(st.floats(0.01, 1000), st.floats(0.001, 1.0))
def test_between_whole_servers_the_recurrence_of_erlang_holds(servers, share):
    load = servers * share  # 1/B(c+1) = 1 + (c+1)/a / B(c), also where c is no whole number
    lost, fewer_lost = erlang_b(servers, load), erlang_b(servers + 1, load)
    if lost:
        assert fewer_lost == pytest.approx(1 / (1 + (servers + 1) / load / lost), rel=1e-8)


@pytest.mark.parametrize("servers", [1e3, 1e4, 1e5])
def test_large_fleets_are_computed_without_overflow(servers):
    load = servers - servers**0.5  # Halfin and Whitt: with b = 1 about 0.2234 wait
    assert erlang_c(servers, load) == pytest.approx(0.2234, abs=0.01)
    assert erlang_c(servers, servers * 0.01) == 0.0
    assert erlang_b(servers, servers) == pytest.approx(
        (2 / 3.141592653589793 / servers) ** 0.5, rel=0.05
    )


def test_at_and_above_capacity_everybody_waits_without_end():
    assert erlang_c(3, 3) == erlang_c(3, 7) == late_share(3, 3, 1, 100) == 1.0


def test_without_load_nobody_waits():
    assert erlang_c(2, 0) == erlang_b(2, 0) == 0.0
    assert erlang_b(0, 0) == 1.0


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="not negative"):
        erlang_b(-1, 0)
    with pytest.raises(ValueError, match="above"):
        erlang_b(1, 2)


@given(st.floats(0.1, 5000), st.floats(0.01, 0.999), st.floats(0.001, 100), st.floats(1, 8))
def test_more_servers_less_load_and_less_burstiness_never_mean_more_late(servers, share, wait, z):
    load, slack = servers * share, 1 + 1e-7
    late = late_share(servers, load, 1.0, wait, z)
    assert 0 <= late <= 1
    assert late_share(servers * 1.1, load, 1.0, wait, z) <= late * slack
    assert late_share(servers, load * 0.9, 1.0, wait, z) <= late * slack
    assert late_share(servers, load, 1.0, wait * 1.1, z) <= late * slack
    assert late_share(servers, load, 1.0, wait, 1.0) <= late * slack + 1e-12


@given(
    st.floats(0.001, 2000),
    st.floats(0.01, 60),
    st.floats(0, 30),
    st.floats(0.001, 0.5),
    st.floats(1, 8),
    st.integers(1, 64),
)
def test_the_replicas_needed_are_enough_and_one_less_is_not(load, service, wait, late, z, slots):
    needed = replicas_needed(load, service, wait, late, peakedness=z, slots=slots)
    assert needed * slots > load
    assert late_share(needed * slots, load, service, wait, z) <= late
    assert late_share((needed - 1) * slots, load, service, wait, z) > late


def test_no_load_needs_no_replicas():
    assert replicas_needed(0, 1.0, 1.0, 0.05) == 0
