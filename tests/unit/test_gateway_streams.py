"""Streaming answers of run_sync, and clients that go away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from test_gateway_fake import FakeClient, Work, events_of, gateway, problem, with_job

from jetfleet.client import Gap
from jetfleet.errors import EventUnreadable
from jetfleet_gateway.app import create_app
from waiting import until

SYNC = "/v1/inference_jobs/echo/run_sync"


async def speak(work: Work) -> None:
    for word in ("Hel", "lo\n\n", {"x": 1}):
        work.chunk(word)
        await asyncio.sleep(0)
    work.complete("Hello")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "headers"),
    [({"stream": True}, {}), ({}, {"accept": "text/event-stream"})],
    ids=["asked in the body", "asked by Accept"],
)
async def test_run_sync_streams_chunks_and_then_one_outcome(
    body: dict[str, Any], headers: dict[str, str]
) -> None:
    client = await with_job(FakeClient(speak))
    async with gateway(client) as http:
        answer = await http.post(SYNC, json={"input": 1, **body}, headers=headers)
    (invocation,) = client.works
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["location"] == f"/v1/invocations/{invocation}"
    assert answer.headers["cache-control"] == "no-store"
    assert "traceparent" in answer.headers
    events = events_of(answer.text)
    assert events[:3] == [("chunk", "Hel"), ("chunk", "lo\n\n"), ("chunk", {"x": 1})]
    name, outcome = events[3]
    assert len(events) == 4
    assert name == "outcome"
    assert (outcome["id"], outcome["state"]) == (invocation, "completed")
    assert outcome["output"] == "Hello"


@pytest.mark.anyio
async def test_a_stream_that_fails_ends_with_the_failure_as_its_outcome() -> None:
    async def break_down(work: Work) -> None:
        work.chunk("Hel")
        work.fail("model_exited", "signal 9")

    async with gateway(await with_job(FakeClient(break_down))) as http:
        answer = await http.post(SYNC, json={"input": 1, "stream": True})
    (_, (name, outcome)) = events_of(answer.text)
    assert (name, outcome["state"], outcome["failure"]["code"]) == (
        "outcome", "failed", "model_exited"
    )  # fmt: skip


@pytest.mark.anyio
async def test_a_stream_ends_with_pending_when_its_wait_passes() -> None:
    async def stall(work: Work) -> None:
        work.chunk("Hel")

    client = await with_job(FakeClient(stall))
    async with gateway(client) as http:
        answer = await http.post(SYNC, json={"input": 1, "stream": True, "wait_s": 0.05})
    assert [name for name, _ in events_of(answer.text)] == ["chunk", "pending"]
    assert client.cancels == []


@pytest.mark.anyio
async def test_a_stream_whose_wait_passes_ends_with_what_is_wrong_then() -> None:
    class Unreadable(FakeClient):
        async def find(self, invocation: str) -> Any:
            raise EventUnreadable

    async with gateway(await with_job(Unreadable(worker=None))) as http:
        answer = await http.post(SYNC, json={"input": 1, "stream": True, "wait_s": 0.05})
    ((name, problem_),) = events_of(answer.text)
    assert (name, problem_["code"]) == ("problem", "event_unreadable")


@pytest.mark.anyio
async def test_a_refused_stream_is_a_problem_document_and_no_stream() -> None:
    async with gateway(await with_job(FakeClient())) as http:
        answer = await http.post(
            "/v1/inference_jobs/nope/run_sync", json={"input": 1, "stream": True}
        )
    assert (answer.status_code, problem(answer)["code"]) == (404, "job_not_found")


# -- clients that go away -------------------------------------------------------------------------


async def abandoned(client: FakeClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Send this and go away while its outcome or its stream is waited for; what was answered."""

    async def connect() -> Any:
        return client

    app = create_app(client.settings, connect=connect)
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    def waits() -> bool:
        return bool(sent) or any(work.waiter.futures for work in client.works.values())

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await until(waits, "it waits")
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": SYNC, "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"gateway")],
    }  # fmt: skip
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await app(scope, receive, send)  # type: ignore[arg-type]  # plain dicts
    return sent


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_when_it_asked_for_that(stream: bool) -> None:
    client = await with_job(FakeClient(worker=None))
    body = {"input": 1, "stream": stream, "cancel_on_disconnect": True}
    await abandoned(client, body)
    (invocation,) = client.works
    assert client.cancels == [(invocation, "the client disconnected")]


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_nothing_unless_it_asked(stream: bool) -> None:
    client = await with_job(FakeClient(worker=None))
    await abandoned(client, {"input": 1, "stream": stream, "wait_s": 0.1})
    assert client.cancels == []
    assert [work.view.state for work in client.works.values()] == ["queued"]


@pytest.mark.anyio
async def test_a_chunk_that_was_not_sent_is_a_gap_in_the_stream() -> None:
    async def skip(work: Work) -> None:
        work.chunk("Hel")
        work.chunk(Gap(1))
        work.complete("Hello")

    async with gateway(await with_job(FakeClient(skip))) as http:
        answer = await http.post(SYNC, json={"input": 1, "stream": True})
    chunk, gap, (name, outcome) = events_of(answer.text)
    assert chunk == ("chunk", "Hel")
    assert (gap[0], gap[1]["chunk"]) == ("gap", 1)
    assert "whole output" in gap[1]["detail"]
    assert (name, outcome["output"]) == ("outcome", "Hello")


@pytest.mark.anyio
async def test_the_outcome_of_an_expired_invocation_says_why() -> None:
    async def expire(work: Work) -> None:
        work.expire()

    async with gateway(await with_job(FakeClient(expire))) as http:
        answer = await http.post(SYNC, json={"input": 1, "stream": True})
    ((name, outcome),) = events_of(answer.text)
    assert (name, outcome["state"]) == ("outcome", "expired")
    assert "time-to-live" in outcome["reason"]
