"""Looking invocations and workers up, streaming and cancelling them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from test_gateway_fake import FakeClient, Work, echo, events_of, gateway, problem, with_job

from jetfleet.blobs import BlobUnreadable
from jetfleet.clock import new_id
from jetfleet.errors import EventUnreadable, QueryUnavailable
from waiting import until

RUN = "/v1/inference_jobs/echo/run"
NOBODY = new_id()


async def submitted(client: FakeClient, **options: Any) -> Work:
    await with_job(client)
    handle = await client.submit("echo", "x", **options)
    return client.works[handle.invocation]


def path(work: Work, end: str = "") -> str:
    return f"/v1/invocations/{work.queued.data.invocation}{end}"


# -- one ------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_invocation_is_shown_as_it_goes_on() -> None:
    client = FakeClient(worker=None)
    work = await submitted(client)
    async with gateway(client) as http:
        queued = (await http.get(path(work))).json()
        work.start()
        started = (await http.get(path(work))).json()
        work.complete({"y": 1})
        completed = (await http.get(path(work))).json()
    assert [each["state"] for each in (queued, started, completed)] == [
        "queued", "started", "completed"
    ]  # fmt: skip
    assert (queued["worker"], queued["output"], queued["finished_at"]) == (None, None, None)
    assert (started["worker"], started["attempts"]) == ("w1", 1)
    assert (completed["output"], completed["run_s"]) == ({"y": 1}, 0.01)
    assert completed["started_at"] < completed["finished_at"]


@pytest.mark.anyio
async def test_a_failed_one_is_shown_with_its_failure_and_without_its_traceback() -> None:
    client = FakeClient(worker=None)
    work = await submitted(client)
    work.fail("model_error", "ValueError: no")
    async with gateway(client) as http:
        answer = await http.get(path(work))
    assert answer.json()["failure"]["code"] == "model_error"
    assert "secret" not in answer.text


@pytest.mark.anyio
async def test_a_long_poll_returns_with_the_outcome() -> None:
    client = FakeClient(worker=None)
    work = await submitted(client)
    async with gateway(client) as http:
        poll = asyncio.create_task(http.get(path(work), params={"wait_s": 5}))
        await until(lambda: work.waiter.futures, "it waits")
        assert not poll.done()
        work.complete(1)
        answer = await poll
    assert answer.json()["state"] == "completed"


@pytest.mark.anyio
async def test_a_long_poll_returns_what_is_known_when_its_time_is_over() -> None:
    client = FakeClient(worker=None)
    work = await submitted(client)
    async with gateway(client) as http:
        answer = await http.get(path(work), params={"wait_s": 0.02})
        endless = await http.get(path(work), params={"wait_s": 301})
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")
    assert problem(endless)["errors"][0]["field"] == "wait_s"


@pytest.mark.anyio
async def test_an_output_that_is_not_kept_any_more_is_said_to_be_lost() -> None:
    client = FakeClient(worker=echo)
    work = await submitted(client)
    await work.ended.wait()

    async def gone(_outcome: Any) -> Any:
        raise BlobUnreadable("piece 0 is gone; payloads are kept for two days")

    client.output = gone  # type: ignore[method-assign]  # what the real one meets after two days
    async with gateway(client) as http:
        answer = (await http.get(path(work))).json()
        stream = await http.get(path(work, "/stream"))
    assert (answer["state"], answer["output"]) == ("completed", None)
    assert "two days" in answer["output_lost"]
    assert (stream.status_code, problem(stream)["code"]) == (410, "payload_unreadable")


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["", "/stream", "/events"])
async def test_an_unknown_invocation_is_404(end: str) -> None:
    async with gateway(FakeClient()) as http:
        for invocation in (NOBODY, "nonsense", "*", "%3E"):
            answer = await http.get(f"/v1/invocations/{invocation}{end}")
            assert (answer.status_code, problem(answer)["code"]) == (404, "invocation_not_found")
        cancel = await http.post(f"/v1/invocations/{NOBODY}/cancel")
    assert (cancel.status_code, problem(cancel)["code"]) == (404, "invocation_not_found")


# -- streams --------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_anybody_may_follow_the_stream_of_an_invocation_by_its_id() -> None:
    client = FakeClient(worker=None)
    work = await submitted(client, stream=True)
    async with gateway(client) as http:
        follow = asyncio.create_task(http.get(path(work, "/stream")))
        async with asyncio.timeout(5):
            await work.followed.wait()
        work.chunk("a")
        work.chunk("b")
        work.complete("ab")
        answer = await follow
    assert answer.headers["content-type"].startswith("text/event-stream")
    (first, second, (name, outcome)) = events_of(answer.text)
    assert (first, second) == (("chunk", "a"), ("chunk", "b"))
    assert (name, outcome["output"]) == ("outcome", "ab")


@pytest.mark.anyio
async def test_the_stream_of_an_ended_invocation_is_its_outcome() -> None:
    client = FakeClient()
    work = await submitted(client)
    await work.ended.wait()
    async with gateway(client) as http:
        answer = await http.get(path(work, "/stream"))
    assert [name for name, _ in events_of(answer.text)] == ["outcome"]


# -- cancelling -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_queued_or_running_invocation_is_cancelled_once() -> None:
    client = FakeClient(worker=None)
    work = await submitted(client)
    work.start()
    async with gateway(client) as http:
        cancelled = await http.post(path(work, "/cancel"), params={"reason": "enough"})
        again = await http.post(path(work, "/cancel"))
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert cancelled.json()["reason"] == "enough"
    assert (again.status_code, problem(again)["code"]) == (409, "invocation_ended")
    assert len(client.cancels) == 1


@pytest.mark.anyio
async def test_a_cancellation_whose_outcome_is_still_to_come_is_202() -> None:
    client = FakeClient(worker=None)
    work = await submitted(client)

    async def ask(invocation: str, reason: str = "") -> Any:
        return work.view

    client.cancel = ask  # type: ignore[method-assign]  # nobody answers the request in time
    async with gateway(client) as http:
        answer = await http.post(path(work, "/cancel"))
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")


@pytest.mark.anyio
async def test_a_cancellation_that_came_too_late_is_409() -> None:
    client = FakeClient(worker=None)
    work = await submitted(client)

    async def lose(invocation: str, reason: str = "") -> Any:
        work.complete(1)
        return work.view

    client.cancel = lose  # type: ignore[method-assign]  # the worker finishes meanwhile
    async with gateway(client) as http:
        answer = await http.post(path(work, "/cancel"))
    assert (answer.status_code, problem(answer)["code"]) == (409, "invocation_ended")
    assert "completed before" in answer.json()["detail"]


# -- lists ----------------------------------------------------------------------------------------


def row(**changes: Any) -> dict[str, Any]:
    return {
        "invocation": new_id(), "tenant": "default", "job": "echo", "model": "echo",
        "state": "completed", "worker": "w1", "attempts": 1, "queued_at": "2026-01-01T00:00:00Z",
        "started_at": "2026-01-01T00:00:01Z", "finished_at": "2026-01-01T00:00:02Z",
        "wait_s": 1.0, "run_s": 1.0, "error_code": None, "more_than_we_know": 1, **changes,
    }  # fmt: skip


@pytest.mark.anyio
async def test_invocations_are_listed_by_filters_and_in_pages() -> None:
    rows = [row() for _ in range(3)]
    client = FakeClient(rows={"invocations": rows})
    async with gateway(client) as http:
        params = {"job": "echo", "state": "failed", "worker": "w1", "model": "m", "limit": 2}
        first = (await http.get("/v1/invocations", params=params)).json()
        client.rows["invocations"] = rows[2:]
        cursor = first["next_cursor"]
        last = (await http.get("/v1/invocations", params={"cursor": cursor, "limit": 2})).json()
    assert [item["id"] for item in first["items"]] == [r["invocation"] for r in rows[:2]]
    assert cursor == rows[1]["invocation"]
    assert last["next_cursor"] is None
    asked, again = (params for _, params in client.asked)
    assert asked == {
        "tenant": "default", "job": "echo", "state": "failed", "worker": "w1", "model": "m",
        "before": None, "limit": 3,
    }  # fmt: skip
    assert (again["before"], again["job"]) == (cursor, None)


@pytest.mark.anyio
async def test_a_cursor_that_is_none_of_ours_is_400() -> None:
    async with gateway(FakeClient()) as http:
        answer = await http.get("/v1/invocations", params={"cursor": "' OR 1=1"})
    assert problem(answer)["errors"][0]["field"] == "cursor"


@pytest.mark.anyio
async def test_the_timeline_has_every_event_with_its_data() -> None:
    event = {
        "seq": 7, "id": new_id(), "type": "jetfleet.invocation.started", "worker": "w1",
        "time": "2026-01-01T00:00:00Z", "source": "worker/w1", "data": {"attempt": 1},
    }  # fmt: skip
    client = FakeClient(rows={"invocation_events": [event]})
    work = await submitted(client)
    async with gateway(client) as http:
        answer = await http.get(path(work, "/events"))
    assert answer.json()["items"] == [event]
    assert client.asked == [("invocation_events", {"invocation": work.queued.data.invocation})]


WORKER = {
    "worker": "w1", "state": "joined", "reason": "", "session": new_id(), "hostname": "box",
    "joined_at": "2026-01-01T00:00:00Z", "changed_at": "2026-01-01T00:00:00Z", "cpu_count": 8,
    "memory_mib": 1024, "disk_free_mib": 1024, "gpus": [{"index": 0, "name": "H100"}],
    "labels": {}, "owner": "", "trusted": True, "ephemeral": False, "price_per_hour": 0.0,
    "agent_version": "0.1.0",
}  # fmt: skip
REPLICA = {
    "replica": "r1", "job": "echo", "worker": "w1", "state": "ready", "stage": "", "reason": "",
    "model": "echo", "model_version": "1", "assigned_at": "2026-01-01T00:00:00Z",
    "ready_at": None, "restarts": 0,
}  # fmt: skip


@pytest.mark.anyio
async def test_workers_are_listed_and_shown_with_their_replicas() -> None:
    client = FakeClient(rows={"workers": [WORKER], "worker": [WORKER], "replicas": [REPLICA]})
    async with gateway(client) as http:
        listed = (await http.get("/v1/workers")).json()
        shown = (await http.get("/v1/workers/w1")).json()
    assert [item["name"] for item in listed["items"]] == ["w1"]
    assert listed["items"][0]["gpus"] == [{"index": 0, "name": "H100"}]
    assert [(r["id"], r["state"]) for r in shown["replicas"]] == [("r1", "ready")]
    assert client.asked[1:] == [
        ("worker", {"name": "w1"}), ("replicas", {"job": None, "worker": "w1"})
    ]  # fmt: skip


@pytest.mark.anyio
async def test_workers_are_listed_page_by_page() -> None:
    client = FakeClient(rows={"workers": [{**WORKER, "joined_seq": n} for n in (9, 7, 4)]})
    async with gateway(client) as http:
        page = (await http.get("/v1/workers", params={"limit": 2})).json()
        await http.get("/v1/workers", params={"limit": 2, "cursor": page["next_cursor"]})
        wrong = await http.get("/v1/workers", params={"cursor": "w1"})
    assert (len(page["items"]), page["next_cursor"]) == (2, "7")
    assert client.asked == [
        ("workers", {"before": None, "limit": 3}), ("workers", {"before": 7, "limit": 3}),
    ]  # fmt: skip
    assert problem(wrong)["errors"][0]["field"] == "cursor"


@pytest.mark.anyio
async def test_an_unknown_worker_is_404_and_a_missing_projector_503() -> None:
    async with gateway(FakeClient()) as http:
        unknown = await http.get("/v1/workers/nobody")
    async with gateway(FakeClient(refusal=QueryUnavailable())) as http:
        unavailable = [await http.get(p) for p in ("/v1/workers", "/v1/invocations")]
    assert (unknown.status_code, problem(unknown)["code"]) == (404, "worker_not_found")
    for answer in unavailable:
        assert (answer.status_code, problem(answer)["code"]) == (503, "query_unavailable")
        assert "retry-after" in answer.headers


@pytest.mark.anyio
async def test_an_invocation_whose_outcome_cannot_be_read_is_shown_and_says_so() -> None:
    client = await with_job(FakeClient(worker=None))
    async with gateway(client) as http:
        where = (await http.post("/v1/inference_jobs/echo/run", json={"input": 1})).headers
        (work,) = client.works.values()
        work.view = replace(work.view, state="completed", unreadable="recursion limit exceeded")
        shown = await http.get(where["location"])
        client.refusal = EventUnreadable("at 7 of the log")
        gone = await http.get(where["location"])
    assert (shown.status_code, shown.json()["state"]) == (200, "completed")
    assert shown.json()["output_lost"] == "recursion limit exceeded"
    assert (gone.status_code, problem(gone)["code"]) == (410, "event_unreadable")
