"""The query service on a real broker: named queries, and questions that are none."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.connection import Connection
from jetfleet.errors import QueryFailed
from jetfleet.queries import ask
from jetfleet.settings import Settings
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY
from jetfleet.views import view_of_row
from jetfleet_projections.service import THREADS, Service
from projections_made import Log, lives, put_all, write

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(service: Service, client: Client) -> Client:
    """With a service that answers."""
    return client


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


async def test_ps_wants_what_was_decided_for_a_job_that_follows_its_work(
    client: Client, put: Connection
) -> None:
    log = Log()
    log.scaled(2, registry_seq=1)  # for a job of this name that was there before
    log.job("deleted")
    log.job("created", min_replicas=0, max_replicas=5, scaling={"policy": "lag"})
    await put_all(put, log)

    async def wanted() -> int:
        [job] = (await client.query("ps", tenant="default")).dicts()
        return int(job["wanted"])

    assert await wanted() == 0
    log.scaled(3)
    await write(put, log.batches[FLEET], 1)
    assert await wanted() == 3
    log.scaled(9)
    await write(put, log.batches[FLEET], 2)
    assert await wanted() == 5
    [last, *_] = (await client.query("decisions")).dicts()
    assert (last["decision"], last["desired"], last["worker"]) == ("scaled", 9, None)


async def test_a_timeline_has_what_was_stored_before_it_was_asked_for(
    client: Client, put: Connection
) -> None:
    log = Log()
    invocation = log.clock.new_id()
    log.queued(invocation)
    await put_all(put, log)
    assert len((await client.query("invocation_events", invocation=invocation)).rows) == 1
    log.done(invocation)
    await write(put, log.batches[INVOCATIONS], 1)
    assert len((await client.query("invocation_events", invocation=invocation)).rows) == 2


async def test_workers_go_on_from_a_position(client: Client, put: Connection) -> None:
    log = Log()
    for name in ("w1", "w2", "w3"):
        log.worker("joined", name)
    await put_all(put, log)
    first = (await client.query("workers", limit=2)).dicts()
    assert [w["worker"] for w in first] == ["w3", "w2"]
    rest = (await client.query("workers", before=first[-1]["joined_seq"])).dicts()
    assert [w["worker"] for w in rest] == ["w1"]


async def test_a_query_that_no_thread_began_in_time_is_not_begun(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr("jetfleet_projections.service.DEADLINE_S", 0.2)
    monkeypatch.setattr("jetfleet_projections.service._run", lambda *_: ran.append("it"))
    free = threading.Event()
    for _ in range(THREADS):
        service._threads.submit(free.wait, 30)
    [page] = await service.ask({"name": "positions"})
    assert json.loads(page)["error"]["message"] == "positions was stopped after 0.2 s"
    later = service._threads.submit(ran.append, "the next one")
    free.set()
    await asyncio.wrap_future(later)
    assert ran == ["the next one"]


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
