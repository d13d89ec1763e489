"""Rows as the documents of the query protocol, each small enough for one message."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from jetfleet.events import ENVELOPE_LEVELS
from jetfleet.limits import excess

PAGE_BYTES = 384 * 1024  # a page is closed when it has this much; the broker takes 1 MB
ROW_BYTES = 512 * 1024  # the largest row
TOTAL_BYTES = 32 * 1024**2  # the largest answer


class RowTooLarge(ValueError):
    """A row does not fit into a message."""


def pages(
    columns: Sequence[str],
    types: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    most: int,
    position: dict[str, int],
) -> Iterator[bytes]:
    """The answer to a query: at least one page; the last one says ``"more": false``.

    Args:
        types: DuckDB's names of the columns' types.
        most: rows; of what is beyond, nothing is read, and the last page says ``truncated``.

    Raises:
        RowTooLarge: see there.
    """
    head = f'{{"columns":{_dump(list(columns))},"position":{_dump(position)},"rows":['
    is_json = [name == "JSON" for name in types]
    parts: list[str] = []
    size = total = 0
    truncated = False
    for count, row in enumerate(rows):
        if truncated := count == most:
            break
        text = _row(row, is_json)
        if truncated := total + len(text) > TOTAL_BYTES:
            break
        if parts and size + len(text) > PAGE_BYTES:
            yield f'{head}{",".join(parts)}],"more":true,"truncated":false}}'.encode()
            head, parts, size = '{"rows":[', [], 0
        parts.append(text)
        size += len(text)
        total += len(text)
    end = f'],"more":false,"truncated":{"true" if truncated else "false"}}}'
    yield f"{head}{','.join(parts)}{end}".encode()


def failure(code: str, message: str) -> bytes:
    """The answer when there is none. ``code``: query_failed or unavailable."""
    return _dump({"error": {"code": code, "message": message}}).encode()


def _row(row: Sequence[Any], is_json: Sequence[bool]) -> str:
    values = [
        _document(value) if as_json and value is not None else plain(value)
        for value, as_json in zip(row, is_json, strict=True)
    ]
    text = _dump(values)
    if len(text) > ROW_BYTES:
        raise RowTooLarge(
            f"a row is {len(text):,} bytes of JSON; at most {ROW_BYTES:,} can be answered: "
            "ask for fewer columns, or a part of the large one"
        )
    return text


def _document(text: str) -> Any:
    """A value of a JSON column; its text, where DuckDB reads JSON that Python does not."""
    try:
        return text if excess(text.encode(), around=ENVELOPE_LEVELS) else json.loads(text)
    except ValueError:
        return text


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def plain(value: Any) -> Any:
    """A value of DuckDB as JSON has it: times in ISO 8601 (UTC), UUIDs and intervals as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime):
        return value.isoformat() + "Z"
    for kind, write in _WRITERS.items():
        if isinstance(value, kind):
            return write(value)
    return str(value)


_WRITERS: dict[Any, Any] = {
    UUID: str,
    Decimal: float,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: str,
    bytes: lambda value: value.decode("utf-8", "backslashreplace"),
    dict: lambda value: {str(key): plain(each) for key, each in value.items()},
    list | tuple: lambda value: [plain(each) for each in value],
}
