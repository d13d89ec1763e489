"""The gateway with the real client on a real broker; a small worker of the test answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from test_gateway_worker import JOB, MODEL, Task, echo, register, serving

from conftest import settings_for
from jetfleet import lookup, streams
from jetfleet.client import Client
from jetfleet.events import InvocationQueued
from jetfleet.server import Broker
from jetfleet.specs import JobSpec
from jetfleet_gateway.app import create_app

RUN = "/v1/inference_jobs/echo/run"
SYNC = "/v1/inference_jobs/echo/run_sync"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@asynccontextmanager
async def gateway(broker: Broker, **overrides: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A connected gateway in this process."""
    app = create_app(settings_for(broker, **overrides))
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(app.door.opened.wait(), 10)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            yield http


async def stored(broker: Broker) -> list[InvocationQueued]:
    """Every queued event of the log."""
    async with await Client.connect(settings_for(broker), role="operator") as operator:
        events = [record.event async for record in operator.events(streams.INVOCATIONS)]
    return [event for event in events if isinstance(event, InvocationQueued)]


@pytest.mark.anyio
async def test_from_registering_a_model_to_the_output_over_http_alone(broker: Broker) -> None:
    async with gateway(broker) as http:
        ready = await http.get("/readyz")
        model = await http.post("/v1/models", json=MODEL.model_dump(mode="json"))
        job = await http.post(
            "/v1/inference_jobs", json={"name": "echo", "model": "echo", "timeout_s": 20}
        )
        async with serving(broker):
            answer = await http.post(SYNC, json={"input": {"a": 1}}, headers={"traceparent": TRACE})
            shown = await http.get(f"/v1/invocations/{answer.json()['id']}")
    assert [r.status_code for r in (ready, model, job, answer, shown)] == [200, 201, 201, 200, 200]
    assert answer.json()["output"] == shown.json()["output"] == {"a": 1}
    (queued,) = await stored(broker)
    assert queued.traceparent == TRACE
    assert queued.source.startswith("gateway/")


@pytest.mark.anyio
async def test_an_accepted_invocation_can_be_asked_for_at_once(broker: Broker) -> None:
    await register(broker)
    async with gateway(broker) as http:
        accepted = await http.post(RUN, json={"input": 1})
        where = accepted.headers["location"]
        queued = (await http.get(where)).json()
        async with serving(broker):
            ended = (await http.get(where, params={"wait_s": 10})).json()
    assert accepted.status_code == 202
    assert (queued["state"], ended["state"], ended["output"]) == ("queued", "completed", 1)
    assert (ended["worker"], ended["attempts"]) == ("w1", 1)


@pytest.mark.anyio
async def test_a_model_that_raises_gives_a_typed_failure_and_the_next_one_works(
    broker: Broker,
) -> None:
    await register(broker)
    async with gateway(broker) as http, serving(broker):
        failed = await http.post(SYNC, json={"input": {"raise": "no"}})
        worked = await http.post("/v1/models/echo/run_sync", json={"input": 2})
    assert failed.status_code == 502
    assert failed.json()["failure"] == {
        "code": "model_error", "message": "ValueError: no", "history": []
    }  # fmt: skip
    assert worked.json()["output"] == 2


@pytest.mark.anyio
async def test_chunks_and_the_outcome_are_streamed(broker: Broker) -> None:
    await register(broker)
    body = {"input": {"say": ["Hel", "lo"]}, "stream": True}
    async with gateway(broker) as http, serving(broker):
        direct = await http.post(SYNC, json=body)
        follow = await http.get(f"{direct.headers['location']}/stream")
    lines = [line for line in direct.text.splitlines() if line.startswith(("event", "data"))]
    assert lines[:5] == [
        "event: chunk", 'data: "Hel"', "event: chunk", 'data: "lo"', "event: outcome"
    ]  # fmt: skip
    assert json.loads(lines[5].removeprefix("data: "))["output"] == "Hello"
    assert follow.text.count("event: outcome") == 1


@pytest.mark.anyio
async def test_payloads_over_the_inline_limit_go_in_and_come_back_whole(broker: Broker) -> None:
    await register(broker)
    text = "é" * 200_000

    async def measure(task: Task) -> Any:
        assert task.input is None
        assert task.queued.data.input_ref is not None
        return "x" * 300_000

    async with gateway(broker) as http:
        async with serving(broker, measure):
            answer = await http.post(SYNC, json={"input": text})
            assert answer.status_code == 200, answer.text
            shown = await http.get(f"/v1/invocations/{answer.json()['id']}")
    assert answer.json()["output"] == shown.json()["output"] == "x" * 300_000


