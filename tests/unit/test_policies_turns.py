"""Whose turn it is: the highest class that waits, with a floor for the lower ones."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from jetfleet.policies.turns import choose, first, not_started, started

HIGH, NORMAL, LOW = 0, 1, 2


def starts(waiting, count, floor=0.1):
    """Who starts, with these classes waiting all the time."""
    turns, found = first(len(waiting), floor), []
    for _ in range(count):
        each = choose(turns, waiting)
        turns = started(turns, each, waiting)
        found.append(each)
    return found


def test_the_highest_class_that_waits_goes_first():
    assert choose(first(3, 0.1), (True, True, True)) == HIGH
    assert choose(first(3, 0.1), (False, True, True)) == NORMAL
    assert choose(first(3, 0.1), (False, False, True)) == LOW


def test_when_nothing_waits_nobody_starts():
    assert choose(first(3, 0.1), (False, False, False)) is None


def test_after_ten_starts_of_one_class_the_next_lower_one_that_waits_has_one():
    assert starts((True, True), 22) == [*[HIGH] * 10, NORMAL, *[HIGH] * 10, NORMAL]
    assert starts((True, False, True), 11) == [*[HIGH] * 10, LOW]


def test_the_lowest_has_a_tenth_of_what_the_middle_has():
    assert Counter(starts((True, True, True), 1110)) == {HIGH: 1000, NORMAL: 100, LOW: 10}


def test_a_floor_of_one_is_an_equal_share():
    assert Counter(starts((True, True), 100, floor=1)) == {HIGH: 50, NORMAL: 50}


def test_nothing_is_earned_before_it_waits():
    turns = first(2, 0.1)
    for _ in range(100):
        turns = started(turns, HIGH, (True, False))
    assert choose(turns, (True, True)) == HIGH


def test_what_was_earned_is_lost_when_nothing_waits_any_more():
    turns = first(2, 0.5)
    turns = started(turns, HIGH, (True, True))
    turns = started(turns, HIGH, (True, False))
    turns = started(turns, HIGH, (True, True))
    assert choose(turns, (True, True)) == HIGH


def test_a_start_that_did_not_come_about_earns_nothing():
    turns = first(2, 0.5)
    for _ in range(2):
        turns = started(turns, HIGH, (True, True))
    assert choose(turns, (True, True)) == NORMAL
    assert choose(not_started(turns, HIGH, 1), (True, True)) == HIGH


LOOKS = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), max_size=300)


@given(LOOKS, st.floats(0.01, 1))
def test_a_slot_is_never_left_free_and_never_given_to_who_does_not_wait(looks, floor):
    turns = first(4, floor)
    for waiting in looks:
        each = choose(turns, waiting)
        assert (each is None) is not any(waiting)
        if each is not None:
            assert waiting[each]
            turns = started(turns, each, waiting)


@given(
    st.lists(st.booleans(), min_size=2, max_size=5).filter(any),
    st.integers(1, 2000),
    st.floats(0.02, 1),
)
def test_each_class_that_waits_has_its_floor_of_the_next_higher_and_no_more(waiting, count, floor):
    found = Counter(starts(waiting, count, floor))
    waits = [each for each, is_so in enumerate(waiting) if is_so]
    for above, below in itertools.pairwise(waits):
        assert abs(found[below] - floor * found[above]) < 2
