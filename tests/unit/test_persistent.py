"""Mappings that are never changed: as a dict would be, and what was made before stays as it was."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given as generated
from hypothesis import strategies as st

from jetfleet.persistent import MOST_CHANGES, drop, put

_STEPS = st.lists(
    st.tuples(st.integers(0, 20), st.sampled_from(["put", "drop", "read"])), max_size=300
)


@generated(_STEPS)
def test_it_is_what_a_dict_would_be_and_earlier_ones_stay(steps):
    now: Mapping[int, int] = {}
    like: dict[int, int] = {}
    before = []
    for value, (key, step) in enumerate(steps):
        if step == "put":
            now, like = put(now, key, value), {**like, key: value}
        elif step == "drop":
            now, like = drop(now, key), {k: v for k, v in like.items() if k != key}
        else:
            assert list(now.values()) == [now[k] for k in now]
        assert (key in now, now.get(key)) == (key in like, like.get(key))
        before.append((now, like))
    for made, expected in before:
        assert made == expected
        assert list(made.items()) == list(expected.items())  # in the same order
        assert len(made) == len(expected)


def test_keys_stay_in_the_order_in_which_they_came():
    made = put(put(put({}, "a", 1), "b", 2), "a", 3)
    assert list(made.items()) == [("a", 3), ("b", 2)]
    assert repr(made) == "PersistentMap({'a': 3, 'b': 2})"


def test_what_comes_again_comes_last_whether_or_not_somebody_looked():
    whole = put(put({}, "a", 1), "b", 2)
    for looked in (False, True):
        without = drop(whole, "a")
        assert not looked or list(without) == ["b"]
        assert list(put(without, "a", 3)) == ["b", "a"]


def test_what_is_not_there_cannot_be_read_and_need_not_be_dropped():
    made = put({}, "a", 1)
    assert drop(made, "b") is made
    with pytest.raises(KeyError):
        drop(made, "a")["a"]


def test_many_changes_gather_in_no_chain():
    made: Mapping[int, int] = {}
    for key in range(10 * MOST_CHANGES):
        made = put(made, key, key)
    assert len(made._changes) <= MOST_CHANGES
    assert list(made) == list(range(10 * MOST_CHANGES))
