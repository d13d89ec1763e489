"""The rights on a job are renewed, whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from jetfleet_agent import links
from jetfleet_agent.links import JobLink, JobToken, NotAssigned
from waiting import until

pytestmark = pytest.mark.anyio


class Door:
    """A connection that counts how often it was opened anew."""

    def __init__(self) -> None:
        self.refreshed = 0

    async def refresh(self) -> None:
        self.refreshed += 1
        if self.refreshed == 1:
            raise OSError("no route to host")

    async def close(self) -> None:
        pass


async def test_a_renewal_that_fails_is_logged_and_made_again(monkeypatch, caplog):
    answers: list[Any] = [KeyError("token"), ("second", 0), ("third", time.time() + 60)]

    async def ask(*_: object) -> tuple[str, float]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(links, "RENEW_LEAST_S", 0.01)
    monkeypatch.setattr(links, "_ask", ask)
    token = JobToken(None, "first", 0)
    link = JobLink(Door(), token)
    link._renewal = asyncio.create_task(link._renew(None, "w1", "default", "echo"))
    await until(lambda: link.connection.refreshed == 2, "renewed after all")
    assert token.text == "third"
    assert caplog.text.count("the rights on echo are not renewed yet") == 2
    assert "KeyError" in caplog.text and "no route to host" in caplog.text
    await link.close()


async def test_what_is_not_assigned_any_more_is_not_renewed(monkeypatch):
    async def ask(*_: object) -> tuple[str, float]:
        raise NotAssigned

    monkeypatch.setattr(links, "RENEW_LEAST_S", 0.01)
    monkeypatch.setattr(links, "_ask", ask)
    link = JobLink(Door(), JobToken(None, "first", 0))
    async with asyncio.timeout(5):
        await link._renew(None, "w1", "default", "echo")
    assert link.connection.refreshed == 0
