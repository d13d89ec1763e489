"""Events: what goes into the log comes out of it, and nothing else is taken for an event."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from hypothesis import given as generated
from hypothesis import settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import given
from given import at
from given_trials import concluded, tried
from jetfleet.events import (
    EVENT_TYPES,
    OUTCOMES,
    AnyEvent,
    Event,
    InvalidEvent,
    InvocationCompleted,
    InvocationQueued,
    InvocationStarted,
    compose,
    decode,
    encode,
)
from made_events import JSON, events

HOSTILE = [
    "", " ", "a b", "a\tb", "a\r\nb", "a\nPUB x 1", "a\r\n", "a\n", ".", "a.b", "a.", "*", ">",
    "a*",
    "a>", "$JS", "a\0", "é", "a/b", "a:b", "a" * 65,
]  # fmt: skip
# Fields of events that end up in a subject, a message id, or a header.
GUARDED = {
    "tenant", "job", "worker", "invocation", "origin", "replica", "session", "priority_class",
    "blob", "name", "traceparent",
}  # fmt: skip
FREE = {"replica"}  # on outcomes it only informs, and is read by nobody as an address


# -- round trip


@settings(max_examples=200)
@generated(events())
def test_what_is_encoded_is_decoded_to_the_same_event(event):
    assert decode(encode(event)) == event


@settings(max_examples=30)
@generated(events())
def test_what_is_encoded_is_compact_json_in_one_line(event):
    body = encode(event)
    assert json.loads(body)["type"] == event.type
    assert b"\n" not in body


@generated(JSON)
def test_whatever_json_a_caller_sends_arrives_as_it_was(value):
    event = given.queued("i1", input=value)
    again = decode(encode(event))
    assert json.dumps(again.data.input) == json.dumps(value)


def test_nulls_inside_user_input_and_output_survive():
    nested = {"a": None, "b": [None, {"c": None}]}
    assert decode(encode(given.queued("i1", input=nested))).data.input == nested
    assert decode(encode(given.completed("i1", nested))).data.output == nested


def test_numbers_larger_than_64_bits_survive():
    assert decode(encode(given.queued("i1", input=2**70))).data.input == 2**70


# -- CloudEvents 1.0


@settings(max_examples=50)
@generated(events())
def test_every_event_is_a_cloudevent(event):
    document = json.loads(encode(event))
    assert document["specversion"] == "1.0"
    for required in ("id", "source", "type"):
        assert isinstance(document[required], str)
        assert document[required] or required == "id"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", document["time"])
    for name, value in document.items():
        # https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#attribute-names
        assert re.fullmatch(r"[a-z0-9]{1,20}", name)
        assert name == "data" or isinstance(value, str | int | bool)


def test_types_are_literal_strings_and_not_python_paths():
    for name, kind in EVENT_TYPES.items():
        assert re.fullmatch(
            r"jetfleet\.(model|job|invocation|worker|replica|capacity)\.[a-z_]+", name
        )
        assert kind.__name__ not in name


def test_every_event_class_is_known_by_its_type_and_documented():
    assert set(EVENT_TYPES.values()) == set(get_args(AnyEvent))
    for kind in EVENT_TYPES.values():
        assert kind.__doc__
        assert issubclass(kind, Event)
    assert set(OUTCOMES) <= set(EVENT_TYPES.values())


# -- frozen


@pytest.mark.parametrize("kind", EVENT_TYPES.values(), ids=EVENT_TYPES.keys())
def test_an_event_cannot_be_changed(kind):
    event = _example(kind)
    with pytest.raises(ValidationError, match="frozen"):
        event.tenant = "other"
    with pytest.raises(ValidationError, match="frozen"):
        setattr(event.data, next(iter(type(event.data).model_fields)), "other")


# -- refused


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b"null", b"1", b'"text"', b"\xff\xfe", b"{", b"not json",
        b'{"type":null}', b'{"type":["jetfleet.job.enabled"]}', b'{"type":"jetfleet.job.enabled"}',
        b'{"type":"jetfleet.nothing.happened","data":{}}',
        b'{"type":"jetfleet.invocation.queued","dataversion":0,"data":{}}',
        b'{"type":"jetfleet.invocation.queued","dataversion":0,"data":[]}',
        b'{"type":"jetfleet.invocation.queued","dataversion":[0]}',
    ],
)  # fmt: skip
def test_what_is_not_an_event_is_refused(body):
    with pytest.raises(InvalidEvent, match="not a valid event"):
        decode(body)


@generated(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(body):
    with pytest.raises(InvalidEvent):
        decode(body)


@generated(JSON)
def test_no_json_document_does_more_than_be_refused(document):
    with pytest.raises(InvalidEvent):
        decode(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        {"type": "jetfleet.job.vanished"},
        {"specversion": "0.3"},
        {"surprise": 1},
        {"source": ""},
        {"time": "yesterday"},
        {"data": {}},
        {"data": {"job": "echo", "surprise": 1}},
        {"data": {"job": 7}},
    ],
)
def test_an_event_with_a_wrong_envelope_or_body_is_refused(change):
    document = {**json.loads(encode(given.enabled("echo"))), **change}
    with pytest.raises(InvalidEvent):
        decode(json.dumps(document))


def test_the_refusal_names_the_field():
    document = json.loads(encode(given.enabled("echo")))
    document["data"] = {"job": "a b"}
    with pytest.raises(InvalidEvent, match=r"data\.job"):
        decode(json.dumps(document))


# -- nothing breaks out of a subject or a header


def _guarded_paths(kind: type[BaseModel], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, field in kind.model_fields.items():
        here = (*path, name)
        if name in GUARDED and not (name in FREE and kind.__qualname__.endswith("d.Data")):
            found.append(here)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _guarded_paths(field.annotation, here)
    return found


_PATHS = [
    (kind, path)
    for kind in EVENT_TYPES.values()
    for path in _guarded_paths(kind)
    # the machine's GPUs have product names, and a decision's text is text
    if "machine" not in path and "why" not in path
]


@pytest.mark.parametrize(
    ("kind", "path"), _PATHS, ids=[f"{k.__name__}.{'.'.join(p)}" for k, p in _PATHS]
)
def test_a_name_that_would_break_out_of_a_subject_or_header_is_refused(kind, path):
    event = _example(kind)
    for hostile in HOSTILE:
        document = json.loads(encode(event))
        target = document
        for step in path[:-1]:
            target = target.setdefault(step, {})
        target[path[-1]] = hostile
        with pytest.raises(InvalidEvent):
            decode(json.dumps(document))


def _example(kind: type[Event]) -> Event:
    """One valid event of a kind."""
    spec = given.job()
    made: dict[str, Any] = {
        "jetfleet.model.registered": lambda: given.registered(given.model()),
        "jetfleet.job.created": lambda: given.created(spec),
        "jetfleet.job.updated": lambda: given.updated(spec),
        "jetfleet.job.enabled": lambda: given.enabled("echo"),
        "jetfleet.job.disabled": lambda: given.disabled("echo"),
        "jetfleet.job.deleted": lambda: given.deleted("echo"),
        "jetfleet.worker.joined": lambda: given.joined("w1"),
        "jetfleet.worker.draining": lambda: given.draining("w1"),
        "jetfleet.worker.left": lambda: given.left("w1"),
        "jetfleet.worker.lost": lambda: given.lost("w1"),
        "jetfleet.worker.admitted": lambda: given.admitted("w1", "t1"),
        "jetfleet.replica.preparing": lambda: given.preparing("r1", "w1"),
        "jetfleet.replica.ready": lambda: given.ready("r1", "w1"),
        "jetfleet.replica.failed": lambda: given.failed("r1", "w1"),
        "jetfleet.replica.stopped": lambda: given.stopped("r1", "w1"),
        "jetfleet.replica.assigned": lambda: given.assigned("r1", "w1", spec),
        "jetfleet.job.scaled": lambda: given.scaled("echo", 2),
        "jetfleet.replica.tried": lambda: tried("r1", "w1"),
        "jetfleet.job.tried": lambda: concluded("echo", "echo:1"),
        "jetfleet.job.balanced": lambda: given.balanced("echo", {"w1": None, "w2": 3}),
        "jetfleet.replica.released": lambda: given.released("r1", "w1"),
        "jetfleet.invocation.queued": lambda: given.queued("i1"),
        "jetfleet.invocation.started": lambda: given.started("i1", "w1"),
        "jetfleet.invocation.completed": lambda: given.completed("i1", 1),
        "jetfleet.invocation.cancelled": lambda: given.cancelled("i1"),
    }
    name = kind.model_fields["type"].default
    return made[name]() if name in made else kind(**given.envelope(), data=_REST[name])


_ASKED = {"provider": "p", "request": "q1"}
_NEED = {"tenant": "default", "job": "echo", "replicas": 1, "resources": {}}
_REST: dict[str, dict[str, Any]] = {
    "jetfleet.invocation.failed": {
        "invocation": "i1", "job": "echo", "error": {"code": "timeout", "message": "too long"},
    },
    "jetfleet.invocation.expired": {"invocation": "i1", "job": "echo", "expires_at": at(1)},
    "jetfleet.invocation.cancel_requested": {
        "invocation": "i1", "job": "echo", "queued_seq": 1, "origin": "o1",
    },
    "jetfleet.worker.heartbeat": {"worker": "w1", "session": "s1"},
    "jetfleet.worker.token_revoked": {"token": "t1"},
    "jetfleet.capacity.offered": {
        "provider": "p", "session": "s1", "kind": "process", "shape": {"memory_mib": 1}, "most": 1,
        "boot_s": 1,
    },
    "jetfleet.capacity.requested": {
        **_ASKED, "count": 1, "workers": ("w1",), "shape": {"memory_mib": 1}, "needs": (_NEED,),
        "expires_at": at(1), "why": given.WHY,
    },
    "jetfleet.capacity.withheld": {"needs": (_NEED,), "why": given.WHY},
    "jetfleet.capacity.released": {**_ASKED, "worker": "w1", "session": "s1", "why": given.WHY},
    "jetfleet.capacity.accepted": {**_ASKED, "workers": ("w1",)},
    "jetfleet.capacity.started": {**_ASKED, "worker": "w1"},
    "jetfleet.capacity.refused": {**_ASKED, "workers": ("w1",), "reason": "no"},
    "jetfleet.capacity.stopped": {**_ASKED, "worker": "w1", "reason": "over"},
}  # fmt: skip


# -- old versions


def test_a_queued_event_of_version_0_is_read_through_the_upcaster():
    old = {
        "specversion": "1.0", "id": "e1", "source": "gateway/1", "time": "2025-06-01T12:00:00Z",
        "type": "jetfleet.invocation.queued", "dataversion": 0, "tenant": "default",
        "data": {
            "invocation": "i1", "job": "echo", "input": {"a": None}, "timeout_s": 5,
            "deadline": "2025-06-01T13:00:00Z",
        },
    }  # fmt: skip
    event = decode(json.dumps(old))
    assert isinstance(event, InvocationQueued)
    assert event.dataversion == 1
    assert event.data.expires_at.isoformat() == "2025-06-01T13:00:00+00:00"
    assert event.data.origin == "-"
    assert event.data.priority_class == "normal"
    assert event.data.input == {"a": None}
    assert decode(encode(event)) == event


def test_an_old_event_that_does_not_become_a_valid_one_is_refused():
    old = {"type": "jetfleet.invocation.queued", "dataversion": 0, "data": {"deadline": "x"}}
    with pytest.raises(InvalidEvent):
        decode(json.dumps(old))


# -- composing


@generated(events(InvocationQueued, InvocationStarted, InvocationCompleted))
def test_a_composed_event_equals_one_built_and_encoded(event):
    whole = {name: getattr(event, name) for name in type(event).model_fields}
    fixed = ("specversion", "type", "dataversion", "data")
    envelope = {name: value for name, value in whole.items() if name not in fixed}
    data = {
        name: getattr(event.data, name)
        for name in type(event.data).model_fields
        if getattr(event.data, name) is not None
    }
    event = type(event)(**envelope, data=event.data)  # of the present version
    composed = compose(type(event), envelope, data)
    assert decode(composed) == event
    built = json.loads(encode(event))
    written = json.loads(composed)
    assert written.pop("data").keys() == built.pop("data").keys()
    assert written == built
