"""Agents and engines that die under running containers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from containers.engine import Engine
from containers.images import Images
from containers.serving import agent, open_image, serving
from jetfleet.events import ReplicaReady, WorkerJoined, WorkerLost
from jetfleet.streams import FLEET
from stack import fleet_says, position
from waiting import until

pytestmark = pytest.mark.anyio
ADOPTED_S = 2.0


def containers(engine: Engine) -> dict[str, str]:
    """Id to the time of its start, of what runs."""
    return {c.id: c.attrs["State"]["StartedAt"] for c in engine.client.containers.list()}


@pytest.mark.parametrize("image", ["function", "sagemaker"])
async def test_a_killed_agent_that_comes_back_goes_on_with_its_containers(
    tmp_path: Path, engine: Engine, images: Images, image: str
) -> None:
    async with serving(tmp_path / "stack", engine, agents=()) as (running, client):
        first = agent(running, engine)
        if image == "function":
            await open_image(client, "job", images[image], function="/app/model.py:echo")
        else:
            await open_image(client, "job", images[image], contract="sagemaker")
        assert await client.run("job", {"n": 1}, wait_s=30) == {"n": 1}
        before = containers(engine)
        first.kill()
        start = await position(client, FLEET) + 1
        began = time.monotonic()
        agent(running, engine)
        assert await client.run("job", {"n": 2}, wait_s=30) == {"n": 2}
        took = time.monotonic() - began
        ready = await fleet_says(client, ReplicaReady, job="job", start=start)
        assert ready.event.data.adopted
        assert containers(engine) == before
        assert took < ADOPTED_S


async def test_what_was_given_to_others_meanwhile_is_not_adopted(
    tmp_path: Path, engine: Engine, images: Images
) -> None:
    async with serving(tmp_path / "stack", engine, agents=()) as (running, client):
        first = agent(running, engine)
        await open_image(client, "job", images["function"], function="/app/model.py:echo")
        first.kill()
        await fleet_says(client, WorkerLost, worker="a")
        agent(running, engine, "b")
        await fleet_says(client, ReplicaReady, worker="b", job="job")
        agent(running, engine)
        await fleet_says(client, WorkerJoined, start=await position(client, FLEET), worker="a")
        await until(lambda: len(containers(engine)) == 1, "the old container is removed")
        assert await client.run("job", 1, wait_s=30) == 1


async def test_what_was_given_anew_to_the_same_worker_is_not_adopted(
    tmp_path: Path, engine: Engine, images: Images
) -> None:
    async with serving(tmp_path / "stack", engine, agents=()) as (running, client):
        first = agent(running, engine)
        await open_image(client, "job", images["function"], function="/app/model.py:echo")
        (before,) = containers(engine)
        first.kill()
        lost = await fleet_says(client, WorkerLost, worker="a")
        agent(running, engine)
        await fleet_says(client, ReplicaReady, worker="a", job="job", start=lost.seq)
        await until(lambda: len(containers(engine)) == 1, "one is wanted and one is there")
        assert before not in containers(engine)
        assert await client.run("job", 1, wait_s=30) == 1


async def test_a_restarted_engine_leaves_no_orphan_and_jobs_serve_again(
    tmp_path: Path, engine: Engine, images: Images
) -> None:
    async with serving(tmp_path / "stack", engine) as (_, client):
        await open_image(client, "job", images["function"], function="/app/model.py:echo")
        assert await client.run("job", 1, wait_s=30) == 1
        before = containers(engine)
        await asyncio.to_thread(engine.restart)
        assert await client.run("job", 2, wait_s=60) == 2
        after = containers(engine)
        assert len(after) == 1
        assert not set(after) & set(before)
        assert len(engine.client.containers.list(all=True)) == 1
