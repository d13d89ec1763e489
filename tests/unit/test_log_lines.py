"""Log lines from the wire: what is damaged is no lines, and ends nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from jetfleet import subjects
from jetfleet.logs import LogFeed

SUBJECT = subjects.log("default", "echo", "w1", "r1")


def lines(body: bytes) -> list[tuple[int, str]]:
    feed = LogFeed(None, "default")  # type: ignore[arg-type]  # nothing is asked for
    said, replica = feed._read(SimpleNamespace(subject=SUBJECT, data=body))
    assert replica == "r1"
    return [(line.number, line.text) for line in feed._new(SUBJECT, said)]


def test_lines_are_numbered_from_the_first():
    body = json.dumps({"run": 0, "first": 3, "lines": ["a", "b"]}).encode()
    assert lines(body) == [(3, "a"), (4, "b")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"run": 0, "first": "3", "lines": ["a"]}',
        b'{"run": 0, "first": 1e999, "lines": ["a"]}',
        b'{"run": [], "first": 1, "lines": ["a"]}',
        b'{"run": 0, "first": 1, "lines": "a"}',
        b'{"run": 0, "first": 1, "lines": ' + b"[" * 100_000,
        b'{"run": 0, "first": ' + b"1" * 5_000 + b', "lines": ["a"]}',
    ],
)
def test_what_is_damaged_is_no_lines(body):
    assert lines(body) == []
