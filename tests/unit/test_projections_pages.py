"""Rows as documents of the query protocol, and the named queries' parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb
import pytest

from jetfleet_projections import statements
from jetfleet_projections.pages import PAGE_BYTES, ROW_BYTES, RowTooLarge, pages
from jetfleet_projections.service import Rejected, bind
from jetfleet_projections.warehouse import Warehouse

QUERIES = statements.load("queries.sql")


def paged(
    rows: list[tuple[Any, ...]], kind: str = "VARCHAR", most: int = 100
) -> list[dict[str, Any]]:
    columns = [f"c{n}" for n in range(len(rows[0]) if rows else 1)]
    found = pages(columns, [kind] * len(columns), rows, most=most, position={"FLEET": 3})
    return [json.loads(page) for page in found]


def test_values_become_json() -> None:
    row = (
        None, True, 2**70, 1.5, float("nan"), float("-inf"), "é", datetime(2026, 1, 2, 3, 4, 5, 6),
        date(2026, 1, 2), time(3, 4), timedelta(seconds=90), Decimal("1.50"),
        UUID("01890000-0000-7000-8000-000000000000"), b"a\xff", [1, {"x": Decimal(2)}],
        {1: date(2026, 1, 2)},
    )  # fmt: skip
    [page] = paged([row])
    assert page["rows"] == [
        [
            None, True, 2**70, 1.5, "nan", "-inf", "é", "2026-01-02T03:04:05.000006Z",
            "2026-01-02", "03:04:00", "0:01:30", 1.5, "01890000-0000-7000-8000-000000000000",
            "a\\xff",
            [1, {"x": 2.0}], {"1": "2026-01-02"},
        ]
    ]  # fmt: skip


def test_json_columns_are_values_not_text() -> None:
    [page] = paged([('{"a":[1,null]}',), (None,)], "JSON")
    assert page["rows"] == [[{"a": [1, None]}], [None]]


def test_no_rows_are_one_page_with_columns_and_position() -> None:
    [page] = paged([])
    assert page == {
        "columns": ["c0"], "rows": [], "more": False, "truncated": False, "position": {"FLEET": 3},
    }  # fmt: skip


def test_many_rows_are_cut_into_pages_that_fit_into_messages() -> None:
    rows = [("x" * 1000, number) for number in range(1000)]
    documents = list(pages(["a", "b"], ["VARCHAR", "BIGINT"], rows, most=5000, position={}))
    assert all(len(document) < PAGE_BYTES + 2000 for document in documents)
    found = [json.loads(document) for document in documents]
    assert [row[1] for page in found for row in page["rows"]] == list(range(1000))
    assert [page["more"] for page in found] == [True] * (len(found) - 1) + [False]
    assert "columns" not in found[1]


def test_rows_beyond_the_cap_are_not_read_and_the_answer_says_so() -> None:
    read = []

    def rows() -> Iterator[tuple[int]]:
        for number in range(10**9):
            read.append(number)
            yield (number,)

    [page] = [json.loads(p) for p in pages(["a"], ["BIGINT"], rows(), most=10, position={})]
    assert (len(page["rows"]), page["truncated"], len(read)) == (10, True, 11)


def test_exactly_the_cap_is_not_truncated() -> None:
    [page] = paged([(n,) for n in range(10)], "BIGINT", most=10)
    assert (len(page["rows"]), page["truncated"]) == (10, False)


def test_row_that_fits_into_no_message_is_an_error() -> None:
    with pytest.raises(RowTooLarge, match="fewer columns"):
        paged([("x" * ROW_BYTES,)])
    [page] = paged([("x",), ("x" * ROW_BYTES,)], most=1)  # beyond the cap it does not matter
    assert (len(page["rows"]), page["truncated"]) == (1, True)


# -- named queries


@pytest.mark.parametrize("name", QUERIES)
def test_every_named_query_runs_and_is_described(name: str, tmp_path: Any) -> None:
    query = QUERIES[name]
    assert query.description
    samples = {"UUID": "01890000-0000-7000-8000-000000000000", "VARCHAR": "x", "BIGINT": 1}
    warehouse = Warehouse.open(tmp_path / "warehouse.duckdb")
    for given in (
        {p.name: samples[p.type] for p in query.parameters},
        {p.name: samples[p.type] for p in query.parameters if p.required},
    ):
        warehouse.cursor().execute(query.sql, bind(query, given)).fetchall()
    warehouse.close()


def test_parameters_are_checked() -> None:
    for params, why in (
        ({"nope": 1}, "takes no nope; it takes before, limit"),
        ({"limit": "many"}, "limit must be a number"),
        ("x", "must be an object"),
    ):
        with pytest.raises(Rejected, match=why):
            bind(QUERIES["workers"], params)
    assert bind(QUERIES["workers"], {})["limit"] == 1000
    with pytest.raises(Rejected, match="worker needs name"):
        bind(QUERIES["worker"], {})
    assert bind(QUERIES["workers"], {"limit": 10**9})["limit"] == 10_000
    assert bind(QUERIES["worker"], {"name": "w"}) == {"name": "w"}


def test_statement_files_are_read_by_name() -> None:
    invocations = QUERIES["invocations"]
    assert [p.name for p in invocations.parameters][:3] == ["tenant", "job", "state"]
    assert QUERIES["invocation"].notes["fresh"] == "no"
    assert QUERIES["invocation"].parameters[0].required
    with pytest.raises(duckdb.Error):
        duckdb.execute(invocations.sql, {})
