"""Balancing: given classes of workers and a rate, then the backlog from which each pulls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet.policies.balancing import (
    LEAST_RUNS,
    Serving,
    WorkerClass,
    balance,
    differs,
    frees,
    levels,
    thresholds,
    wanted,
)


def pending(classes: list[WorkerClass], rate: float) -> dict[str, int | None]:
    return {each.worker_class: each.min_pending for each in thresholds(classes, rate)}


FAST, MIDDLE, SLOW = (
    WorkerClass("5ms", 200.0, 1),
    WorkerClass("20ms", 50.0, 1),
    WorkerClass("100ms", 10.0, 1),
)


def test_the_fastest_pulls_whenever_it_is_free():
    assert pending([SLOW], 3.0) == {"100ms": None}
    assert pending([SLOW, FAST], 3.0)["5ms"] is None


def test_a_slower_worker_pulls_when_the_faster_would_take_longer_to_catch_up():
    # 200 - 60 = 140/s left of the fast one: in the 20 ms of the middle one it ends 3 more
    found = pending([SLOW, FAST, MIDDLE], 60.0)
    assert list(found) == ["5ms", "20ms", "100ms"]
    assert found == {"5ms": None, "20ms": 3, "100ms": 19}


def test_near_saturation_the_square_root_remains():
    assert pending([FAST, MIDDLE, SLOW], 240.0) == {"5ms": None, "20ms": 2, "100ms": 5}
    assert pending([FAST, SLOW], 100_000.0)["100ms"] == 4  # round(sqrt(20))


def test_classes_of_nearly_one_speed_do_not_wait_for_each_other():
    crowd = [WorkerClass(f"w{n}", 10 - 0.1 * n, 1) for n in range(10)]
    assert set(pending(crowd, 1.0).values()) == {None}
    assert pending([*crowd, WorkerClass("old", 1.0, 4)], 1.0)["old"] == 95


def test_a_class_without_workers_counts_for_nothing():
    assert pending([WorkerClass("gone", 100.0, 0), SLOW], 1.0)["100ms"] is None


def test_the_reason_names_speeds_rate_and_threshold():
    assert thresholds([FAST, SLOW], 60.0)[1].reason == (
        "10 runs/s against 200 of faster workers at 60 arrivals/s: waits for 14 pending"
    )


def test_a_class_of_unknown_speed_is_refused():
    with pytest.raises(ValueError, match="class new has 1 workers of 0 runs/s"):
        thresholds([WorkerClass("new", 0.0, 1)], 1.0)


_CLASSES = st.lists(
    st.tuples(st.floats(0.01, 1000), st.integers(0, 50)), min_size=1, max_size=6
).map(lambda found: [WorkerClass(f"c{n}", *each) for n, each in enumerate(found)])


@given(_CLASSES, st.floats(0, 10_000))
def test_slower_classes_wait_for_no_less(classes, rate):
    found = thresholds(classes, rate)
    waits = [each.min_pending or 0 for each in found]
    assert waits == sorted(waits)
    assert found[0].min_pending is None
    assert len(found) == len(classes)


@given(_CLASSES, st.floats(0, 10_000), st.floats(0, 1000))
def test_at_a_higher_rate_nobody_waits_for_more(classes, rate, more):
    before, after = pending(classes, rate), pending(classes, rate + more)
    assert all((after[name] or 0) <= (before[name] or 0) for name in before)


@given(_CLASSES, st.floats(0, 10_000), st.integers(1, 20))
def test_more_fast_workers_never_make_slow_ones_pull_earlier(classes, rate, more):
    fastest = max(classes, key=lambda c: c.rate)
    grown = [WorkerClass(c.name, c.rate, c.count + more) if c is fastest else c for c in classes]
    before, after = pending(classes, rate), pending(grown, rate)
    assert all((after[name] or 0) >= (before[name] or 0) for name in before)


@given(_CLASSES, st.floats(0, 10_000), st.randoms())
def test_the_order_in_which_classes_are_named_does_not_matter(classes, rate, shuffler):
    mixed = list(classes)
    shuffler.shuffle(mixed)
    assert thresholds(mixed, rate) == thresholds(classes, rate)


# -- of workers, as heartbeats tell of them


def worker(name: str, ms: float | None, *, slots: int = 1, runs: int = 100) -> Serving:
    return Serving(name, slots, None if ms is None else ms / 1000, runs)


OLD, MID, NEW = worker("old", 100), worker("mid", 20), worker("new", 5)


def groups(*workers: Serving) -> list[list[str]]:
    return [[each.worker for each in group] for group in levels(workers)]


def test_three_workers_of_5_20_and_100_ms_at_60_a_second():
    found = balance([OLD, MID, NEW], 60.0)
    assert [(each.workers, each.min_pending) for each in found] == [
        (("new",), None), (("mid",), 2), (("old",), 14),
    ]  # fmt: skip
    assert [round(each.service_s, 6) for each in found] == [0.005, 0.02, 0.1]
    assert wanted(found) == {"mid": 2, "old": 14}


def test_slots_count_as_so_many_workers():
    (fast, slow) = balance([worker("new", 5, slots=4), OLD], 60.0)
    assert (fast.slots, slow.min_pending) == (4, 53)


def test_when_the_faster_are_gone_nobody_waits():
    assert wanted(balance([OLD], 60.0)) == {}
    assert wanted(balance([], 60.0)) == {}


def test_a_worker_that_has_run_little_neither_waits_nor_is_waited_for():
    few = LEAST_RUNS - 1
    assert wanted(balance([OLD, worker("new", 5, runs=few)], 60.0)) == {}
    assert wanted(balance([worker("old", 100, runs=few), NEW], 60.0)) == {}
    assert wanted(balance([worker("old", None, runs=0), NEW], 60.0)) == {}


def test_while_nobody_takes_what_waits_nobody_leaves_it_to_others():
    found = balance([OLD, MID, NEW], 60.0, stuck=True)
    assert wanted(found) == {}
    assert "nobody takes what waits" in found[-1].reason


def test_what_may_be_noise_makes_no_difference():
    assert groups(worker("a", 100), worker("b", 125)) == [["a", "b"]]
    assert groups(worker("a", 100), worker("b", 135)) == [["a"], ["b"]]
    assert groups(worker("a", 100, runs=20), worker("b", 160)) == [["a", "b"]]
    assert groups(worker("a", 100, runs=20), worker("b", 170)) == [["a"], ["b"]]
    assert groups(worker("a", 0.2), worker("b", 4)) == [["a", "b"]]  # shorter than the queue's own


def test_small_changes_are_not_worth_telling():
    assert not differs({"w": 19}, {"w": 23}, ["w"])
    assert differs({"w": 19}, {"w": 24}, ["w"])
    assert not differs({"w": 3}, {"w": 2}, ["w"])
    assert differs({}, {"w": 1}, ["w"])
    assert differs({"w": 1}, {}, ["w"])
    assert not differs({"gone": 9}, {}, ["w"])
    assert frees({"w": 1}, {}, ["w"])
    assert not frees({"w": 1}, {"w": 9, "x": 1}, ["w", "x"])


_WORKERS = st.lists(
    st.tuples(st.integers(1, 8), st.none() | st.floats(0.0, 100), st.integers(0, 1000)), max_size=8
).map(lambda found: [Serving(f"w{n}", *each) for n, each in enumerate(found)])


@given(_WORKERS, st.floats(0, 10_000), st.booleans())
def test_somebody_always_pulls_and_the_slower_never_wait_for_less(workers, rate, stuck):
    found = balance(workers, rate, stuck=stuck)
    named = [name for level in found for name in level.workers]
    assert len(named) == len(set(named))
    assert len(wanted(found)) < len(workers) or not workers
    waits = [level.min_pending or 0 for level in found]
    assert waits == sorted(waits)
    assert not stuck or not any(waits)
    seconds = [level.service_s for level in found]
    assert seconds == sorted(seconds)


@given(_WORKERS, st.floats(0, 10_000), st.randoms())
def test_the_order_in_which_workers_are_named_does_not_matter(workers, rate, shuffler):
    mixed = list(workers)
    shuffler.shuffle(mixed)
    assert balance(mixed, rate) == balance(workers, rate)
