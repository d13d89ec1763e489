"""A replica by itself: given up by its own watch, and looked after by nobody when that breaks."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from jetfleet.specs import JobSpec
from jetfleet_agent.replicas import Replica
from models.serving import function
from waiting import until

pytestmark = pytest.mark.anyio


def made(folder: Path) -> Replica:
    spec = JobSpec(name="j", model=function("echo"))
    return Replica(
        "r1", "default", spec, folder / "r1", lambda: None, 1024**2, "test", (), lambda _: None
    )


async def never(*_: object) -> None:
    raise AssertionError("it does not come back")


async def test_its_own_watch_may_end_it_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr("jetfleet_agent.replicas.RESTARTS", 0)
    replica, told = made(tmp_path), asyncio.Event()

    async def lost(gone: Replica) -> None:
        await gone.stop()
        await asyncio.sleep(0)  # where a cancellation would be heard
        told.set()

    await replica.start(lost, never)
    os.kill(replica.instance.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        await told.wait()
    assert (replica.session, replica.instance) == (None, None)
    assert not replica.workdir.exists()
    assert "1 times in a row" in replica.failure.reason


async def test_what_breaks_as_it_is_given_up_is_in_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("jetfleet_agent.replicas.RESTARTS", 0)
    replica = made(tmp_path)

    async def breaks(_: Replica) -> None:
        raise RuntimeError("this is broken")

    await replica.start(breaks, never)
    os.kill(replica.instance.pid, signal.SIGKILL)
    await until(lambda: "nobody looks after" in caplog.text, "it is said")
    assert "this is broken" in caplog.text
    await replica.stop()
