"""Starting without a broker, health, the guard, and event streams on their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from test_gateway_fake import FakeClient, gateway, problem, serving, with_job

from jetfleet.errors import BrokerUnavailable
from jetfleet.settings import Settings
from jetfleet_gateway import door
from jetfleet_gateway.app import create_app
from jetfleet_gateway.sse import EventStream, event


@pytest.mark.anyio
async def test_the_gateway_answers_before_the_broker_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "RETRY_S", 0.01)
    client = await with_job(FakeClient())
    broker_is_up = asyncio.Event()

    async def connect() -> Any:
        if not broker_is_up.is_set():
            raise BrokerUnavailable("no broker answers")
        return client

    app = create_app(Settings(), connect=connect)
    async with serving(app) as http:
        health = await http.get("/healthz")
        before = [
            await http.get("/readyz"),
            await http.get("/v1/models"),
            await http.post("/v1/inference_jobs/echo/run", json={"input": 1}),
        ]
        broker_is_up.set()
        await asyncio.wait_for(app.door.opened.wait(), 5)
        ready = await http.get("/readyz")
        answer = await http.post("/v1/inference_jobs/echo/run_sync", json={"input": 1})
    assert health.json() == {"status": "ok"}
    for each in before:
        assert (each.status_code, problem(each)["code"]) == (503, "broker_unavailable")
    assert ready.json() == {"status": "ready", "registry_seq": 2}
    assert answer.status_code == 200
    assert client.closed


@pytest.mark.anyio
async def test_a_gateway_that_never_connected_stops_without_waiting() -> None:
    async def connect() -> Any:
        await asyncio.Event().wait()

    async with asyncio.timeout(2):
        async with serving(create_app(Settings(), connect=connect)) as http:
            assert (await http.get("/healthz")).status_code == 200


@pytest.mark.anyio
async def test_readiness_ends_when_the_broker_goes_away() -> None:
    client = FakeClient()
    async with gateway(client) as http:
        ready = await http.get("/readyz")
        client.connected = False
        cut_off = await http.get("/readyz")
    assert (ready.status_code, cut_off.status_code) == (200, 503)


# -- the guard ------------------------------------------------------------------------------------

DISABLE = "/v1/inference_jobs/echo/disable"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"},
     {"sec-fetch-site": "same-site", "origin": "http://other.gateway"}],
)  # fmt: skip
async def test_a_page_of_another_site_changes_nothing(headers: dict[str, str]) -> None:
    client = await with_job(FakeClient())
    async with gateway(client) as http:
        answer = await http.post(DISABLE, headers=headers)
        read = await http.get("/v1/models", headers=headers)
    assert (answer.status_code, problem(answer)["code"]) == (403, "foreign_origin")
    assert client.registry.jobs("default")[0].enabled
    # Reading is harmless: without CORS headers the page never sees the answer.
    assert read.status_code == 200
    assert "access-control-allow-origin" not in read.headers


@pytest.mark.anyio
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://gateway"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
)
async def test_programs_and_our_own_pages_may_act(headers: dict[str, str]) -> None:
    async with gateway(await with_job(FakeClient())) as http:
        assert (await http.post(DISABLE, headers=headers)).status_code == 200


@pytest.mark.anyio
async def test_on_loopback_only_known_host_names_are_answered() -> None:
    async with gateway(FakeClient(), hosts=["jetfleet.test"]) as http:
        answers = {
            host: (await http.get("/healthz", headers={"host": host})).status_code
            for host in (
                "localhost:8787", "127.0.0.1", "[::1]:8787", "jetfleet.test", "evil.example",
                "[::1", "",
            )
        }  # fmt: skip
    assert answers == {
        "localhost:8787": 200, "127.0.0.1": 200, "[::1]:8787": 200, "jetfleet.test": 200,
        "evil.example": 421, "[::1": 421, "": 421,
    }  # fmt: skip


# -- event streams --------------------------------------------------------------------------------


async def sent_by(stream: EventStream, *, leaves_with: bytes | None = None) -> list[bytes]:
    """The body pieces that a stream sends to a client that stays, or leaves when it gets this."""
    pieces: list[bytes] = []
    leaves = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            pieces.append(message["body"])
            if message["body"] == leaves_with:
                leaves.set()

    async with asyncio.timeout(5):
        await stream({"type": "http"}, receive, send)
    return pieces


@pytest.mark.anyio
async def test_a_silent_stream_is_kept_alive_by_comments() -> None:
    silence_s, keep_alive_s = 0.2, 0.02

    async def slow() -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(silence_s)  # this long it has nothing to say
        yield event("outcome", 1)

    began = time.monotonic()
    *comments, outcome, end = await sent_by(EventStream(slow(), keep_alive_s=keep_alive_s))
    most = (time.monotonic() - began) / keep_alive_s
    assert set(comments) == {b": keep-alive\n\n"}
    assert 2 <= len(comments) <= most
    assert (outcome, end) == (b"event: outcome\ndata: 1\n\n", b"")


@pytest.mark.anyio
async def test_an_error_in_a_stream_becomes_its_last_event() -> None:
    async def broken(error: Exception) -> AsyncGenerator[bytes, None]:
        yield event("chunk", "a")
        raise error

    ours = await sent_by(EventStream(broken(BrokerUnavailable("10.0.0.7 is down"))))
    defect = await sent_by(EventStream(broken(ZeroDivisionError("secret"))))
    assert b'"code":"broker_unavailable"' in ours[1]
    assert b"10.0.0.7" not in ours[1]
    assert ours[1].startswith(b"event: problem\n")
    assert b'"code":"internal_error"' in defect[1]
    assert b"secret" not in defect[1]


@pytest.mark.anyio
async def test_what_feeds_a_stream_is_closed_when_the_client_goes_away() -> None:
    closed, told = asyncio.Event(), asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            yield event("chunk", 1)
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def gone() -> None:
        told.set()

    chunk = event("chunk", 1)
    assert await sent_by(EventStream(endless(), on_gone=gone), leaves_with=chunk) == [chunk]
    assert closed.is_set()
    assert told.is_set()
