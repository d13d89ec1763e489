"""Subjects: both sides call the same function, and no name becomes more than one token."""

from __future__ import annotations

import inspect
import re
import zlib

import pytest
from hypothesis import given as generated
from hypothesis import strategies as st

from jetfleet import subjects
from jetfleet.subjects import ANY
from nats_rules import matches, overlap

NAMES = st.text("ab0-_", min_size=1, max_size=8).filter(subjects.is_name)
# Every function that makes a subject of the wire (those of streams and consumers make names, and
# filters end in a wildcard).
MAKERS = [
    function
    for name, function in inspect.getmembers(subjects, inspect.isfunction)
    if (source := inspect.getsource(function)).count('f"jf.') == 1 and '.>"' not in source
]


def test_every_shape_of_subject_is_made_in_one_place():
    shapes = {maker.__name__ for maker in MAKERS}
    assert {
        "model_event", "job_event", "queued", "cancel", "started", "done", "queue", "output",
        "input_blob", "output_blob", "fleet", "control", "telemetry", "command", "ask_credentials",
        "ask_join", "admitted", "revoked", "log", "scaled", "balanced",
        "capacity_decision", "provider",
        "tried",
    } == shapes  # fmt: skip


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_the_literal_shape_above_each_function_is_what_it_returns(maker):
    lines = inspect.getsource(subjects).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith(f"def {maker.__name__}("))
    shape = re.match(r"# (jf\.\S+)", lines[at - 1].rstrip(":"))
    assert shape is not None, f"no shape above {maker.__name__}"
    made = maker(*["x"] * len(inspect.signature(maker).parameters))
    assert re.sub(r"<\w+>", "x", shape[1].rstrip(":")) == made


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
@generated(data=st.data())
def test_a_subscriber_who_wants_any_hears_what_a_publisher_says(maker, data):
    names = [data.draw(NAMES) for _ in inspect.signature(maker).parameters]
    published = maker(*names)
    for mask in range(2 ** len(names)):
        wanted = [ANY if mask >> n & 1 else name for n, name in enumerate(names)]
        assert matches(maker(*wanted), published)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_a_subscriber_who_wants_one_does_not_hear_another(maker):
    count = len(inspect.signature(maker).parameters)
    for n in range(count):
        wanted = ["a"] * count
        other = ["b" if n == m else "a" for m in range(count)]
        assert not matches(maker(*wanted), maker(*other))


def test_no_two_kinds_of_subject_can_be_mistaken_for_each_other():
    patterns = {m.__name__: m(*[ANY] * len(inspect.signature(m).parameters)) for m in MAKERS}
    for one, pattern in patterns.items():
        for other, against in patterns.items():
            if one != other:
                assert not overlap(pattern, against), (one, other)


@pytest.mark.parametrize(
    ("filter_", "maker"),
    [
        (subjects.ALL_INVOCATIONS, subjects.queued),
        (subjects.ALL_INVOCATIONS, subjects.cancel),
        (subjects.ALL_INVOCATIONS, subjects.started),
        (subjects.ALL_INVOCATIONS, subjects.done),
        (subjects.ALL_QUEUED, subjects.queued),
        (subjects.ALL_REGISTRY, subjects.model_event),
        (subjects.ALL_REGISTRY, subjects.job_event),
        (subjects.ALL_FLEET, subjects.fleet),
        (subjects.ALL_CONTROL, subjects.control),
        (subjects.ALL_TELEMETRY, subjects.telemetry),
        (subjects.ALL_PAYLOADS, subjects.input_blob),
        (subjects.ALL_PAYLOADS, subjects.output_blob),
    ],
)
def test_the_filters_of_streams_take_what_belongs_in_them(filter_, maker):
    assert matches(filter_, maker(*["x"] * len(inspect.signature(maker).parameters)))


def test_an_outcomes_message_id_names_its_invocation_and_cannot_be_had_from_that_alone():
    one, other = subjects.outcome_id("i1", "e1"), subjects.outcome_id("i1", "e2")
    assert one != other
    assert subjects.outcome_of(one) == subjects.outcome_of(other) == "i1"


@pytest.mark.parametrize("maker", [subjects.cancel, subjects.started, subjects.done])
def test_only_queued_events_are_work(maker):
    made = maker(*["x"] * len(inspect.signature(maker).parameters))
    assert not matches(subjects.ALL_QUEUED, made)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        "a b",
        "a.b",
        "a\n",
        "a\r\nb",
        "\n",
        "*",
        ">",
        "a*",
        "A",
        "é",
        "a__b",
        "a_",
        "x" * 64,
    ],
)
def test_what_could_break_out_of_a_subject_is_no_name(bad):
    assert not subjects.is_name(bad)


@generated(st.text(max_size=70))
def test_a_name_is_always_one_token_without_wildcards_or_white_space(text):
    if subjects.is_name(text):
        assert re.fullmatch(r"[a-z0-9_-]{1,63}", text)


@generated(NAMES, NAMES, NAMES, NAMES, NAMES, NAMES)
def test_consumers_of_different_jobs_have_different_names(a, b, c, d, e, f):
    same = subjects.job_consumer(a, b, c) == subjects.job_consumer(d, e, f)
    assert same == ((a, b, c) == (d, e, f))


@generated(NAMES, NAMES)
def test_a_workers_consumer_is_never_a_jobs(worker, job):
    assert subjects.worker_consumer(worker) != subjects.job_consumer("default", job)


@generated(NAMES, st.integers(1, 1024))
def test_a_job_is_always_in_the_same_shard(job, shards):
    assert subjects.shard_of(job, shards) == zlib.crc32(job.encode()) % shards
    assert 0 <= subjects.shard_of(job, shards) < shards
