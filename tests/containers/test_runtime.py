"""The Docker runtime alone: start, call, hardening, end, adoption, nothing left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from containers.engine import Engine
from containers.images import Images
from jetfleet.specs import Container, JobSpec, ModelSpec, Resources
from jetfleet_agent.contracts import Call, ModelExited
from jetfleet_agent.replicas import Replica
from jetfleet_agent.runtimes import StartFailed, owner_of
from jetfleet_agent.runtimes.docker import docker_runtime
from jetfleet_agent.runtimes.hardening import name_of
from waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def runtime(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    docker_runtime.cache_clear()
    yield docker_runtime()
    docker_runtime.cache_clear()


async def lost(replica: Replica) -> None:
    raise AssertionError(f"{replica.id} is lost: {replica.failure}")


async def back(replica: Replica, took_s: float) -> None:
    assert took_s > 0


class Replicas:
    """Replicas under test; all are stopped at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Replica] = []
        self.reports: list[str] = []

    def make(self, image: str, function: str = "/app/model.py:echo", **fields: Any) -> Replica:
        concurrency = fields.pop("concurrency", 1)
        model = ModelSpec(
            **{"name": "m", "runtime": "docker", "image": image, "function": function,
               "startup_timeout_s": 30, **fields}
        )  # fmt: skip
        spec = JobSpec(name="j", model=model, concurrency=concurrency)
        name = f"r{len(self.made)}-{id(self):x}"
        replica = Replica(
            name, "default", spec, self.folder / name, lambda: None, 1024**2,
            owner_of("w1", self.folder), (), self.reports.append,
        )  # fmt: skip
        self.made.append(replica)
        return replica

    async def started(self, *args: Any, **fields: Any) -> Replica:
        replica = self.make(*args, **fields)
        await replica.start(lost, back)
        return replica


@pytest.fixture
async def replicas(runtime: Any, tmp_path: Path, engine: Engine) -> AsyncIterator[Replicas]:
    made = Replicas(tmp_path)
    yield made
    await asyncio.gather(*(replica.stop() for replica in made.made))
    assert [c.name for c in engine.client.containers.list(all=True)] == []
    networks = {n.name for n in engine.client.networks.list()} - {"bridge", "host", "none"}
    assert networks == set()


async def ask(replica: Replica, value: Any, **options: Any) -> Any:
    return json.loads(
        await replica.session.invoke(Call("c", json.dumps(value).encode(), **options))
    )


async def test_a_function_in_a_container_answers(replicas: Replicas, images: Images) -> None:
    replica = await replicas.started(images["function"])
    assert await ask(replica, {"a": [1, None]}) == {"a": [1, None]}
    assert replica.instance.network.startswith("none")
    assert replica.instance.image.startswith("sha256:")


async def test_it_runs_as_nobody_without_our_environment(
    replicas: Replicas, images: Images
) -> None:
    replica = await replicas.started(images["function"], "/app/model.py:about", env={"A": "b"})
    about = await ask(replica, None)
    assert (about["uid"], about["gid"]) == (65534, 65534)
    assert about["env"]["A"] == "b"
    assert not [name for name in about["env"] if name.startswith("JETFLEET")]


async def test_a_generator_streams(replicas: Replicas, images: Images) -> None:
    replica = await replicas.started(images["function"], "/app/model.py:count")
    chunks: list[bytes] = []
    whole = await ask(replica, {"n": 3, "pause_s": 0.01}, stream=True, on_chunk=chunks.append)
    assert (whole, [json.loads(c) for c in chunks]) == ([0, 1, 2], [0, 1, 2])


async def test_an_end_in_a_call_is_told_and_it_is_started_again(
    replicas: Replicas, images: Images
) -> None:
    replica = await replicas.started(images["function"], "/app/model.py:leave")
    with pytest.raises(ModelExited) as caught:
        await ask(replica, 7)
    assert "status 7" in caught.value.message
    assert "last words" in caught.value.detail
    await until(lambda: replica.session is not None, "it is started again")
    assert replica.restarts == 1


async def test_a_function_that_cannot_be_loaded_says_why(
    replicas: Replicas, images: Images
) -> None:
    with pytest.raises(StartFailed, match="no function 'nothing'"):
        await replicas.started(images["function"], "/app/model.py:nothing")


async def test_a_file_that_the_image_lacks_is_said_so(replicas: Replicas, images: Images) -> None:
    with pytest.raises(StartFailed, match=r"there is no Python file /nothing/model.py"):
        await replicas.started(images["function"], "/nothing/model.py:echo")


