"""run and run_sync: what is answered, when, and what is carried on."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from test_gateway_fake import (
    JOB,
    MODEL,
    FakeClient,
    Work,
    events_of,
    gateway,
    problem,
    with_job,
)

from jetfleet.errors import QueryFailed
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet.views import InvocationView
from jetfleet_gateway import runs
from jetfleet_gateway.app import create_app

RUN = "/v1/inference_jobs/echo/run"
SYNC = "/v1/inference_jobs/echo/run_sync"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.anyio
async def test_run_sync_answers_with_the_output() -> None:
    client = await with_job(FakeClient())
    async with gateway(client) as http:
        answer = await http.post(SYNC, json={"input": {"a": [1, None, "é"]}})
    (work,) = client.works.values()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "id": work.queued.data.invocation, "job": "echo", "state": "completed", "worker": "w1",
        "attempts": 1, "run_s": 0.01, "output": {"a": [1, None, "é"]},
    }  # fmt: skip


@pytest.mark.anyio
async def test_run_answers_at_once_with_where_to_ask() -> None:
    client = await with_job(FakeClient(worker=None))
    async with gateway(client) as http:
        answer = await http.post(RUN, json={"input": None})
        document = answer.json()
        where = await http.get(answer.headers["location"])
    assert answer.status_code == 202
    assert document == {"id": document["id"], "job": "echo", "state": "queued", "duplicate": False}
    assert (where.json()["id"], where.json()["state"]) == (document["id"], "queued")


@pytest.mark.anyio
async def test_limits_and_streaming_are_handed_on() -> None:
    client = await with_job(FakeClient(worker=None))
    async with gateway(client) as http:
        await http.post(RUN, json={"input": 1, "timeout_s": 2, "ttl_s": 3, "stream": True})
    (work,) = client.works.values()
    data = work.queued.data
    assert (data.timeout_s, data.stream) == (2, True)
    assert (data.expires_at - work.queued.time).total_seconds() == 3


@pytest.mark.anyio
async def test_a_call_has_the_class_that_it_asks_for() -> None:
    several = JOB.model_copy(update={"priority_classes": ("high", "normal")})
    client = await with_job(FakeClient(worker=None), several)
    async with gateway(client) as http:
        for body in ({"input": 1}, {"input": 1, "priority": "high"}):
            assert (await http.post(RUN, json=body)).status_code == 202
        await http.post(SYNC, json={"input": 1, "priority": "high", "wait_s": 0})
    classes = [work.queued.data.priority_class for work in client.works.values()]
    assert classes == ["normal", "high", "high"]


@pytest.mark.anyio
async def test_the_trace_of_the_request_is_carried_into_the_event_and_returned() -> None:
    client = await with_job(FakeClient())
    async with gateway(client) as http:
        answer = await http.post(SYNC, json={"input": 1}, headers={"traceparent": TRACE})
        refused = await http.post(SYNC, json={}, headers={"traceparent": TRACE})
    (work,) = client.works.values()
    assert work.queued.traceparent == answer.headers["traceparent"] == TRACE
    assert refused.headers["traceparent"] == TRACE


@pytest.mark.anyio
@pytest.mark.parametrize(
    "header", [None, "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", TRACE.upper()]
)
async def test_a_trace_is_made_where_none_or_an_invalid_one_came(header: str | None) -> None:
    client = await with_job(FakeClient())
    headers = {} if header is None else {"traceparent": header}
    async with gateway(client) as http:
        answer = await http.post(SYNC, json={"input": 1}, headers=headers)
    (work,) = client.works.values()
    trace = answer.headers["traceparent"]
    assert work.queued.traceparent == trace != header
    version, trace_id, span_id, flags = trace.split("-")
    assert (version, len(trace_id), len(span_id), flags) == ("00", 32, 16, "01")


@pytest.mark.anyio
async def test_a_repeated_idempotency_key_means_the_same_invocation() -> None:
    client = await with_job(FakeClient())
    headers = {"Idempotency-Key": "order-7"}
    async with gateway(client) as http:
        first = await http.post(SYNC, json={"input": 1}, headers=headers)
        again = await http.post(SYNC, json={"input": 1}, headers=headers)
        async_again = await http.post(RUN, json={"input": 1}, headers=headers)
        empty = await http.post(RUN, json={"input": 1}, headers={"Idempotency-Key": ""})
        long = await http.post(RUN, json={"input": 1}, headers={"Idempotency-Key": "k" * 256})
    assert len(client.works) == 1
    assert first.json() == again.json()
    assert async_again.json() == {
        "id": first.json()["id"], "job": "echo", "state": "completed", "duplicate": True
    }  # fmt: skip
    for answer in (empty, long):
        assert [e["field"] for e in problem(answer)["errors"]] == ["Idempotency-Key"]


@pytest.mark.anyio
async def test_what_is_accepted_stays_accepted_when_nobody_can_say_how_far_it_is() -> None:
    class Unasked(FakeClient):
        async def find(self, invocation: str) -> Any:
            raise QueryFailed

    async with gateway(await with_job(Unasked(worker=None))) as http:
        answer = await http.post(SYNC, json={"input": 1, "wait_s": 0})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")


# -- how it may end -------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("model_error", 502), ("model_exited", 502), ("invalid_output", 502),
        ("invalid_input", 502), ("attempts_exhausted", 502), ("timeout", 504),
    ],
)  # fmt: skip
async def test_a_failed_invocation_is_a_problem_with_the_typed_failure(
    code: str, status: int
) -> None:
    async def fail(work: Work) -> None:
        work.fail(code, "it broke")

    client = await with_job(FakeClient(fail))
    async with gateway(client) as http:
        answer = await http.post(SYNC, json={"input": 1})
    document = problem(answer)
    (invocation,) = client.works
    assert answer.status_code == status
    assert document["code"] == "invocation_failed"
    assert document["failure"] == {"code": code, "message": "it broke", "history": ["lost w0"]}
    assert document["invocation"] == invocation
    assert document["instance"] == f"/v1/invocations/{invocation}"
    assert "secret" not in answer.text  # tracebacks are for whoever runs the model


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("end", "status", "code"),
    [("expire", 504, "invocation_expired"), ("cancelled", 409, "invocation_cancelled")],
)
async def test_other_endings_have_their_own_codes(end: str, status: int, code: str) -> None:
    async def finish(work: Work) -> None:
        getattr(work, end)()

    async with gateway(await with_job(FakeClient(finish))) as http:
        answer = await http.post(SYNC, json={"input": 1})
    assert (answer.status_code, problem(answer)["code"]) == (status, code)


@pytest.mark.anyio
async def test_when_the_wait_passes_the_answer_is_202_and_the_invocation_goes_on() -> None:
    async def start(work: Work) -> None:
        work.start()

    client = await with_job(FakeClient(start))
    async with gateway(client) as http:
        answer = await http.post(SYNC, json={"input": 1, "wait_s": 0.05})
    (invocation,) = client.works
    assert answer.status_code == 202
    assert answer.json()["state"] == "started"
    assert answer.headers["location"] == f"/v1/invocations/{invocation}"
    assert client.cancels == []


@pytest.mark.anyio
async def test_the_wait_outlasts_the_timeout_so_that_the_typed_failure_arrives() -> None:
    client: Any = await with_job(FakeClient())

    def wait_s(**body: Any) -> float:
        return runs._wait_s(runs.RunRequest(input=1, **body), client, "echo")

    assert wait_s() == JOB.timeout_s + runs.WAIT_MARGIN_S
    assert wait_s(timeout_s=3.0) == 3 + runs.WAIT_MARGIN_S
    assert wait_s(timeout_s=3.0, wait_s=0.5) == 0.5


# -- models ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_model_runs_through_the_job_of_its_name_or_its_oldest() -> None:
    other = JobSpec(name="other", model=MODEL)
    client = await with_job(FakeClient(), other)
    async with gateway(client) as http:
        oldest = await http.post("/v1/models/echo/run_sync", json={"input": 1})
        await client.registry.apply_job(JOB)
        named = await http.post("/v1/models/echo/run_sync", json={"input": 1})
        accepted = await http.post("/v1/models/echo/run", json={"input": 1})
    assert (oldest.json()["job"], named.json()["job"]) == ("other", "echo")
    assert (accepted.status_code, accepted.json()["job"]) == (202, "echo")


@pytest.mark.anyio
async def test_a_model_without_a_job_and_an_unknown_one_are_told_apart() -> None:
    client = FakeClient()
    await client.registry.register_model(ModelSpec(name="lonely", function="a.py:f"))
    async with gateway(client) as http:
        lonely = await http.post("/v1/models/lonely/run", json={"input": 1})
        unknown = await http.post("/v1/models/nothing/run_sync", json={"input": 1})
    assert (lonely.status_code, problem(lonely)["code"]) == (404, "job_not_found")
    assert (unknown.status_code, problem(unknown)["code"]) == (404, "model_not_found")


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_unknown_and_disabled_jobs_are_refused_and_leave_nothing_behind() -> None:
    client = await with_job(FakeClient())
    await client.registry.disable_job("echo")
    async with gateway(client) as http:
        for end in ("run", "run_sync"):
            unknown = await http.post(f"/v1/inference_jobs/nope/{end}", json={"input": 1})
            strange = await http.post(f"/v1/inference_jobs/No%20pe.*/{end}", json={"input": 1})
            disabled = await http.post(f"/v1/inference_jobs/echo/{end}", json={"input": 1})
            assert (unknown.status_code, problem(unknown)["code"]) == (404, "job_not_found")
            assert (strange.status_code, problem(strange)["code"]) == (404, "job_not_found")
            assert (disabled.status_code, problem(disabled)["code"]) == (409, "job_disabled")
    assert client.works == {}


@pytest.mark.anyio
async def test_while_the_broker_is_known_to_be_away_the_answer_is_503_at_once() -> None:
    client = await with_job(FakeClient(connected=False))
    async with gateway(client) as http:
        began = time.monotonic()
        answer = await http.post(SYNC, json={"input": 1})
        took = time.monotonic() - began
    assert (answer.status_code, problem(answer)["code"]) == (503, "broker_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert took < 0.5
    assert client.works == {}


@pytest.mark.anyio
async def test_what_only_looks_like_a_run_is_left_to_the_routes() -> None:
    client = await with_job(FakeClient())
    async with gateway(client) as http:
        wrong_method = await http.get(SYNC)
        no_such_verb = await http.post("/v1/inference_jobs/echo/walk", json={"input": 1})
        no_name = await http.post("/v1/inference_jobs//run", json={"input": 1})
        slash = await http.post("/v1/inference_jobs/a%2Fb/run", json={"input": 1})
        other_kind = await http.post("/v1/workers/echo/run", json={"input": 1})
    assert wrong_method.status_code == 405
    for answer in (no_such_verb, no_name, slash, other_kind):
        assert (answer.status_code, problem(answer)["code"]) == (404, "route_not_found")
    assert client.works == {}


@pytest.mark.anyio
async def test_the_routes_themselves_answer_like_the_direct_path() -> None:
    """Behind a prefix (`root_path`) the direct path does not apply."""
    client = await with_job(FakeClient())

    async def connect() -> Any:
        return client

    app = create_app(client.settings, connect=connect)
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
        transport = httpx.ASGITransport(app, root_path="/fleet")
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway/fleet") as http:
            answer = await http.post(SYNC, json={"input": 1})
            refused = await http.post(SYNC, json={})
            model = await http.post("/v1/models/echo/run", json={"input": 1})
    assert (answer.status_code, answer.json()["output"]) == (200, 1)
    assert problem(refused)["errors"] == [{"field": "input", "message": "is required"}]
    assert model.status_code == 202


@pytest.mark.anyio
async def test_what_ended_while_its_wait_was_over_is_answered_with_its_outcome() -> None:
    """Never 202 for what is known to have completed."""
    client = await with_job(FakeClient(worker=None))
    find = client.find

    async def find_ended(invocation: str) -> InvocationView:
        client.works[invocation].complete("late")
        return await find(invocation)

    client.find = find_ended  # type: ignore[method-assign]  # it ends just then
    async with gateway(client) as http:
        answer = await http.post(SYNC, json={"input": 1, "wait_s": 0})
        stream = await http.post(SYNC, json={"input": 1, "wait_s": 0.01, "stream": True})
    assert (answer.status_code, answer.json()["output"]) == (200, "late")
    ((name, outcome),) = events_of(stream.text)
    assert (name, outcome["output"]) == ("outcome", "late")
