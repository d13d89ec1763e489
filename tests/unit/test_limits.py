"""One limit on JSON for every reader: what is within it is read by all, what is beyond is named."""

from __future__ import annotations

import collections
import datetime
import enum
import json
import random
import timeit
from typing import Any

import duckdb
import pytest
from hypothesis import given as generated
from hypothesis import strategies as st
from pydantic_core import from_json

import given
from jetfleet.errors import BeyondLimits, InvalidRequest
from jetfleet.events import InvalidEvent, InvocationQueued, compose, decode, unreadable
from jetfleet.limits import MOST_DIGITS, MOST_LEVELS, excess, foreign, modest
from jetfleet.submit import _json


def lists(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def objects(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


def mixed(levels: int) -> bytes:
    ends = [(b"[1,", b"]") if level % 3 else (b'{"[":"]","b":', b"}") for level in range(levels)]
    return b"".join(e[0] for e in ends) + b"1" + b"".join(e[1] for e in reversed(ends))


@pytest.mark.parametrize("make", [lists, objects, mixed])
def test_nesting_is_counted_exactly(make):
    assert excess(make(MOST_LEVELS)) is None
    assert "128 levels" in (excess(make(MOST_LEVELS + 1)) or "")
    assert excess(b"[" + make(MOST_LEVELS) + b"]", around=1) is None
    assert excess(make(20_000))


@pytest.mark.parametrize("shift", range(40))
def test_digits_are_counted_exactly_wherever_they_stand(shift):
    pad = b" " * shift
    assert excess(pad + b"9" * MOST_DIGITS) is None
    assert "1,000 digits" in (excess(pad + b"-" + b"9" * (MOST_DIGITS + 1)) or "")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps("[" * 5_000), json.dumps('"[' * 5_000), json.dumps("\\[" * 5_000),
        json.dumps("1" * 5_000), json.dumps({"1" * 5_000: "\\" + "2" * 5_000}),
        json.dumps([[n] for n in range(5_000)]), json.dumps([{"[": "{" * n} for n in range(200)]),
    ],
)  # fmt: skip
def test_what_stands_in_texts_and_beside_each_other_does_not_count(text):
    assert excess(text.encode()) is None


@generated(st.binary(max_size=400), st.integers(1, 8))
def test_any_bytes_are_taken(noise, times):
    excess(noise * times * 5)


@pytest.mark.parametrize(
    "text", [lists(MOST_LEVELS), objects(MOST_LEVELS), mixed(MOST_LEVELS), b"9" * MOST_DIGITS]
)
def test_what_is_within_the_limit_is_read_by_all(text):
    value = json.loads(text)
    assert from_json(text) == value
    body = compose(InvocationQueued, given.envelope(), queued_data(value))
    assert unreadable(body) is None
    assert decode(body).data.input == value
    asked = duckdb.execute("SELECT ($1::JSON)::VARCHAR", [text.decode()]).fetchall()
    assert asked == [(text.decode(),)]


def queued_data(value: Any) -> dict[str, Any]:
    return {**given.queued("i1").data.model_dump(), "input": value}


def nested(depth: int, leaf: Any) -> Any:
    for level in range(depth):
        leaf = [leaf] if level % 2 else {"a": leaf}
    return leaf


@generated(st.integers(0, 250), st.sampled_from([1, 10**999, 10**4_298, "x", None, 1.5]))
def test_what_is_not_called_unreadable_is_decoded(depth, leaf):
    body = compose(InvocationQueued, given.envelope(), queued_data(nested(depth, leaf)))
    if unreadable(body) is None:
        decode(body)
    else:
        assert depth > MOST_LEVELS or leaf == 10**4_298


@pytest.mark.parametrize("levels", [200, 1_000, 20_000])
def test_an_event_that_nests_without_end_is_an_invalid_event(levels):
    body = compose(InvocationQueued, given.envelope(), queued_data("here"))
    with pytest.raises(InvalidEvent):
        decode(body.replace(b'"here"', lists(levels)))


@pytest.mark.parametrize(
    "value",
    [nested(129, 1), nested(20_000, 1), 10**1_000, 10**5_000],
    ids=["129 levels", "20,000 levels", "1,001 digits", "5,001 digits"],
)
def test_inputs_beyond_the_limit_are_refused_with_their_field(value):
    with pytest.raises(BeyondLimits) as refused:
        _json(value)
    assert (refused.value.field, refused.value.code) == ("input", "beyond_limits")
    assert isinstance(refused.value, InvalidRequest)


# -- what is no JSON


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "value", ["x", 1, 1.5, True, None, [], {}, (1, 2), [[{}]], {"a": (1,)}, Colour.RED,
              collections.OrderedDict(a=1), {"a": collections.defaultdict(int)}]
)  # fmt: skip
def test_json_is_not_foreign(value):
    assert foreign(value) is None


@pytest.mark.parametrize(
    ("value", "kind"),
    [({1, 2}, "set"), (b"x", "bytes"), ({"a": b"x"}, "bytes"), ([{1}], "set"), (object(), "object"),
     (datetime.datetime(2026, 1, 1), "datetime"), ({"a": frozenset()}, "frozenset")],
)  # fmt: skip
def test_what_json_has_not_is_named(value, kind):
    assert foreign(value) == kind


# -- cost

KIB = [
    json.dumps({"input": {"text": "hello world " * 85}}).encode(),
    json.dumps({"input": [random.Random(1).random() for _ in range(52)]}).encode(),
    json.dumps([{"role": "user", "content": "x " * 30}] * 12).encode(),
]


@pytest.mark.parametrize("text", KIB, ids=["text", "floats", "objects"])
def test_looking_costs_a_microsecond_for_a_kibibyte(text):
    assert modest(text)
    best = min(timeit.repeat(lambda: excess(text), number=2_000, repeat=15)) / 2_000
    assert best < 5e-6  # under 1 us on an idle machine
