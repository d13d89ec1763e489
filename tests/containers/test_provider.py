"""Workers as containers: started, known by their labels, given back; with a real engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from containers.engine import Engine as RunningEngine
from containers.images import Images
from jetfleet.events import WorkerShape
from jetfleet_agent.providers import CannotStart, Start
from jetfleet_agent.providers.docker import Containers
from jetfleet_agent.runtimes.engine import Engine
from waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def image(engine: RunningEngine, images: Images, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("DOCKER_HOST", engine.url)
    reference = images["worker"]
    engine.client.images.pull(reference)
    yield reference
    for left in engine.client.containers.list(all=True, filters={"label": "jetfleet.worker"}):
        left.remove(force=True)


def start(worker: str, *more: str) -> Start:
    agent = ("agent", "--name", worker, *more)
    shape = WorkerShape(memory_mib=300)
    return Start(worker, "q1", shape, agent, {"JETFLEET_JOIN_TOKEN": "jfj_x"})


async def test_a_container_is_a_worker_from_start_to_stop(
    engine: RunningEngine, image: str
) -> None:
    mine = Containers(Engine(), image, "p", "f1", drain_s=5)
    handle = await mine.start(start("p-1"))
    assert await mine.start(start("p-1")) == handle  # once more does no harm
    container = engine.client.containers.get(handle)
    said = "jfj_x agent --name p-1"
    await until(lambda: said in container.logs().decode(), "it was told who it is")
    assert container.attrs["HostConfig"]["Memory"] == 300 * 1024**2
    assert await mine.list() == {"p-1"}
    assert await Containers(Engine(), image, "p", "f2").list() == set()
    assert await Containers(Engine(), image, "other", "f1").list() == set()
    await mine.stop("p-1", handle)
    assert await mine.list() == set()
    await mine.stop("p-1", handle)


async def test_one_that_ended_is_gone_and_nothing_of_it_is_left(
    engine: RunningEngine, image: str
) -> None:
    mine = Containers(Engine(), image, "p", "f1")
    container = engine.client.containers.get(await mine.start(start("p-2", "--label", "ends=true")))
    assert container.wait()["StatusCode"] == 1
    assert await mine.list() == set()
    assert not engine.client.containers.list(all=True, filters={"label": "jetfleet.worker=p-2"})


async def test_an_image_that_is_not_there_cannot_be_started(image: str) -> None:
    with pytest.raises(CannotStart, match="build or pull the image"):
        await Containers(Engine(), "jetfleet-none:1", "p", "f1").start(start("p-3"))
