"""Pulls that go wrong: the cause in words, others unaffected, the next worker tried."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from containers.engine import Engine
from containers.images import Images
from containers.registry import PASSWORD, USER, Registry
from containers.serving import agent, open_image, serving
from jetfleet.events import ReplicaAssigned, ReplicaFailed, ReplicaPreparing
from jetfleet.specs import Container, ModelSpec
from jetfleet.streams import FLEET
from jetfleet_agent.runtimes import Place, StartFailed
from jetfleet_agent.runtimes import pull as pull_module
from jetfleet_agent.runtimes.docker import DockerRuntime
from stack import fleet_says

pytestmark = pytest.mark.anyio


@pytest.fixture
async def runtime(
    engine: Engine, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DockerRuntime]:
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    engine.clear()
    yield DockerRuntime()


def place(image: str, reports: list[str] | None = None, **container: Any) -> Place:
    model = ModelSpec(
        name="m", runtime="docker", image=image, function="/app/model.py:echo",
        container=Container(**container),
    )  # fmt: skip
    said: list[str] = [] if reports is None else reports
    return Place("r1", "default", "j", "owner", model, (), said.append)


async def failure(runtime: DockerRuntime, image: str, **container: Any) -> str:
    with pytest.raises(StartFailed) as caught:
        await runtime._image(place(image, **container))
    return caught.value.reason


@contextmanager
def away(registry: Registry) -> Iterator[None]:
    """Within it the registry does not answer."""
    registry.stop()
    try:
        yield
    finally:
        registry.start()


async def test_a_pull_reports_what_it_does(runtime: DockerRuntime, images: Images) -> None:
    reports: list[str] = []
    await runtime._image(place(images["function"], reports))
    assert reports[0] == "pulling"


async def test_an_image_that_is_here_is_not_pulled_again(
    runtime: DockerRuntime, images: Images, registry: Registry
) -> None:
    pinned = images.pushed("function").pinned
    first = await runtime._image(place(pinned))
    with away(registry):
        reports: list[str] = []
        assert (await runtime._image(place(pinned, reports)))["Id"] == first["Id"]
        assert reports == []


async def test_a_moving_tag_without_its_registry_is_served_from_here(
    runtime: DockerRuntime, images: Images, registry: Registry
) -> None:
    name = images["function"]
    first = await runtime._image(place(name))
    with away(registry):
        assert (await runtime._image(place(name)))["Id"] == first["Id"]


async def test_a_missing_image(runtime: DockerRuntime, registry: Registry) -> None:
    said = await failure(runtime, f"{registry.address}/nothing:1")
    assert "does not have it" in said


async def test_a_digest_that_is_not_there(runtime: DockerRuntime, images: Images) -> None:
    repository = images["function"].rpartition(":")[0]
    said = await failure(runtime, f"{repository}@sha256:{'0' * 64}")
    assert "does not have it" in said


async def test_a_dead_registry(runtime: DockerRuntime, images: Images, registry: Registry) -> None:
    name = images["function"]
    with away(registry):
        assert "cannot be reached" in await failure(runtime, name)


async def test_a_private_registry_takes_the_login_of_the_agents_user(
    runtime: DockerRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = Registry(tmp_path / "private", private=True)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    private.start()
    try:
        name = Images(private)["function"]
        assert "docker login" in await failure(runtime, name)
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        (tmp_path / "config.json").write_text(
            json.dumps({"auths": {private.address: {"auth": login}}})
        )
        await runtime._image(place(name))
    finally:
        private.close()


async def test_a_registry_that_stalls(
    runtime: DockerRuntime, images: Images, registry: Registry
) -> None:
    name = images["function"]
    runtime.stall_s = 1.0
    registry.pause()
    try:
        began = time.monotonic()
        assert "stalled" in await failure(runtime, name)
        assert time.monotonic() - began < 20
    finally:
        registry.resume()


async def test_a_damaged_layer(runtime: DockerRuntime, images: Images, registry: Registry) -> None:
    pushed = images.pushed("function")
    blob = registry.blob(pushed.layers[-1])
    whole = blob.read_bytes()
    blob.write_bytes(bytes(reversed(whole)))
    try:
        assert "damaged" in await failure(runtime, pushed.reference)
    finally:
        blob.write_bytes(whole)
    await runtime._image(place(pushed.reference))


async def test_a_full_disk(
    runtime: DockerRuntime, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage("/")._replace(free=10 * 1024**2)
    monkeypatch.setattr(pull_module.shutil, "disk_usage", lambda _: full)
    said = await failure(runtime, images["function"])
    assert "no room to pull" in said
    assert "10 MiB are free" in said


async def test_an_image_over_its_cap(runtime: DockerRuntime, images: Images) -> None:
    said = await failure(runtime, images["function"], max_image_mib=5)
    assert "max_image_mib allows 5" in said


async def test_an_image_that_unpacks_to_more_than_its_cap_is_removed_again(
    runtime: DockerRuntime, images: Images, engine: Engine
) -> None:
    said = await failure(runtime, images["function"], max_image_mib=40)
    assert "max_image_mib allows 40" in said
    assert engine.client.images.list() == []


async def test_a_pull_that_is_not_wanted_any_more_ends(
    runtime: DockerRuntime, images: Images, registry: Registry, engine: Engine
) -> None:
    name = images["function"]
    registry.pause()
    try:
        pulling = asyncio.ensure_future(runtime._image(place(name)))
        await asyncio.wait({pulling}, timeout=0.5)
        pulling.cancel()
        await asyncio.wait({pulling}, timeout=2)
        assert pulling.cancelled()
    finally:
        registry.resume()


async def test_a_worker_that_cannot_get_the_image_hands_the_job_to_the_next(
    tmp_path: Path, engine: Engine, images: Images
) -> None:
    async with serving(tmp_path / "stack", engine, agents=()) as (running, client):
        # A worker with an engine that is not there; and a job of another kind that it serves well.
        running.agent("a", environment={"DOCKER_HOST": "unix:///nothing/docker.sock"})
        await open_image(
            client, "job", images["function"], function="/app/model.py:echo", ready=False
        )
        failed = await fleet_says(client, ReplicaFailed, worker="a", job="job", within_s=120)
        assert "Docker engine" in failed.event.data.reason
        agent(running, engine, "b")
        assigned = await fleet_says(client, ReplicaAssigned, worker="b", job="job", within_s=60)
        assert {c.worker for c in assigned.event.data.why.candidates} == {"a", "b"}
        assert await client.run("job", 1, wait_s=60) == 1
        stages = [
            r.event.data.stage async for r in client.events(FLEET)
            if isinstance(r.event, ReplicaPreparing) and r.event.data.worker == "b"
        ]  # fmt: skip
        assert "starting" in stages
