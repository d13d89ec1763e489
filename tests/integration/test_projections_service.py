"""The query service on a real broker: named queries, SQL of users, and attacks by it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.connection import Connection
from jetfleet.errors import QueryFailed
from jetfleet.queries import Rows, ask
from jetfleet.server import Broker
from jetfleet.settings import Settings
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY
from jetfleet.views import view_of_row
from jetfleet_projections.projector import Projector
from jetfleet_projections.sandboxes import Sandbox
from jetfleet_projections.service import Service
from jetfleet_projections.warehouse import STREAMS, Warehouse
from projections_made import Log, lives, write, writer

pytestmark = pytest.mark.anyio
ENDLESS = "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t"


@asynccontextmanager
async def serving(settings: Settings, deadline_s: float = 10.0) -> AsyncIterator[Service]:
    warehouse = Warehouse.open(settings.data_dir / "warehouse.duckdb")
    connection = await Connection.open(
        settings.nats_url, settings.credentials_of("projector"), user="projector", name="projector"
    )
    projector = Projector(connection, warehouse)
    sandbox = Sandbox(
        settings.data_dir / "copies", lambda: warehouse.commits, projector.copy, deadline_s
    )
    service = Service(connection, projector, sandbox)
    following = asyncio.create_task(projector.run())
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        denied = connection.denied
        await connection.close()
        warehouse.close()
    assert denied == []


@pytest.fixture
async def service(broker: Broker, settings: Settings) -> AsyncIterator[Service]:
    async with serving(settings) as running:
        yield running


@pytest.fixture
async def client(service: Service, settings: Settings) -> AsyncIterator[Client]:
    async with await Client.connect(settings) as connected:
        yield connected


@pytest.fixture
async def put(broker: Broker) -> AsyncIterator[Connection]:
    connection = await writer(broker)
    yield connection
    await connection.close()


async def put_all(put: Connection, log: Log) -> None:
    for stream in STREAMS:
        await write(put, log.batches[stream])


# -- named queries


async def test_an_invocation_is_told_whole(client: Client, put: Connection) -> None:
    log = Log()
    log.job("created", version="2")
    ids = [log.clock.new_id() for _ in range(2)]
    for invocation in ids:
        log.queued(invocation, stream=True)
        log.started(invocation)
    log.done(ids[0], outcome="failed")
    await put_all(put, log)
    assert (await client.query("positions")).position == {REGISTRY: 1, INVOCATIONS: 5, FLEET: 0}
    [failed] = (await client.query("invocation", invocation=ids[0])).dicts()
    view = view_of_row(failed)
    assert (view.state, view.stream, view.origin, view.queued_seq) == ("failed", True, "g1", 1)
    assert view.outcome is not None
    assert view.outcome.data.error.message == "boom\nagain"  # type: ignore[union-attr]  # it failed
    assert (failed["model"], failed["model_version"], failed["outcome_type"]) == (
        "echo",
        "2",
        "failed",
    )
    [started] = (await client.query("invocation", invocation=ids[1])).dicts()
    assert (started["state"], started["outcome"], started["model"]) == ("started", None, "echo")
    assert (await client.query("invocation", invocation=log.clock.new_id())).rows == []
    events = (await client.query("invocation_events", invocation=ids[0])).dicts()
    assert [e["type"].rpartition(".")[2] for e in events] == ["queued", "started", "failed"]
    assert events[0]["data"]["input"] == {"n": 1}
    assert events[0]["time"].endswith("Z")


async def test_lists_are_newest_first_and_go_on_from_a_cursor(
    client: Client, put: Connection
) -> None:
    log = Log()
    for name in ("a", "b"):
        log.job("created", name)
    ids = [log.clock.new_id() for _ in range(9)]
    for number, invocation in enumerate(ids):
        log.queued(invocation, "ab"[number % 2])
    log.started(ids[8], "a", "w7")
    await put_all(put, log)
    await client.query("positions")

    async def listed(**params: object) -> list[int]:
        rows = (await client.query("invocations", **params)).dicts()
        return [ids.index(row["invocation"]) for row in rows]

    assert await listed() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert await listed(job="a", limit=2) == [8, 6]
    assert await listed(job="a", limit=2, before=ids[6]) == [4, 2]
    assert await listed(limit=2, after=ids[3]) == [5, 4]
    assert await listed(state="started") == await listed(worker="w7") == [8]
    assert await listed(model="echo", limit=1) == await listed(model="echo:1", limit=1) == [8]
    assert await listed(model="other") == await listed(tenant="other") == []


async def test_ps_and_summary_add_up(client: Client, put: Connection) -> None:
    log = Log()
    log.job("created", max_replicas=3, desired_replicas=2)
    log.worker("joined")
    log.replica("assigned", "r1")
    log.replica("ready", "r1")
    log.replica("assigned", "r2")
    ids = [log.clock.new_id() for _ in range(4)]
    for invocation in ids:
        log.queued(invocation)
    log.started(ids[0])
    for invocation, outcome in ((ids[1], "completed"), (ids[2], "expired")):
        log.done(invocation, outcome=outcome)
    await put_all(put, log)
    [job] = (await client.query("ps", tenant="default")).dicts()
    assert {name: job[name] for name in ("ready", "wanted", "preparing", "queued", "running")} == {
        "ready": 1, "wanted": 2, "preparing": 1, "queued": 1, "running": 1,
    }  # fmt: skip
    assert job["oldest_wait_s"] >= 0
    [row] = (await client.query("summary")).dicts()
    assert (row["invocations"], row["completed"], row["expired"], row["in_flight"]) == (4, 1, 1, 2)
    assert row["run_p95_s"] == 0.25
    assert [w["worker"] for w in (await client.query("workers")).dicts()] == ["w1"]
    assert [w["gpus"] for w in (await client.query("worker", name="w1")).dicts()] == [[]]
    assert len((await client.query("replicas", job="echo", worker="w1")).rows) == 2
    assert [d["decision"] for d in (await client.query("decisions")).dicts()] == ["assigned"] * 2


async def test_malformed_questions_are_answered_with_what_is_wrong(
    client: Client, service: Service
) -> None:
    for request, why in (
        ({"name": "nope"}, "there is no query 'nope'; there are dead"),
        ({"name": "worker"}, "worker needs name"),
        ({"name": "worker", "params": {"name": 5}}, "name must be text"),
        ({"name": "invocation", "params": {"invocation": "x"}}, "UUID"),
        ({}, "a question is"),
        ({"sql": 5}, "sql must be text"),
    ):
        with pytest.raises(QueryFailed, match=why):
            await ask(client.connection, request)
    reply = await client.connection.request(subjects.ask_query(), b"not json")
    assert json.loads(reply)["error"]["code"] == "query_failed"


async def test_a_question_is_no_way_to_publish_in_the_projectors_name(
    client: Client, service: Service
) -> None:
    for reply in ("jf.inv.0.default.echo.queued.normal", "$JS.API.STREAM.PURGE.INVOCATIONS"):
        await client.connection.publish(subjects.ask_query(), b'{"name":"positions"}', reply=reply)
    assert (await client.query("positions")).rows
    info = await client.connection.api(f"STREAM.INFO.{INVOCATIONS}")
    assert info["state"]["last_seq"] == 0


# -- SQL of users


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


async def test_large_answers_come_whole_and_too_large_ones_are_cut(
    client: Client, put: Connection
) -> None:
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
    import sys

    from jetfleet_projections import sandboxes

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
    async with serving(settings, deadline_s=1.0), await Client.connect(settings) as client:
        for endless in (ENDLESS, "SELECT count(*) FROM range(1000000) a, range(1000000) b"):
            began = anyio.current_time()
            with pytest.raises(QueryFailed, match=r"stopped after 1 s"):
                await client.sql(endless)
            assert anyio.current_time() - began < 4
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
    async with serving(settings, deadline_s=2.0), await Client.connect(settings) as client:
        slow = asyncio.create_task(client.sql(ENDLESS))
        await asyncio.sleep(0.2)
        began = anyio.current_time()
        await client.query("positions")
        assert anyio.current_time() - began < 1
        answers = await asyncio.gather(*(client.sql(f"SELECT {n}") for n in range(5)))
        assert [a.rows for a in answers if isinstance(a, Rows)] == [[[n]] for n in range(5)]
        with pytest.raises(QueryFailed, match="stopped"):
            await slow


async def test_answers_reach_the_gateway_role_too(service: Service, settings: Settings) -> None:
    async with await Client.connect(settings, role="gateway") as gateway:
        assert (await gateway.query("workers")).rows == []


async def test_dead_messages_can_be_looked_at(client: Client, put: Connection) -> None:
    log = Log()
    lives(log, 3, seed=1)
    log.put(INVOCATIONS, "jf.inv.0.default.echo.cancel", b"poison \xff")
    await put_all(put, log)
    [dead] = (await client.query("dead")).dicts()
    assert (dead["stream"], dead["size"], dead["body"]) == (INVOCATIONS, 8, "poison \\xff")
    assert "not a valid event" in dead["reason"]


async def test_json_that_python_cannot_read_is_answered_as_its_text(client, put):
    """Older warehouses have such rows; and a question may make them."""
    digits, levels = "9" * 5_000, "[" * 2_000 + "]" * 2_000
    for text in (digits, levels, "[nan]"):
        rows = await client.sql(f"SELECT '{text}'::JSON AS data, 1 AS one")
        assert rows.rows == [[text, 1]]
    rows = await client.sql("SELECT '{\"n\": 1}'::JSON AS data")
    assert rows.rows == [[{"n": 1}]]


async def test_ps_tells_why_the_last_replica_failed_until_one_is_ready(client, put):
    log = Log()
    log.job("created")
    log.worker("joined")
    for replica in ("r1", "r2"):
        log.replica("assigned", replica)
        log.replica("failed", replica)
    await put_all(put, log)
    [job] = (await client.query("ps", tenant="default")).dicts()
    [last, _] = (await client.query("replicas", job="echo")).dicts()
    assert job["failure"] == last["reason"] != ""
    log.replica("assigned", "r3")
    log.replica("ready", "r3")
    await write(put, log.batches[FLEET], 5)
    [job] = (await client.query("ps", tenant="default")).dicts()
    assert (job["ready"], job["failure"]) == (1, None)
