"""SQL of users on a real broker: what it sees, how it ends, and attacks by it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import anyio
import pytest

from inprocess import answering
from jetfleet.client import Client
from jetfleet.connection import Connection
from jetfleet.errors import QueryFailed
from jetfleet.queries import Rows
from jetfleet.server import Broker
from jetfleet.settings import Settings
from jetfleet.streams import INVOCATIONS
from jetfleet_projections import sandboxes
from jetfleet_projections.sandboxes import Copy, Sandbox
from jetfleet_projections.service import Service
from projections_made import Log, put_all, write
from waiting import until

pytestmark = pytest.mark.anyio
ENDLESS = "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t"


@pytest.fixture
async def client(service: Service, client: Client) -> Client:
    """With a service that answers."""
    return client


async def test_half_a_copy_is_not_left_behind(tmp_path: Path) -> None:
    async def full(path: Path) -> Copy:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    sandbox = Sandbox(tmp_path / "copies", lambda: 1, full)
    await sandbox.start()
    with pytest.raises(OSError, match="no space"):
        await sandbox.run("SELECT 1")
    assert list(sandbox.folder.iterdir()) == []
    await sandbox.stop()


async def test_sql_sees_what_was_stored_before_it_and_reuses_its_copy(
    client: Client, put: Connection, service: Service, settings: Settings
) -> None:
    log = Log()
    for number in range(1, 4):
        log.queued(log.clock.new_id())
        await write(put, log.batches[INVOCATIONS], number - 1)
        rows = await client.sql("SELECT count(*) AS n FROM invocations")
        assert (rows.columns, rows.rows, rows.position[INVOCATIONS]) == (["n"], [[number]], number)
    copies = list((settings.data_dir / "copies").iterdir())
    await client.sql("SELECT 1")
    assert list((settings.data_dir / "copies").iterdir()) == copies
    assert len(copies) == 1


async def test_sql_answers_with_json_values_and_utc_times(client: Client, put: Connection) -> None:
    log = Log()
    log.queued(log.clock.new_id())
    await put_all(put, log)
    sql = "SELECT data, stored_at, now() AS asked, invocation FROM events"
    [row] = (await client.sql(sql)).dicts()
    assert row["data"]["input"] == {"n": 1}
    assert row["stored_at"].endswith("Z")
    assert row["asked"].endswith("Z")
    assert (await client.sql("SELECT job FROM jobs")).rows == []


async def test_large_answers_come_whole_and_too_large_ones_are_cut(client: Client) -> None:
    rows = await client.sql("SELECT n, repeat('x', 1000) FROM range(5000) t(n)")
    assert [row[0] for row in rows.rows] == list(range(5000))
    assert not rows.truncated
    rows = await client.sql("SELECT * FROM range(1000000000000)")
    assert (len(rows.rows), rows.truncated) == (10_000, True)
    with pytest.raises(QueryFailed, match="fewer columns"):
        await client.sql("SELECT repeat('x', 600000)")


ATTACKS = [
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_csv_auto('/etc/passwd')",
    "SELECT * FROM glob('/*')",
    "WITH x AS (COPY (SELECT 1) TO '{path}') SELECT 1",
    "COPY jobs TO '{path}'",
    "EXPORT DATABASE '{path}'",
    "ATTACH '{path}'",
    "ATTACH '{path}' AS x; CREATE TABLE x.y AS SELECT 1",
    "SET memory_limit = '100GB'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "DROP TABLE invocations",
    "INSTALL httpfs",
    "SELECT getenv('HOME')",
    "SELECT * FROM query_table('version')",
    "PRAGMA database_list",
    "CREATE MACRO now() AS 1",
    "SELECT 1; DROP TABLE jobs",
]


async def test_attacks_are_refused_and_normal_queries_work_after_each(
    client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "stolen"
    for attack in ATTACKS:
        with pytest.raises(QueryFailed):
            await client.sql(attack.format(path=path))
        assert (await client.sql("SELECT 1")).rows == [[1]]
    assert not path.exists()


async def test_sandbox_itself_is_closed_without_the_guard(
    client: Client, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the guard lets through by mistake still finds no open door."""
    code = (
        "import sys; from jetfleet_projections import sandbox; "
        "sandbox.check = lambda *_: None; sandbox.main()"
    )
    await service.sandbox._kill()
    monkeypatch.setattr(sandboxes, "launched", lambda _argv: [sys.executable, "-c", code])
    for attack in ATTACKS:
        if attack.startswith(("PRAGMA", "SELECT * FROM query_table")):
            continue  # harmless in a copy
        with pytest.raises(QueryFailed):
            await client.sql(attack.format(path=tmp_path / "stolen"))
        assert (await client.sql("SELECT 1")).rows == [[1]]
    assert not (tmp_path / "stolen").exists()


async def test_endless_query_is_stopped_at_the_deadline(broker: Broker, settings: Settings) -> None:
    async with answering(settings, deadline_s=3.0), await Client.connect(settings) as client:
        for endless in (ENDLESS, "SELECT count(*) FROM range(1000000) a, range(1000000) b"):
            began = anyio.current_time()
            with pytest.raises(QueryFailed, match="stopped after 3 s"):
                await client.sql(endless)
            assert anyio.current_time() - began < 6
            assert (await client.sql("SELECT 1")).rows == [[1]]


async def test_memory_hogs_end_and_leave_the_service_working(client: Client) -> None:
    for hog in (
        "SELECT len(string_agg(repeat('x', 1000000), '')) FROM range(100000)",
        "SELECT len(list(n)) FROM range(1000000000) t(n)",
        "SELECT len(rpad('x', 2000000000, 'y'))",
        "SELECT a.range FROM range(100000000) a ORDER BY hash(a.range)",
    ):
        with pytest.raises(QueryFailed, match=r"memory|stopped|too large|Maximum"):
            await client.sql(hog)
        assert (await client.sql("SELECT 1")).rows == [[1]]


async def test_queries_wait_their_turn_and_named_ones_do_not_wait_for_sql(
    broker: Broker, settings: Settings
) -> None:
    async with (
        answering(settings, deadline_s=2.0) as service,
        await Client.connect(settings) as client,
    ):
        slow = asyncio.create_task(client.sql(ENDLESS))
        await until(service.sandbox._turn.locked, "it has its turn")
        began = anyio.current_time()
        await client.query("positions")
        assert anyio.current_time() - began < 1
        answers = await asyncio.gather(*(client.sql(f"SELECT {n}") for n in range(5)))
        assert [a.rows for a in answers if isinstance(a, Rows)] == [[[n]] for n in range(5)]
        with pytest.raises(QueryFailed, match="stopped"):
            await slow


async def test_json_that_python_cannot_read_is_answered_as_its_text(client):
    """Older warehouses have such rows; and a question may make them."""
    digits, levels = "9" * 5_000, "[" * 2_000 + "]" * 2_000
    for text in (digits, levels, "[nan]"):
        rows = await client.sql(f"SELECT '{text}'::JSON AS data, 1 AS one")
        assert rows.rows == [[text, 1]]
    rows = await client.sql("SELECT '{\"n\": 1}'::JSON AS data")
    assert rows.rows == [[{"n": 1}]]
