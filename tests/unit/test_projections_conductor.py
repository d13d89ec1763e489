"""Rounds of a conductor whose own words come back to it when the test says."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from given import assigned, at, created, fleet, job, joined, lost, registry
from jetfleet import subjects
from jetfleet.events import decode
from jetfleet.log import Record
from jetfleet.settings import Settings
from jetfleet.stamp import Stamp
from jetfleet.streams import FLEET
from jetfleet_projections.conductor import Conductor
from jetfleet_projections.freshness import Freshness
from jetfleet_projections.queue_scan import Queued
from jetfleet_projections.reaper import Reaper

pytestmark = pytest.mark.anyio
ECHO = job("echo")


class Broker:
    """Answers at once; keeps what is stored, and delivers nothing by itself."""

    connected = True

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.stored: list[tuple[str, bytes]] = []

    async def api(self, verb: str, *_: Any, **__: Any) -> dict[str, Any]:
        # Ends of logs at 0: all is folded. All was delivered to somebody.
        return {"state": {"last_seq": 0}, "config": {}, "delivered": {"stream_seq": 99}}

    async def publish(self, *_: Any) -> None:
        pass

    async def store(self, subject: str, body: bytes, **_: Any) -> Any:
        self.seq += 1
        self.stored.append((subject, body))
        return SimpleNamespace(seq=self.seq)


async def test_nothing_is_assigned_to_a_worker_that_was_just_declared_lost():
    state = fleet(joined("w1"), joined("w2", memory_mib=1000))
    broker = Broker(state.seq)
    conductor = Conductor(broker, Settings())
    conductor.fleet, conductor.registry = state, registry(created(ECHO))
    conductor._heard["w1"] = asyncio.get_running_loop().time() - 100
    await conductor._round()
    await conductor._round()  # it hears nothing of what it said
    assert [subject for subject, _ in broker.stored][:1] == [subjects.fleet("w1", "lost")]
    assert {subject for subject, _ in broker.stored} == {subjects.fleet("w1", "lost")}
    (subject, body), event = broker.stored[0], decode(broker.stored[0][1])
    conductor._fold(Record(FLEET, state.seq + 1, subject, event.time, body, event))
    broker.stored.clear()
    await conductor._round()
    assert [subject for subject, _ in broker.stored] == [
        subjects.control("default", "echo", "assigned", "w2")
    ]


async def test_a_replica_assigned_to_a_worker_as_it_was_lost_keeps_no_work_waiting():
    item = Queued(0, 7, "default", "echo", "normal", "i7", "e", "o", at(0), None)
    ghost = fleet(joined("w1"), lost("w1"), assigned("r1", "w1", ECHO))
    there = fleet(joined("w1"), assigned("r1", "w1", ECHO))
    for state, ends in ((ghost, True), (there, False)):
        broker = Broker(0)
        fresh = Freshness(broker, lambda: (0, 0))
        reaper = Reaper(
            broker, Settings(), Stamp("conductor/1"), registry, lambda at=state: at, fresh
        )
        assert await reaper._nobody_has(item) is ends
