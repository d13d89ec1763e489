"""A provider with a real broker: what it makes of what the log says when it comes, and goes."""

from __future__ import annotations

import asyncio
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import given
from capacity_made import subject_of
from inprocess import background, connected
from jetfleet.clock import utc_now
from jetfleet.events import (
    CapacityAccepted,
    CapacityOffered,
    CapacityRefused,
    CapacityRequested,
    CapacityStarted,
    CapacityStopped,
    Event,
    WorkerShape,
    encode,
)
from jetfleet_agent.providers import Start
from jetfleet_agent.providers.command import Commands
from jetfleet_agent.providers.provider import Provider, Terms
from stack import fleet_says
from waiting import until

pytestmark = pytest.mark.anyio
SHAPE = WorkerShape(memory_mib=4096)
TOOL = """#!{python}
import json, pathlib, sys
verb, told, there = sys.argv[1], json.load(sys.stdin), pathlib.Path({folder!r})
if verb == "list":
    print(json.dumps({{"workers": [path.name for path in there.iterdir()]}}))
elif told["worker"] == "cloud-bad":
    sys.exit("sold out" if verb == "start" else 0)
elif verb == "start":
    (there / told["worker"]).touch()
else:
    (there / told["worker"]).unlink(missing_ok=True)
"""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder in which a file is a machine."""
    folder = tmp_path / "machines"
    folder.mkdir()
    return folder


@asynccontextmanager
async def providing(settings: Any, there: Path, *, ends: bool = False) -> AsyncIterator[Provider]:
    """A running provider, which is allowed all that it does; it ends by itself, or as by a kill."""
    tool = there.parent / "tool"
    tool.write_text(TOOL.format(python=sys.executable, folder=str(there)))
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    async with connected(settings, "provider") as connection:
        provider = Provider(
            "cloud", settings, connection, Commands([str(tool)], "cloud", "f1", 30),
            Terms(SHAPE, 3, 60, 0, 0),
            lambda worker: Start(worker.worker, worker.request, worker.shape, ("agent",)),
        )  # fmt: skip
        if ends:
            running = asyncio.create_task(provider.run())
            yield provider
            await running
        else:
            async with background(provider.run()):
                yield provider
        assert connection.denied == []


def asked(worker: str, request: str, for_s: float = 600) -> Event:
    need = {"tenant": given.TENANT, "job": "echo", "replicas": 1, "resources": {}}
    data = {
        "request": request, "provider": "cloud", "count": 1, "workers": (worker,), "shape": SHAPE,
        "needs": (need,), "expires_at": utc_now() + timedelta(seconds=for_s), "why": given.WHY,
    }  # fmt: skip
    return CapacityRequested(**given.envelope(), data=data)


def accepted(worker: str, request: str) -> Event:
    data = {"provider": "cloud", "request": request, "workers": (worker,)}
    return CapacityAccepted(**given.envelope(), data=data)


async def test_it_finishes_what_it_left_when_it_died(client, settings, put, there):
    log = [
        asked("cloud-new", "q1"),
        asked("cloud-promised", "q2"), accepted("cloud-promised", "q2"),
        asked("cloud-late", "q3", -1),
        asked("cloud-overdue", "q4", -1), accepted("cloud-overdue", "q4"),
        asked("cloud-bad", "q5"),
    ]  # fmt: skip
    for event in log:
        await put.store(subject_of(event), encode(event))
    for machine in ("cloud-overdue", "cloud-orphan"):
        (there / machine).touch()
    async with providing(settings, there) as provider:
        await fleet_says(client, CapacityOffered, provider="cloud", most=3)
        await fleet_says(client, CapacityStarted, worker="cloud-promised")
        await fleet_says(client, CapacityAccepted, request="q1")
        await fleet_says(client, CapacityStarted, worker="cloud-new")
        late = await fleet_says(client, CapacityRefused, request="q3")
        assert late.event.data.reason == "nobody was there in time"
        overdue = await fleet_says(client, CapacityStopped, worker="cloud-overdue")
        assert overdue.event.data.reason.startswith("it did not join within ")
        bad = await fleet_says(client, CapacityRefused, request="q5")
        assert bad.event.data.reason == "start ended with status 1: sold out"

        def as_asked() -> bool:
            return {path.name for path in there.iterdir()} == {"cloud-new", "cloud-promised"}

        await until(as_asked, "the orphan is gone, and what was promised is there")
        assert sorted(provider.state.workers) == ["cloud-new", "cloud-promised"]


async def test_told_to_stop_it_offers_nothing_more_and_leaves_its_workers(
    client, settings, put, there
):
    async with providing(settings, there, ends=True) as provider:
        event = asked("cloud-1", "q1")
        await put.store(subject_of(event), encode(event))
        await fleet_says(client, CapacityStarted, worker="cloud-1")
        provider.stop.set()
        await fleet_says(client, CapacityOffered, provider="cloud", most=0)
    assert [path.name for path in there.iterdir()] == ["cloud-1"]
