"""One event as a row of the temporary table ``staged``: what Python does where SQL does not.

Both ways must write the same rows, or a warehouse built in large batches would differ from one that
followed live. So the ``data`` of an invocation event is the text of the message wherever that is in
plain form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic_core import from_json

from jetfleet.agreement import disagreement, verb_of
from jetfleet.events import AnyEvent, InvalidEvent, decode
from jetfleet.streams import INVOCATIONS

Row = tuple[Any, ...]
_COLUMNS_OF_INVOCATIONS = 15
_LARGEST = 2**63 - 1
_EPOCH = datetime(1970, 1, 1)
_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DATA = b',"data":'
# The attributes in the order of core's `encode` or of its `compose`, none of them with an escape:
# what `stage_plain` accepts.
_TEXT = rb'"[^"\\]*"'
_PLAIN_HEAD = re.compile(
    rb'\{"specversion":"1\.0",'
    rb'(?:"id":%(t)s,"source":%(t)s,"type":%(t)s,"time":%(t)s,"dataversion":1'
    rb'|"type":%(t)s,"dataversion":1,"id":%(t)s,"source":%(t)s,"time":%(t)s),"tenant":%(t)s'
    rb'(?:,"correlationid":%(t)s)?(?:,"causationid":%(t)s)?(?:,"traceparent":%(t)s)?'
    % {b"t": _TEXT}
)


class SetAside(ValueError):
    """Why a message is not obeyed."""


def stage(stream: str, seq: int, time_ns: int, subject: str, body: bytes) -> Row:
    """The row of a message.

    Raises:
        SetAside: it is no event, or contradicts its subject.
    """
    try:
        event = decode(body)
    except InvalidEvent as error:
        raise SetAside(str(error)) from error
    if why := disagreement(stream, subject, event):
        raise SetAside(f"subject and body disagree: {why}")
    # Asking a pydantic model for a field that it lacks costs 4 us; its dictionary costs nothing.
    data = event.data.__dict__
    try:
        if stream == INVOCATIONS:
            text, rest = _data_text(event, body), _invocation(event.type, data)
        else:
            text, rest = _written(event), _other(data)
        return (seq, utc(time_ns), subject, *_envelope(event, data), text, *rest)
    except OverflowError as error:
        raise SetAside(f"a time is out of range: {error}") from error


def utc(time_ns: int) -> datetime:
    """A time of the broker, as the tables hold it: UTC, microseconds, cut off."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


def _envelope(event: AnyEvent, data: Mapping[str, Any]) -> Row:
    job = data.get("job")
    return (
        event.id,
        event.type,
        _naive(event.time),
        event.tenant,
        event.source,
        event.correlationid,
        event.causationid,
        event.traceparent,
        job if job is None or isinstance(job, str) else job.name,
        data.get("worker"),
    )


def _invocation(event_type: str, data: Mapping[str, Any]) -> Row:
    if not _UUID.fullmatch(data["invocation"]):
        raise SetAside(f"{data['invocation']!r} is not a UUID in its usual form")
    attempt, chunks, expires_at = data.get("attempt"), data.get("chunks"), data.get("expires_at")
    if max(attempt or 0, chunks or 0) > _LARGEST:
        raise SetAside("a number is out of range")
    error = data.get("error")
    return (
        verb_of(event_type),
        data["invocation"],
        data.get("replica"),
        attempt,
        data.get("run_s"),
        chunks,
        data.get("origin"),
        data.get("stream"),
        data.get("timeout_s"),
        None if expires_at is None else _naive(expires_at),
        data.get("priority_class"),
        data.get("idempotency_key"),
        None if error is None else error.code,
        None if error is None else error.message,
        True,
    )


def _other(data: Mapping[str, Any]) -> Row:
    return (None, None, data.get("replica"), *(None,) * (_COLUMNS_OF_INVOCATIONS - 3))


def _data_text(event: AnyEvent, body: bytes) -> str:
    head, found, tail = body.partition(_DATA)
    if found and _PLAIN_HEAD.fullmatch(head):
        text = tail[:-1]
        try:
            from_json(text)
        except ValueError:
            pass  # more follows than the data alone
        else:
            return text.decode()
    return _written(event)


def _written(event: AnyEvent) -> str:
    """``data`` as core's encoder writes it, with what the message leaves to defaults: the folds of
    REGISTRY and FLEET read their fields from this text."""
    data: Any = event.data
    return bytes(data.__pydantic_serializer__.to_json(data, exclude_none=True)).decode()


def _naive(time: datetime) -> datetime:
    """In UTC, as the tables hold times; one without an offset is taken as UTC."""
    return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
