"""What SQL takes for an event, Python takes too, and the other way round: whatever the bytes."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetfleet.events import InvalidEvent, decode
from jetfleet.streams import INVOCATIONS
from projections_made import Both, Log, read_differently, two_readers


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with two_readers(tmp_path_factory.mktemp("both")) as opened:
        yield opened


def events_with(payloads: list[bytes]) -> list[tuple[str, bytes]]:
    """For each a queued and a completed event with these bytes in place of input and output."""
    log = Log()
    batch = log.batches[INVOCATIONS]
    made = []
    for payload in payloads:
        invocation = log.clock.new_id()
        log.queued(invocation, input="here")
        log.done(invocation, output="here")
        made += [
            (subject, body.replace(b'"here"', payload))
            for subject, body in zip(batch.subjects[-2:], batch.bodies[-2:], strict=True)
        ]
        log.queued(log.clock.new_id())
        body = batch.bodies[-1].replace(b'"input":{"n":1}', b'"input":{"n":1},"data":' + payload)
        made.append((batch.subjects[-1], body))
    return made


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def deep_objects(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


HOSTILE = [
    *(make(levels) for make in (deep, deep_objects) for levels in (127, 128, 196, 197, 198, 199)),
    *(make(levels) for make in (deep, deep_objects) for levels in (200, 255, 1_000, 20_000)),
    *(sign + b"9" * digits for sign in (b"", b"-") for digits in (999, 4_299, 4_300, 4_301, 9_999)),
    b"[" + b"1" * 4_301 + b"]", b'{"a":[' + b"1" * 5_000 + b"]}", b"1" * 5_000 + b".5",
    b"0." + b"1" * 5_000, b"1e400", b"-1e400", b"1e-400", b"1E5", b"1e99999999999", b"-0", b"-0.0",
    b"NaN", b"nan", b"NAN", b"[NaN]", b"[nan]", b"Infinity", b"-Infinity", b"infinity", b"inf",
    b"-inf", b"Inf", b"-nan", b"[-inf,1]", b'{"a":inf}', b'{"a":Infinity}', b"[1,]", b'{"a":1,}',
    b"[1, ]", b"[,1]", b'["\\ud800"]', b'"\\udc00"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\x00"',
    b'"\x01"', b'"\n"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf4\x90\x80\x80"', b"\xff",
    b'{"a":1,"a":2}', b'{"a":1,"\\u0061":2}', b'"\\x"', b'"\\/"', b"01", b"1.", b".5", b"+1",
    b"0x1", b"tru", b"TRUE", b"None", b"1//", b"/*x*/1", b"'a'", b" 1", b"1 ", b"[1 ,2]",
    b"[1] 2", b"",
    b"\xef\xbb\xbf1", b'"\xef\xbb\xbf"', b'"\xe2\x80\xa8"', b"null", b"[null]", b'""', b"{}", b"[]",
    b'"a"},"b":{"c":"d"', b"1.0", b"1.10", b"100000000000000000000", b"1e2",
    b"18446744073709551616",
    b"0.1e-6", b"1.7976931348623159e308", b'"\\u00e9"', b'"\xc3\xa9"', b'"\x7f"', b'"\\b\\f"',
]  # fmt: skip


def test_no_payload_known_to_be_hostile_divides_them(both: Both) -> None:
    for payload in HOSTILE:
        assert read_differently(both, events_with([payload])) == {}, payload[:60]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_no_mixture_of_such_payloads_divides_them(both: Both, seed: int) -> None:
    chance = random.Random(seed)
    payloads = []
    for _ in range(12):
        first, second = chance.sample(HOSTILE, 2)
        cut = chance.randrange(len(first) + 1)
        wraps = [
            b"[%s,%s]" % (first, second),
            b'{"a":%s,"b":[%s]}' % (first, second),
            first[:cut] + second + first[cut:],
            first[:cut] + chance.randbytes(2) + first[cut:],
            b'"%s"' % first,
        ]
        payloads.append(chance.choice(wraps))
    assert read_differently(both, events_with(payloads)) == {}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(payloads=st.lists(st.binary(max_size=40), max_size=8))
def test_no_bytes_at_all_divide_them(both: Both, payloads: list[bytes]) -> None:
    assert read_differently(both, events_with(payloads)) == {}


def test_what_has_a_row_can_be_decoded(both: Both) -> None:
    bodies = events_with(HOSTILE)
    assert read_differently(both, bodies) == {}
    ((dead,),) = both[0].connection.execute("SELECT count(*) FROM dead").fetchall()
    refused = 0
    for _, body in bodies:
        try:
            decode(body)
        except InvalidEvent:
            refused += 1
    assert dead >= refused > 0