@pytest.mark.anyio
async def test_the_same_idempotency_key_runs_once_over_two_gateways(broker: Broker) -> None:
    await register(broker)
    runs = 0

    async def count(task: Task) -> Any:
        nonlocal runs
        runs += 1
        return await echo(task)

    headers = {"Idempotency-Key": "k"}
    async with gateway(broker) as one, gateway(broker) as two, serving(broker, count):
        first = await one.post(SYNC, json={"input": 1}, headers=headers)
        again = await two.post(SYNC, json={"input": 1}, headers=headers)
        other = await two.post(SYNC, json={"input": 2}, headers=headers)
    assert first.json() == again.json()
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert runs == 1


@pytest.mark.anyio
async def test_refused_requests_leave_nothing_in_the_log(broker: Broker) -> None:
    full = JobSpec(name="full", model=MODEL, queue_cap=2)
    off = JobSpec(name="off", model=MODEL)
    await register(broker, JOB, full, off)
    async with gateway(broker, payload_limit=200_000) as http:
        await http.post("/v1/inference_jobs/off/disable")
        for _ in range(2):
            await http.post("/v1/inference_jobs/full/run", json={"input": 1})
        before = len(await stored(broker))
        refused = {
            "unknown": await http.post("/v1/inference_jobs/nope/run", json={"input": 1}),
            "disabled": await http.post("/v1/inference_jobs/off/run_sync", json={"input": 1}),
            "malformed": await http.post(RUN, json={"input": 1, "timeout_s": 21}),
            "not json": await http.post(
                RUN, content=b"{", headers={"content-type": "application/json"}
            ),
            "full": await http.post("/v1/inference_jobs/full/run", json={"input": 1}),
            "large": await http.post(RUN, json={"input": "x" * 200_001}),
        }
    assert {name: answer.status_code for name, answer in refused.items()} == {
        "unknown": 404, "disabled": 409, "malformed": 400, "not json": 400, "full": 429,
        "large": 413,
    }  # fmt: skip
    assert refused["malformed"].json()["errors"][0]["field"] == "timeout_s"
    assert int(refused["full"].headers["retry-after"]) >= 1
    assert len(await stored(broker)) == before


@pytest.mark.anyio
async def test_registry_changes_of_one_gateway_are_seen_by_another(broker: Broker) -> None:
    await register(broker)
    async with gateway(broker) as one, gateway(broker) as two:
        put = await one.put("/v1/inference_jobs/j", json={"model": "echo", "concurrency": 3})
        accepted = await two.post("/v1/inference_jobs/j/run", json={"input": 1})
        patched = await two.patch("/v1/inference_jobs/j", json={"concurrency": 5})
        deleted = await one.delete("/v1/inference_jobs/j")
        listed = await one.get("/v1/inference_jobs")
    assert [a.status_code for a in (put, accepted, patched, deleted)] == [201, 202, 200, 204]
    assert patched.json()["spec"]["concurrency"] == 5
    assert [job["name"] for job in listed.json()["items"]] == ["echo"]


@pytest.mark.anyio
async def test_a_cancelled_invocation_that_nobody_runs_is_asked_to_stop(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No conductor runs here, so the outcome does not come: 202, and the request is in the log."""
    monkeypatch.setattr(lookup, "CANCEL_WAIT_S", 0.1)
    await register(broker)
    async with gateway(broker) as http:
        accepted = await http.post(RUN, json={"input": 1})
        where = accepted.headers["location"]
        cancel = await http.post(f"{where}/cancel", params={"reason": "enough"})
        async with serving(broker):
            await http.get(where, params={"wait_s": 10})
        late = await http.post(f"{where}/cancel")
    assert (cancel.status_code, cancel.json()["state"]) == (202, "queued")
    assert (late.status_code, late.json()["code"]) == (409, "invocation_ended")


@pytest.mark.anyio
async def test_lists_say_so_when_no_projector_answers(broker: Broker) -> None:
    async with gateway(broker) as http:
        for path in ("/v1/workers", "/v1/workers/w1", "/v1/invocations"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "query_unavailable")
