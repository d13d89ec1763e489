"""Engines of another kind: with NVIDIA's runtime (a stand-in), and with a disk that is full."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from containers.engine import Engine
from containers.images import Images
from containers.test_runtime import ask, back, lost
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet_agent.replicas import Replica
from jetfleet_agent.runtimes import StartFailed
from jetfleet_agent.runtimes.docker import docker_runtime

pytestmark = pytest.mark.anyio
GPU = "GPU-8f1c2d3e-0000-1111-2222-333344445555"


@pytest.fixture(autouse=True)
def needs_an_engine(engine: Engine) -> None:
    """Skipped, or failed in CI, where the session's engine cannot run."""


@contextmanager
def running(folder: Path) -> Iterator[Engine]:
    engine = Engine(folder)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


@asynccontextmanager
async def replica_on(
    engine: Engine, image: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any
) -> AsyncIterator[Replica]:
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    docker_runtime.cache_clear()
    gpus = fields.pop("gpus", ())
    model = ModelSpec(name="m", runtime="docker", image=image, **fields)
    replica = Replica(
        "r1", "default", JobSpec(name="j", model=model), folder, lambda: None, 1024**2, "owner",
        gpus, lambda _: None,
    )  # fmt: skip
    try:
        yield replica
    finally:
        await replica.stop()
        docker_runtime.cache_clear()


async def test_a_replica_gets_its_gpus_by_uuid(
    tmp_path: Path, tmp_path_factory: Any, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine hands device requests to this hook, by way of the container's environment."""
    hook = tmp_path / "bin/nvidia-container-runtime-hook"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\ncat > /dev/null\n")
    hook.chmod(hook.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{hook.parent}{os.pathsep}{os.environ['PATH']}")
    with running(tmp_path_factory.mktemp("g")) as engine:
        function = {"function": "/app/model.py:about", "gpus": (GPU,)}
        async with replica_on(
            engine, images["function"], tmp_path / "r", monkeypatch, **function
        ) as replica:
            await replica.start(lost, back)
            assert (await ask(replica, None))["env"]["NVIDIA_VISIBLE_DEVICES"] == GPU


async def test_an_engine_without_nvidias_runtime_says_what_is_missing(
    tmp_path: Path, engine: Engine, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = {"function": "/app/model.py:echo", "gpus": (GPU,)}
    async with replica_on(
        engine, images["function"], tmp_path / "r", monkeypatch, **function
    ) as replica:
        with pytest.raises(StartFailed, match="NVIDIA Container Toolkit"):
            await replica.start(lost, back)
    assert engine.client.containers.list(all=True) == []


@pytest.mark.parametrize(("reserve", "words"), [(1024, "no room to pull"), (0, "is full")])
async def test_a_disk_that_is_full_is_said_so(
    tmp_path: Path,
    tmp_path_factory: Any,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
    reserve: int,
    words: str,
) -> None:
    disk = tmp_path_factory.mktemp("d")
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
    await asyncio.to_thread(subprocess.run, mount, check=True)
    try:
        with running(disk) as engine:
            async with replica_on(
                engine, images["function"], tmp_path / "r", monkeypatch,
                function="/app/model.py:echo",
            ) as replica:  # fmt: skip
                docker_runtime().reserve_mib = reserve
                with pytest.raises(StartFailed, match=words):
                    await replica.start(lost, back)
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", str(disk)], check=True)
