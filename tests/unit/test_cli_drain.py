"""``jetfleet worker drain`` waits as long as it said, whatever else happens on the worker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from jetfleet.commands import workers

pytestmark = pytest.mark.anyio
AT_WORK = {"worker": "w1", "state": "joined", "session": "s1", "joined_seq": 1}


class FakeClient:
    """A worker that says these verbs, and then something else again and again."""

    def __init__(self, *verbs: str) -> None:
        self.verbs = verbs
        self.connection = self

    async def publish(self, *_: Any) -> None:
        pass

    async def events(self, *_: Any, **__: Any) -> Any:
        for verb in self.verbs:
            yield self.record(verb, "s1")
        while True:
            await asyncio.sleep(0.01)
            yield self.record("left", "another")

    def record(self, verb: str, session: str) -> Any:
        data = SimpleNamespace(session=session)
        return SimpleNamespace(event=SimpleNamespace(type=f"jetfleet.worker.{verb}", data=data))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(workers, "ANSWER_S", 0.1)
    monkeypatch.setattr(workers, "AFTER_S", 0.1)


@pytest.mark.parametrize(
    ("state", "verbs", "words"),
    [
        ("joined", (), "has not answered"),
        ("joined", ("draining",), "has not left in time"),
        ("draining", (), "has not left in time"),
        ("joined", ("draining", "lost"), "was lost"),
    ],
)
async def test_a_worker_that_does_not_leave_is_given_up(state, verbs, words):
    async with asyncio.timeout(10):
        with pytest.raises(workers.WorkerSilent, match=words):
            await workers._drain(FakeClient(*verbs), "w1", {**AT_WORK, "state": state}, 0.1)


async def test_a_worker_that_leaves_is_waited_for(monkeypatch):
    async with asyncio.timeout(10):
        await workers._drain(FakeClient("draining", "left"), "w1", AT_WORK, None)
