"""While one waits for an outcome, ``jetfleet run`` says what that waits for."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from jetfleet.causes import READY, Cause
from jetfleet.commands import hints
from jetfleet.errors import BrokerUnavailable


@pytest.mark.anyio
async def test_each_reason_is_said_once_and_silence_of_the_broker_is_borne(monkeypatch, capsys):
    monkeypatch.setattr(hints, "FIRST_S", 0.001)
    monkeypatch.setattr(hints, "AGAIN_S", 0.001)
    nobody, coming = Cause("no_worker", "no worker has joined"), Cause("preparing", "it comes")
    answers = iter([None, nobody, nobody, None, READY, nobody, coming, READY])
    asked = asyncio.Event()

    async def waits_for(job, since):
        assert job == "echo"
        answer = next(answers, asked)
        if answer is asked:
            asked.set()
            await asyncio.Event().wait()
        if answer is None:
            raise BrokerUnavailable
        return answer

    watch = SimpleNamespace(waits_for=waits_for)
    monkeypatch.setattr("jetfleet.evidence.Watch", lambda _client: watch)
    async with hints.explaining(SimpleNamespace(), "echo"):
        async with asyncio.timeout(10):
            await asked.wait()
    assert capsys.readouterr().err.splitlines() == [
        "echo: still waiting: no worker has joined",
        "echo: still waiting: it comes",
    ]
