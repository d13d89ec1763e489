"""`jetfleet gateway` as a process: starting, stopping, and what a client on a socket sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from test_gateway_http import stored
from test_gateway_worker import Task, echo, register, serving

from conftest import free_ports, new_broker, settings_for
from jetfleet.client import Client
from jetfleet.events import InvocationCancelRequested
from jetfleet.server import Broker
from jetfleet.setup import ensure_streams
from waiting import until

SYNC = "/v1/inference_jobs/echo/run_sync"


@dataclass
class Gateway:
    """A gateway process and a client of it."""

    process: asyncio.subprocess.Process
    url: str
    http: httpx.AsyncClient

    async def until(self, path: str, status: int) -> httpx.Response:
        """The answer, once it has this status."""

        async def answers() -> httpx.Response | None:
            answer = await self.http.get(path)
            return answer if answer.status_code == status else None

        return await until(answers, f"{path} answers {status}")

    async def stop(self, with_signal: int = signal.SIGTERM) -> int:
        self.process.send_signal(with_signal)
        return await asyncio.wait_for(self.process.wait(), 15)


@asynccontextmanager
async def gateway(nats_url: str, data_dir: Path, *options: str) -> AsyncIterator[Gateway]:
    """A gateway process on a free port."""
    environment = {**os.environ, "JETFLEET_NATS_URL": nats_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jetfleet", "--json", "gateway", "--port", "0",
        "--data-dir", str(data_dir), *options,
        env=environment, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        url = json.loads(line)["url"]
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            yield Gateway(process, url, http)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # or its pipe warns when collected


@pytest.mark.anyio
async def test_it_starts_without_a_broker_answers_503_and_serves_once_there_is_one(
    tmp_path: Path,
) -> None:
    broker = new_broker(tmp_path / "broker")
    broker.prepare()
    async with gateway(broker.url, broker.data_dir) as served:
        assert (await served.http.get("/healthz")).status_code == 200
        refused = await served.http.post(SYNC, json={"input": 1})
        assert (refused.status_code, refused.json()["code"]) == (503, "broker_unavailable")
        await broker.start()
        try:
            await ensure_streams(settings_for(broker))
            await register(broker)
            await served.until("/readyz", 200)
            async with serving(broker):
                assert (await served.http.post(SYNC, json={"input": 1})).json()["output"] == 1
        finally:
            await broker.stop()


@pytest.mark.anyio
async def test_it_survives_a_broker_restart_and_says_503_quickly_meanwhile(broker: Broker) -> None:
    await register(broker)
    async with gateway(broker.url, broker.data_dir) as served:
        await served.until("/readyz", 200)
        broker.kill()
        await served.until("/readyz", 503)
        began = time.monotonic()
        away = await served.http.post(SYNC, json={"input": 1})
        took = time.monotonic() - began
        known = await served.http.get("/v1/inference_jobs/echo")
        await broker.start()
        await served.until("/readyz", 200)
        async with serving(broker):
            back = await served.http.post(SYNC, json={"input": 2})
    assert (away.status_code, known.status_code) == (503, 200)
    assert "retry-after" in away.headers
    assert took < 1
    assert back.json()["output"] == 2


@pytest.mark.anyio
async def test_an_invocation_that_waits_over_a_broker_restart_is_answered(broker: Broker) -> None:
    await register(broker)
    async with gateway(broker.url, broker.data_dir) as served:
        await served.until("/readyz", 200)
        waiting = asyncio.create_task(served.http.post(SYNC, json={"input": 1}))
        await until(lambda: stored(broker), "the log has it")
        broker.kill()
        await broker.start()
        async with serving(broker):
            answer = await waiting
    assert (answer.status_code, answer.json()["output"]) == (200, 1)


@pytest.mark.anyio
async def test_sigterm_lets_open_requests_finish(broker: Broker) -> None:
    await register(broker)
    taken, release = asyncio.Event(), asyncio.Event()

    async def slow(task: Task) -> object:
        taken.set()
        await release.wait()
        return await echo(task)

    async with gateway(broker.url, broker.data_dir) as served, serving(broker, slow):
        await served.until("/readyz", 200)
        request = asyncio.create_task(served.http.post(SYNC, json={"input": 1}))
        await taken.wait()
        stopping = asyncio.create_task(served.stop())
        await until(lambda: refused(served.url), "it takes no more")
        release.set()
        answer = await request
        assert await stopping == 0
    assert (answer.status_code, answer.json()["output"]) == (200, 1)


async def refused(url: str) -> bool:
    """Whether nothing accepts connections there any more."""
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return True
    writer.close()
    return False


@pytest.mark.anyio
async def test_a_stream_arrives_piece_by_piece_and_its_client_may_go_away(broker: Broker) -> None:
    await register(broker)
    may_go_on = asyncio.Event()

    async def halting(task: Task) -> object:
        await task.chunk("Hel")
        await may_go_on.wait()
        await task.chunk("lo")
        return "Hello"

    async with gateway(broker.url, broker.data_dir) as served, serving(broker, halting):
        await served.until("/readyz", 200)
        body = {"input": 1, "stream": True}
        async with served.http.stream("POST", SYNC, json=body) as stream:
            lines = stream.aiter_lines()
            assert [await anext(lines) for _ in range(3)] == ["event: chunk", 'data: "Hel"', ""]
            where = stream.headers["location"]
        # That client is gone; nothing is cancelled, and another one sees the end.
        async with served.http.stream("GET", f"{where}/stream") as stream:
            may_go_on.set()
            events = [line async for line in stream.aiter_lines() if line.startswith("event")]
        shown = (await served.http.get(where)).json()
    assert events[-1] == "event: outcome"
    assert (shown["state"], shown["output"]) == ("completed", "Hello")


@pytest.mark.anyio
async def test_a_client_that_asked_for_it_cancels_by_going_away(broker: Broker) -> None:
    await register(broker)
    body = {"input": 1, "cancel_on_disconnect": True}
    async with gateway(broker.url, broker.data_dir) as served:
        await served.until("/readyz", 200)
        with contextlib.suppress(httpx.ReadTimeout):
            await served.http.post(SYNC, json=body, timeout=0.5)
        async with await Client.connect(settings_for(broker), role="operator") as operator:
            async with asyncio.timeout(5):
                async for record in operator.events(follow=True):
                    if isinstance(record.event, InvocationCancelRequested):
                        break
    assert record.event.data.reason == "the client disconnected"


@pytest.mark.anyio
async def test_an_oversize_upload_gets_its_answer_and_no_reset(broker: Broker) -> None:
    async with gateway(broker.url, broker.data_dir) as served:
        await served.until("/readyz", 200)
        large = b'{"input": "' + b"x" * (66 * 1024**2) + b'"}'
        headers = {"content-type": "application/json"}
        answer = await served.http.post(SYNC, content=large, headers=headers)
        again = await served.http.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert again.status_code == 200


@pytest.mark.anyio
async def test_a_taken_port_is_said_to_be_taken(broker: Broker) -> None:
    (port,) = free_ports(1)
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", port)
    async with server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "jetfleet", "gateway", "--port", str(port),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert f"port {port}" in said.decode()
    assert "--port" in said.decode()
