"""Hypothesis strategies for whole events, read off the fields that the events declare."""

from __future__ import annotations

import enum
import re
import types
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from given import job, model
from jetfleet.events import EVENT_TYPES, Event
from jetfleet.specs import JobSpec, ModelSpec

TEXT = st.text(max_size=20)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
MODELS = st.builds(
    model,
    st.sampled_from(["echo", "vision-2", "a_b"]),
    version=st.sampled_from(["1", "2026.1-rc1"]),
    memory_mib=st.integers(1, 10**6),
    gpu_memory_mib=st.integers(0, 10**6),
    gpu_capability=st.none() | st.sampled_from([7.5, 8.0]),
    env=st.dictionaries(TEXT, TEXT, max_size=2),
    example_input=JSON,
)
JOBS = st.builds(
    job,
    st.sampled_from(["echo", "job-2"]),
    of=MODELS,
    replicas=st.integers(0, 10_000),
    concurrency=st.integers(1, 1024),
    ack_wait_s=st.floats(1, 3600),
    workers=st.lists(st.sampled_from(["w1", "w2"])).map(tuple),
)


def events(*kinds: type[Event]) -> st.SearchStrategy[Any]:
    """Any event of these kinds; of all kinds when none is named."""
    return st.one_of(*(_built(kind) for kind in kinds or EVENT_TYPES.values()))


@cache
def _built(cls: type[BaseModel]) -> st.SearchStrategy[Any]:
    if cls is ModelSpec:
        return MODELS
    if cls is JobSpec:
        return JOBS
    required, optional = {}, {}
    for name, field in cls.model_fields.items():
        target = required if field.is_required() else optional
        target[name] = _values(field.annotation, _constraints(field))
    return st.fixed_dictionaries(required, optional=optional).map(cls.model_validate)


def _constraints(field: FieldInfo) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in field.metadata:
        for name in ("ge", "gt", "le", "lt", "pattern", "max_length", "min_length"):
            value = getattr(each, name, None)
            if value is not None and value is not PydanticUndefined:
                found[name] = value
    return found


def _values(kind: Any, limits: dict[str, Any]) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _values(arguments[0], _constraints(FieldInfo.from_annotation(kind)))
    if origin in (Union, types.UnionType):
        return st.one_of(*(_values(each, limits) for each in arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(_values(arguments[0], {}), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(_values(arguments[0], {}), _values(arguments[1], {}), max_size=3)
    return _plain(kind, limits)


def _plain(kind: Any, limits: dict[str, Any]) -> st.SearchStrategy[Any]:
    low = limits.get("ge", limits.get("gt"))
    if kind is Any:
        return JSON
    if kind is type(None):
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(low, limits.get("le"))
    if kind is float:
        return st.floats(
            low, limits.get("le"), exclude_min="gt" in limits, allow_nan=False, allow_infinity=False
        )
    if kind is datetime:
        return TIMES
    if kind is str:
        return _text(limits)
    if issubclass(kind, enum.Enum):
        return st.sampled_from(list(kind))
    assert issubclass(kind, BaseModel), f"no strategy for {kind}"
    return _built(kind)


def _text(limits: dict[str, Any]) -> st.SearchStrategy[str]:
    if "pattern" not in limits:
        return st.text(min_size=limits.get("min_length", 0), max_size=20)
    pattern = limits["pattern"]
    if re.fullmatch(pattern, TRACE):
        return st.just(TRACE)
    return st.text("ab09-_", min_size=1, max_size=8).filter(re.compile(pattern).fullmatch)


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
