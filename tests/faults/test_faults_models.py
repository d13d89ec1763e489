"""Models that raise, exit, hang, return what is not JSON, print megabytes; inputs that kill."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from story import all_ended

from jetfleet.events import Failure, InvocationFailed
from stack import Gateway, Stack, open_job, stack, started
from waiting import WITHIN_S

RETRY_LIMIT = 2
LIMIT_S = 15.0  # generous: the longest failure takes its retries and their back-off
DETAIL = 16_000


@pytest.fixture(scope="module")
async def fleet(anyio_backend: str, tmp_path_factory: Any) -> AsyncIterator[Stack]:
    async with stack(tmp_path_factory.mktemp("models") / "stack") as running:
        yield running


@pytest.fixture(scope="module")
async def gateway(fleet: Stack) -> Gateway:
    """A gateway; one job, one replica, one call at a time: a failure would block what follows."""
    served = await fleet.gateway()
    client = await fleet.client()
    await served.ready()
    await open_job(client, "job", "faulty.py:misbehave", retry_limit=RETRY_LIMIT)
    return served


async def answer(gateway: Gateway, value: str, **limits: Any) -> httpx.Response:
    """The answer, which must be there in bounded time; the next invocation must work."""
    began = time.monotonic()
    said = await gateway.run_sync("job", value, **limits)
    took = time.monotonic() - began
    following = await gateway.run_sync("job", "fine")
    assert took < LIMIT_S
    assert (following.status_code, following.json().get("output")) == (200, "fine"), following.text
    return said


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "limits", "failure"),
    [
        ("raise", {}, (502, "model_error", "a trouble of mine")),
        ("exit", {}, (502, "model_exited", "status 7")),
        ("hang", {"timeout_s": 1}, (504, "timeout", "timeout_s")),
        ("not json", {}, (502, "invalid_output", "JSON")),
        ("megabytes, then exit", {}, (502, "model_exited", "status 8")),
        ("a huge answer", {}, (502, "invalid_output", "bytes")),
    ],
)
async def test_a_model_that_fails_gives_a_typed_failure_and_the_next_call_works(
    gateway: Gateway, value: str, limits: dict[str, Any], failure: tuple[int, str, str]
) -> None:
    status, code, words = failure
    said = await answer(gateway, value, **limits)
    problem = said.json()
    assert said.status_code == status, said.text
    assert said.headers["content-type"] == "application/problem+json"
    assert problem["code"] == "invocation_failed"
    assert problem["failure"]["code"] == code
    assert words in problem["failure"]["message"]
    assert len(said.content) < DETAIL


@pytest.mark.anyio
async def test_a_model_that_prints_megabytes_is_served_like_any_other(gateway: Gateway) -> None:
    said = await answer(gateway, "megabytes")
    assert (said.status_code, said.json()["output"]) == (200, "said")


@pytest.mark.anyio
async def test_an_input_that_kills_its_model_each_time_ends_failed_with_its_history(
    fleet: Stack, gateway: Gateway
) -> None:
    client = await fleet.client()
    handle = await client.submit("job", "exit")
    outcome = await handle.outcome(wait_s=LIMIT_S)
    assert await client.run("job", "fine", wait_s=WITHIN_S) == "fine"
    await all_ended(client, [handle.invocation])
    assert isinstance(outcome, InvocationFailed)
    error: Failure = outcome.data.error
    assert error.code == "model_exited"
    assert len(error.history) == outcome.data.attempt == RETRY_LIMIT + 1
    assert all("status 7" in line for line in error.history)
    assert "last words" in error.detail


@pytest.mark.anyio
async def test_an_input_whose_workers_die_each_time_exhausts_its_attempts(tmp_path: Path) -> None:
    async with stack(tmp_path / "stack", agents=()) as own:
        client = await own.client()
        await open_job(
            client, "job", "faulty.py:until_file", ready=False, retry_limit=1, ack_wait_s=1
        )
        poison = await client.submit("job", str(tmp_path / "never"))
        for attempt in (1, 2):
            agent = own.agent("a")
            await started(client, poison.invocation, attempt=attempt)
            agent.kill()
        own.agent("a")
        outcome = await poison.outcome(wait_s=WITHIN_S)
        (tmp_path / "now").touch()
        after = await client.run("job", str(tmp_path / "now"), wait_s=WITHIN_S)
        await all_ended(client, [poison.invocation])
    assert isinstance(outcome, InvocationFailed)
    assert (outcome.data.error.code, outcome.data.attempt) == ("attempts_exhausted", 2)
    assert after == "released"
