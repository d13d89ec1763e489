"""The Docker runtime without an engine: what it makes of answers, and of none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from docker.errors import APIError, DockerException

from jetfleet.specs import ModelSpec
from jetfleet_agent import adoption
from jetfleet_agent.runtimes import Launch, Place, StartFailed, docker
from jetfleet_agent.runtimes.docker import DockerRuntime
from jetfleet_agent.runtimes.engine import Engine, EngineAway
from jetfleet_agent.runtimes.hardening import REPLICA_LABEL, cache_volume, name_of
from jetfleet_agent.runtimes.pull import is_moving, refusal


def place(tenant: str = "default", model: str = "m") -> Place:
    spec = ModelSpec(
        name=model, runtime="docker", image="some/image:1", function="/app/model.py:echo"
    )
    return Place("r1", tenant, "j", "owner", spec, (), lambda _: None)


def runtime(**answers: Callable[..., Any]) -> DockerRuntime:
    """One whose engine answers so."""
    api: Any = type("Api", (), {name: staticmethod(answer) for name, answer in answers.items()})()
    return DockerRuntime(Engine(_api=api))


def refuses(*_: Any, **__: Any) -> Any:
    raise APIError("server error", explanation="out of order")


def removing(removed: list[str]) -> dict[str, Callable[..., Any]]:
    """An engine that has containers alone, and removes them."""
    return {
        "remove_container": lambda name, **_: removed.append(name),
        "remove_network": lambda _: None,
        "networks": lambda **_: [],
        "volumes": lambda _: {"Volumes": None},
    }


# -- calls


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_returns_when_it_has_ended() -> None:
    """Else what it makes is made after whoever called has removed what there was."""
    began, goes_on, made = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def make() -> None:
        loop.call_soon_threadsafe(began.set)
        goes_on.wait(10)
        made.append("container")

    called = asyncio.ensure_future(runtime(make=make).engine.call(lambda api: api.make()))
    await began.wait()
    called.cancel()
    _, waiting = await asyncio.wait({called}, timeout=0.05)
    assert waiting
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await called
    assert made == ["container"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [
        requests.ConnectionError,
        requests.ReadTimeout,
        requests.exceptions.ChunkedEncodingError,
    ],
)
async def test_an_engine_that_breaks_off_is_away(error: type[Exception]) -> None:
    def broken() -> None:
        raise error("no more")

    with pytest.raises(EngineAway, match="no more"):
        await runtime(info=broken).engine.call(lambda api: api.info())


# -- starting


@pytest.mark.anyio
async def test_whatever_an_engine_refuses_is_a_start_that_failed() -> None:
    def logins(*_: Any, **__: Any) -> None:
        raise DockerException("the store of logins is broken")

    for refused, words in ((refuses, "out of order"), (logins, "logins is broken")):
        answers = removing([]) | {"remove_container": refused}
        ours = runtime(inspect_image=lambda _: {"Id": "i", "Size": 1}, **answers)
        with pytest.raises(StartFailed, match=f"cannot run some/image:1: .*{words}"):
            await ours.start(Launch((), {}), place())


def test_a_folder_that_cannot_be_seen_is_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert docker._folder(None) is None
    assert docker._folder(str(tmp_path / "nothing")) is None
    assert docker._folder(str(tmp_path)) == tmp_path

    def closed(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", closed)
    assert docker._folder(str(tmp_path)) is None


def test_no_two_tenants_share_a_cache() -> None:
    assert cache_volume(place("a-b", "c")) != cache_volume(place("a", "b-c"))


# -- what an earlier agent left


@pytest.mark.anyio
async def test_what_the_engine_does_not_remove_keeps_nothing_else() -> None:
    removed: list[str] = []
    answers = removing(removed) | {
        "remove_container": refuses,
        "volumes": lambda _: {"Volumes": [{"Name": "v"}]},
        "remove_volume": removed.append,
    }
    ours = runtime(**answers)
    with pytest.raises(APIError):
        await ours._forget("r1")
    assert removed == ["v"]


@pytest.mark.anyio
async def test_a_replica_that_begins_during_a_sweep_is_spared() -> None:
    keep: dict[str, None] = {}
    removed: list[str] = []

    def containers(**_: Any) -> list[dict[str, Any]]:
        keep["new"] = None
        return [{"Id": each, "Labels": {REPLICA_LABEL: each}} for each in ("old", "new")]

    ours = runtime(**removing(removed), containers=containers)
    assert await ours.sweep("owner", keep.keys()) == 1
    assert removed == [name_of("old")]


@pytest.mark.anyio
async def test_an_engine_that_refuses_keeps_no_agent_from_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = runtime(containers=refuses)
    assert await ours.running() == set()
    monkeypatch.setattr(docker, "docker_runtime", lambda: ours)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nothing")
    await adoption.sweep("owner", ())


@pytest.mark.anyio
async def test_an_adoption_that_is_not_wanted_any_more_leaves_no_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removed: list[str] = []
    found = {
        "Id": "c", "Image": "i", "State": {"Running": True},
        "Config": {"Labels": {"jetfleet.owner": "owner"}},
        "HostConfig": {"NetworkMode": "bridge"},
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": ""}}},
    }  # fmt: skip
    ours = runtime(**removing(removed), inspect_container=lambda _: found)
    opening = asyncio.Event()

    async def never(*_: Any) -> None:
        opening.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(DockerRuntime, "_open", never)
    adopting = asyncio.ensure_future(ours.adopt(Launch((), {}), place()))
    await opening.wait()
    adopting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adopting
    assert removed == [name_of("r1")]


@pytest.mark.anyio
async def test_a_container_without_an_address_is_not_looked_for_on_this_machine() -> None:
    found = {
        "Id": "c", "Image": "i", "State": {"Running": False}, "Config": {"Labels": {}},
        "HostConfig": {"NetworkMode": "mine"},
        "NetworkSettings": {"Networks": {"mine": {"IPAddress": ""}}},
    }  # fmt: skip
    container = runtime()._container(found)
    server = await asyncio.start_server(lambda *_: None, "0.0.0.0", 0)  # noqa: S104
    async with server:
        with pytest.raises(OSError, match="unreachable"):
            await container._connect(server.sockets[0].getsockname()[1], "token")


# -- pulls


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("write /var/lib/x: no space left on device", "is full"),
        ("filesystem layer verification failed for digest sha256:1", "is damaged"),
        ("error pulling image configuration: image config verification failed", "is damaged"),
        ("error pulling image configuration: dial tcp 1.2.3.4:443: i/o timeout", "be reached"),
        ("manifest for x:1 not found: manifest unknown: manifest unknown", "does not have it"),
        ("pull access denied for x, repository does not exist", "docker login"),
        ("Get http://x/v2/: dial tcp: lookup x: no such host", "be reached"),
        ("toomanyrequests: slow down", "cannot pull x: toomanyrequests"),
    ],
)
def test_what_registries_say_is_put_into_words(said: str, cause: str) -> None:
    reason = refusal("x", said).reason
    assert cause in reason
    assert said in reason


@pytest.mark.parametrize(
    ("image", "moving"),
    [
        ("x", True),
        ("x:latest", True),
        ("host:5000/x", True),
        ("host:5000/x:2", False),
        (f"x@sha256:{'0' * 64}", False),
        (f"x:latest@sha256:{'0' * 64}", False),
    ],
)
def test_a_name_without_a_tag_of_its_own_means_another_image_tomorrow(
    image: str, moving: bool
) -> None:
    assert is_moving(image) is moving
