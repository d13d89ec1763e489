"""The tables of the warehouse: which stream each comes from, and how to compare two warehouses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb

from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY

# Every table, with the stream that alone makes its rows; None: a part of it for each stream.
TABLES: Mapping[str, str | None] = {
    "events": None,
    "dead": None,
    "checkpoint": None,
    "models": REGISTRY,
    "jobs": REGISTRY,
    "job_models": REGISTRY,
    "workers": FLEET,
    "admissions": FLEET,
    "replicas": FLEET,
    "decisions": FLEET,
    "trials": FLEET,
    "invocations": INVOCATIONS,
}

# What is computed when asked.
VIEWS = ("superseded", "job_summary", "invocations_with_model", "live_replicas", "speeds")
# What SQL of users may read. All of the file is public: it holds what the log says, and no secrets.
PUBLIC = (*TABLES, *VIEWS)


def of_stream(stream: str) -> list[str]:
    """The tables made from this stream alone."""
    return [table for table, source in TABLES.items() if source == stream]


def rows(connection: duckdb.DuckDBPyConnection, table: str) -> list[tuple[Any, ...]]:
    """All rows of a table, in an order that depends on nothing but the rows."""
    return connection.execute(f"SELECT * FROM {table} ORDER BY ALL").fetchall()  # noqa: S608 - our names


def differences(
    left: duckdb.DuckDBPyConnection, right: duckdb.DuckDBPyConnection
) -> dict[str, tuple[int, int]]:
    """Tables whose rows differ, with the number of rows only here and only there; empty: equal."""
    found = {}
    for table in TABLES:
        here, there = rows(left, table), rows(right, table)
        if here != there:
            found[table] = (
                sum(row not in there for row in here),
                sum(row not in here for row in there),
            )
    return found