async def test_more_memory_than_allowed_ends_it_with_the_reason(
    replicas: Replicas, images: Images
) -> None:
    replica = await replicas.started(
        images["hostile"], "/app/model.py:attack", resources=Resources(memory_mib=64)
    )
    with pytest.raises(ModelExited, match="memory"):
        await ask(replica, {"attack": "eat_memory"})


async def test_without_rights_on_namespaces_it_is_called_over_an_internal_network(
    replicas: Replicas, images: Images, runtime: Any
) -> None:
    runtime._enters = False
    replica = await replicas.started(images["function"])
    assert await ask(replica, 1) == 1
    assert replica.instance.network.startswith("internal")


async def test_a_model_that_may_has_a_network(replicas: Replicas, images: Images) -> None:
    replica = await replicas.started(images["function"], container=Container(network=True))
    assert await ask(replica, 1) == 1
    assert replica.instance.network.startswith("bridge")


async def test_a_cache_is_kept_for_the_next_container(
    replicas: Replicas, images: Images, engine: Engine
) -> None:
    cached = {"container": Container(cache="/cache"), "name": "cached"}
    attack = "/app/model.py:attack"
    first = await replicas.started(images["hostile"], attack, **cached)
    wrote = await ask(first, {"attack": "write", "paths": ["/cache/weights", "/app/x"]})
    assert wrote == {"/cache/weights": "written", "/app/x": "EROFS"}
    await first.stop()
    second = await replicas.started(images["hostile"], attack, **cached)
    assert (await ask(second, {"attack": "read", "paths": ["/cache/weights"]})) == {
        "/cache/weights": "hostile"
    }
    await second.stop()
    volume = engine.client.volumes.get("jetfleet-cache-default.cached")
    volume.remove()


async def test_volumes_of_an_image_are_read_and_not_written(
    replicas: Replicas, images: Images, engine: Engine
) -> None:
    """Else an image could fill the disk, by declaring a folder that everybody may write to."""
    attack = "/app/model.py:attack"
    replica = await replicas.started(images["volumes"], attack, name="volumes")
    paths = ["/app/x", "/var/tmp/x", "/cache/x", "/tmp/x"]
    assert await ask(replica, {"attack": "write", "paths": paths}) == {
        "/app/x": "EROFS", "/var/tmp/x": "EROFS", "/cache/x": "EROFS", "/tmp/x": "written",
    }  # fmt: skip
    await replica.stop()
    cached = await replicas.started(
        images["volumes"], attack, name="volumes", container=Container(cache="/cache")
    )
    wrote = await ask(cached, {"attack": "write", "paths": ["/cache/x", "/var/tmp/x"]})
    assert wrote == {"/cache/x": "written", "/var/tmp/x": "EROFS"}
    await cached.stop()
    (left,) = engine.client.volumes.list()
    assert left.name == "jetfleet-cache-default.volumes", "the image's went with the containers"
    left.remove()


@pytest.mark.parametrize("function", ["echo", "nap", "count"])
async def test_the_next_agent_goes_on_with_it(
    replicas: Replicas, images: Images, runtime: Any, engine: Engine, function: str
) -> None:
    first = await replicas.started(images["function"], f"/app/model.py:{function}")
    [before] = engine.client.containers.list()
    await first.session.close()  # what the death of its agent does to it
    again = Replica(
        first.id, "default", first.spec, first.workdir, lambda: None, 1024**2, first.owner, (),
        replicas.reports.append,
    )  # fmt: skip
    first._watch.cancel()
    first.instance = first.session = None
    replicas.made.append(again)
    assert await runtime.running() == {first.id}
    await again.start(lost, back, adopt=True)
    value, expected = {"echo": (5, 5), "nap": (0, 0), "count": ({"n": 1, "pause_s": 0}, [0])}[
        function
    ]
    assert await ask(again, value) == expected
    [after] = engine.client.containers.list()
    assert (before.id, before.attrs["State"]["StartedAt"]) == (
        after.id, after.attrs["State"]["StartedAt"],
    )  # fmt: skip
    assert after.name == name_of(first.id)


async def test_what_nobody_adopts_is_swept(
    replicas: Replicas, images: Images, runtime: Any, engine: Engine, tmp_path: Path
) -> None:
    replica = await replicas.started(images["function"])
    assert await runtime.sweep(owner_of("somebody else", tmp_path), ()) == 0
    assert await runtime.sweep(replica.owner, {replica.id}) == 0
    replica.stopping = True
    assert await runtime.sweep(replica.owner, ()) == 1
    async with asyncio.timeout(10):
        await asyncio.shield(replica.instance.exited)
