"""Which SQL of users is run."""

from __future__ import annotations

import duckdb
import pytest

from jetfleet_projections import tables
from jetfleet_projections.sqlguard import _FUNCTIONS, Refused, check

CONNECTION = duckdb.connect()

ALLOWED = [
    "SELECT 1",
    "SELECT 1;",
    "SELECT * FROM jobs",
    "FROM jobs",
    "VALUES (1)",
    "SHOW TABLES",
    "DESCRIBE jobs",
    "SUMMARIZE jobs",
    "SELECT count(*) FROM main.invocations WHERE queued_at > now() - INTERVAL 1 HOUR",
    "SELECT job, count(*), quantile_cont(run_s, 0.5) FROM invocations GROUP BY ALL"
    " HAVING count(*) > 1 ORDER BY 2 DESC NULLS LAST LIMIT 10 OFFSET 1",
    "WITH mine AS (SELECT * FROM jobs) SELECT * FROM mine JOIN invocations USING (job)",
    "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT n FROM t",
    "SELECT data ->> '$.reason', data -> 'a', x::INT, CAST(x AS DECIMAL(10, 2)[]),"
    " TRY_CAST(x AS DATE) FROM events AS e(x)",
    "SELECT sum(run_s) OVER (PARTITION BY job ORDER BY queued_seq ROWS 3 PRECEDING),"
    " row_number() OVER () FROM invocations QUALIFY rank() OVER (ORDER BY run_s) < 3",
    "SELECT list_transform([1, 2], lambda x: x + 1), {'a': 1}, MAP {'a': 1}, [1, 2][1:2]",
    "SELECT CASE WHEN 1 BETWEEN 0 AND 2 THEN 'a' LIKE 'b' END, 1 IN (SELECT 1), EXISTS (SELECT 1)",
    "SELECT * EXCLUDE (job) REPLACE (1 AS state) FROM invocations",
    "SELECT COLUMNS('.*_s') FROM invocations",
    "SELECT * FROM range(3), unnest([1, 2]), json_each('{\"a\": 1}')",
    "SELECT * FROM invocations ASOF JOIN job_models ON invocations.queued_at >= job_models.since",
    "SELECT 1 UNION ALL SELECT 2 EXCEPT SELECT 3",
    "SELECT DISTINCT ON (job) job FROM jobs, LATERAL (SELECT 1)",
    "SELECT count(*) FILTER (state = 'failed'), coalesce(1, 2), ifnull(1, 2) FROM jobs",
    "SELECT current_timestamp, current_date",
]
REFUSED = [
    ("", "one statement"),
    ("SELECT 1; SELECT 2", "one statement"),
    ("SELEC 1", "syntax error"),
    ("SELECT $1", "parameter"),
    ("DROP TABLE jobs", "only SELECT"),
    ("DELETE FROM jobs", "only SELECT"),
    ("UPDATE jobs SET job = 'x'", "only SELECT"),
    ("INSERT INTO jobs VALUES (1)", "only SELECT"),
    ("CREATE TABLE x AS SELECT 1", "only SELECT"),
    ("COPY jobs TO '/tmp/x'", "only SELECT"),
    ("ATTACH '/tmp/x.db'", "only SELECT"),
    ("SET threads = 8", "only SELECT"),
    ("RESET threads", "only SELECT"),
    ("PRAGMA database_list", "only SELECT"),
    ("CALL pragma_version()", "only SELECT"),
    ("INSTALL httpfs", "only SELECT"),
    ("LOAD httpfs", "only SELECT"),
    ("EXPLAIN ANALYZE SELECT 1", "only SELECT"),
    ("CHECKPOINT", "only SELECT"),
    ("WITH x AS (COPY jobs TO '/tmp/x') SELECT 1", "copy"),
    ("WITH x AS (DELETE FROM jobs RETURNING *) SELECT * FROM x", "delete"),
    ("SELECT * FROM (WITH x AS (COPY jobs TO '/tmp/x') SELECT 1)", "copy"),
    ("SELECT * FROM '/etc/passwd'", "no table"),
    ("SELECT * FROM 'x.parquet'", "no table"),
    ("SELECT * FROM read_text('/etc/passwd')", "read_text"),
    ("SELECT * FROM read_csv('/etc/passwd')", "read_csv"),
    ("SELECT (SELECT content FROM read_text('/etc/passwd'))", "read_text"),
    ("SELECT * FROM jobs WHERE job IN (SELECT content FROM read_text('/etc/passwd'))", "read_text"),
    ("SELECT * FROM glob('/*')", "glob"),
    ("SELECT * FROM duckdb_settings()", "duckdb_settings"),
    ("SELECT * FROM query('SELECT 1')", "query"),
    ("SELECT * FROM query_table('jobs')", "query_table"),
    ("SELECT * FROM repeat_row(1, num_rows = 10)", "repeat_row"),
    ("SELECT * FROM information_schema.tables", "no table"),
    ("SELECT * FROM other.main.jobs", "no table"),
    ("SELECT * FROM pg_catalog.pg_class", "no table"),
    ("SELECT * FROM sqlite_master", "no table"),
    ("SELECT * FROM version", "no table"),
    ("SELECT * FROM jobs AT (VERSION => 1)", "AT"),
    ("WITH jobs AS (SELECT 1) SELECT * FROM jobs", "name of a table"),
    ("SELECT getenv('HOME')", "getenv"),
    ("SELECT current_setting('threads')", "current_setting"),
    ("SELECT getvariable('x')", "getvariable"),
    ("SELECT main.now()", "now"),
    ("SELECT sleep_ms(1000)", "sleep_ms"),
    ("SELECT pg_sleep(1000)", "pg_sleep"),
    ("SELECT write_log('x')", "write_log"),
    ("SELECT nextval('x')", "nextval"),
    ("SELECT json_execute_serialized_sql('x')", "json_execute_serialized_sql"),
    ("SHOW DATABASES", "SHOW"),
    ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "depth"),
    ("SELECT '" + "x" * 70_000 + "'", "characters"),
]


@pytest.mark.parametrize("sql", ALLOWED)
def test_a_select_of_known_tables_is_run(sql: str) -> None:
    check(CONNECTION, sql, tables.PUBLIC)


@pytest.mark.parametrize(("sql", "why"), REFUSED)
def test_anything_else_is_refused_with_the_reason(sql: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        check(CONNECTION, sql, tables.PUBLIC)


def test_every_function_on_the_list_exists() -> None:
    names = CONNECTION.execute("SELECT DISTINCT lower(function_name) FROM duckdb_functions()")
    known = {name for (name,) in names.fetchall()}
    in_syntax = {"coalesce", "ifnull", "->", "cume_dist", "dense_rank", "first_value", "lag",
                 "last_value", "lead", "nth_value", "ntile", "percent_rank", "rank", "rank_dense",
                 "row_number"}  # fmt: skip
    assert known >= _FUNCTIONS - in_syntax
