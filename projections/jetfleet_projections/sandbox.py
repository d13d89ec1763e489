"""The process that runs SQL of users: ``python -m jetfleet_projections.sandbox``.

It reads a copy of the warehouse, can open nothing else, may use so much memory and write no file,
and is killed by its owner when a query takes too long: DuckDB's own limits do not stop everything.

Protocol: requests are lines of JSON on stdin, ``{"sql", "copy", "position", "most"}``. Answers on
stdout are pages (see ``pages``), each behind a byte, 1 when more follow, and its length in four.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, BinaryIO

import duckdb

from jetfleet_projections import tables
from jetfleet_projections.pages import RowTooLarge, failure, pages
from jetfleet_projections.sqlguard import Refused, check

ADDRESS_SPACE = 2 * 1024**3  # bytes, with the libraries
HEADER = struct.Struct(">?I")
FETCH = 1_000  # rows at a time
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
    "memory_limit": "768MB",
    "max_temp_directory_size": "0B",
    "threads": 1,
    "max_execution_time": 60_000,  # ms; the owner kills long before
    "lock_configuration": True,
}


def main() -> None:
    """Serve until stdin ends."""
    confine()
    requests: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    answers = sys.stdout.buffer
    runner = Runner()
    while (request := requests.get()) is not None:
        for page, more in runner.answer(request):
            _write(answers, page, more)


def confine() -> None:
    """Give up what a query has no use for."""
    os.environ.clear()
    os.environ["TZ"] = "UTC"
    os.chdir("/")
    for what, limit in (
        (resource.RLIMIT_AS, ADDRESS_SPACE),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (limit, limit))


def _read(requests: SimpleQueue[dict[str, Any] | None]) -> None:
    """Hand requests over; when the owner is gone, end at once, in the middle of a query too."""
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)


def _write(answers: BinaryIO, page: bytes, more: bool) -> None:
    answers.write(HEADER.pack(more, len(page)) + page)
    answers.flush()


class Runner:
    """Answers one query after the other."""

    def __init__(self) -> None:
        self.parser = duckdb.connect(config=_CONFIG)
        self.copy = ""
        self.connection: duckdb.DuckDBPyConnection | None = None

    def answer(self, request: dict[str, Any]) -> Iterator[tuple[bytes, bool]]:
        """Pages, each with whether more follow; the last may be a failure."""
        last: bytes | None = None
        try:
            for page in self._pages(request):
                if last is not None:
                    yield last, True
                last = page
        except (Refused, RowTooLarge, duckdb.Error) as error:
            last = failure("query_failed", _explain(error))
        except (MemoryError, RecursionError):
            last = failure("query_failed", "the query needs more memory than queries are given")
        except Exception as error:  # the process serves the next query too
            last = failure("query_failed", f"the answer cannot be written: {_explain(error)}")
        assert last is not None
        yield last, False

    def _pages(self, request: dict[str, Any]) -> Iterator[bytes]:
        sql = request["sql"]
        check(self.parser, sql, tables.PUBLIC)
        connection = self._open(request["copy"])
        result = connection.execute(sql)
        described = [(column[0], str(column[1])) for column in result.description]
        zoned = {name for name, kind in described if kind == "TIMESTAMP WITH TIME ZONE"}
        if zoned:  # DuckDB hands these over with pytz; everything here is UTC without saying so
            result = connection.execute(_without_zones(sql, zoned))
            described = [(column[0], str(column[1])) for column in result.description]
        yield from pages(
            [name for name, _ in described],
            [kind for _, kind in described],
            _rows(result),
            most=request["most"],
            position=request["position"],
        )

    def _open(self, copy: str) -> duckdb.DuckDBPyConnection:
        if self.connection is None or copy != self.copy:
            if self.connection is not None:
                self.connection.close()
            self.connection = duckdb.connect(copy, read_only=True, config=_CONFIG)
            self.copy = copy
        return self.connection


def _rows(result: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while some := result.fetchmany(FETCH):
        yield from some


def _without_zones(sql: str, columns: set[str]) -> str:
    replaced = ", ".join(
        f"make_timestamp(epoch_us({quoted})) AS {quoted}"
        for quoted in ('"' + name.replace('"', '""') + '"' for name in sorted(columns))
    )
    text = sql.strip().removesuffix(";")
    return f"SELECT * REPLACE ({replaced}) FROM (\n{text}\n)"  # noqa: S608 - it was checked


def _explain(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"the query needs more memory than queries are given: {text}"
    return text


if __name__ == "__main__":
    main()
