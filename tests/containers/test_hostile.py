"""What a hostile model reaches and breaks: nothing. Real containers, through run_sync."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from containers.engine import Engine
from containers.images import Images
from containers.serving import open_image, serving
from jetfleet.client import Client
from jetfleet.errors import InvocationFailed
from jetfleet.specs import Container, Resources
from stack import Stack

pytestmark = pytest.mark.anyio
WAIT_S = 60.0
NO_RIGHTS = "0000000000000000"


@pytest.fixture(scope="module")
async def fleet(
    anyio_backend: str, tmp_path_factory: Any, engine: Engine, images: Images
) -> AsyncIterator[tuple[Stack, Client]]:
    folder = tmp_path_factory.mktemp("hostile") / "stack"
    async with serving(folder, engine) as (running, client):
        function = {"function": "/app/model.py:attack", "resources": Resources(memory_mib=128)}
        small = Container(pids=64, tmp_mib=16)
        await open_image(client, "hostile", images["hostile"], container=small, **function)
        await open_image(client, "neighbour", images["function"], function="/app/model.py:echo")
        yield running, client


@pytest.fixture
async def attack(fleet: tuple[Stack, Client]) -> AsyncIterator[Any]:
    """Runs one attack; afterwards the neighbour must serve, and the attacked model again."""
    _, client = fleet

    async def run(name: str, **parameters: Any) -> Any:
        limit = parameters.pop("timeout_s", 30)
        return await client.run(
            "hostile", {"attack": name, **parameters}, wait_s=WAIT_S, timeout_s=limit
        )

    yield run
    assert await client.run("neighbour", "alive", wait_s=WAIT_S) == "alive"
    assert (await client.run("hostile", {"attack": "identity"}, wait_s=WAIT_S))["uid"] == 65534


async def test_it_has_no_way_out(attack: Any, engine: Engine, fleet: tuple[Stack, Client]) -> None:
    port = fleet[0].broker.port
    bridge = engine.client.networks.get("bridge").attrs["IPAM"]["Config"][0]
    gateway = bridge.get("Gateway") or bridge["Subnet"].rpartition(".")[0] + ".1"
    targets = ["1.1.1.1:53", "169.254.169.254:80", f"{gateway}:{port}", f"127.0.0.1:{port}"]
    outcome = await attack("connect", targets=targets)
    assert all(said != "connected" for said in outcome.values()), outcome
    names = await attack("resolve", names=["example.org"])
    assert not names["example.org"][0].isdigit()


async def test_it_has_no_rights(attack: Any) -> None:
    found = await attack("identity")
    caps = {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert caps == {NO_RIGHTS}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    kernel = await attack("kernel")
    assert {name: said for name, said in kernel.items() if said == "done"} == {}


async def test_it_writes_nowhere_but_to_its_own_memory(attack: Any) -> None:
    paths = ["/app/model.py", "/etc/passwd", "/opt/x", "/x", "/usr/bin/x", "/var/x", "/run/x",
             "/sys/x", "/proc/sys/kernel/hostname", "/tmp/x", "/dev/shm/x"]  # fmt: skip
    outcome = await attack("write", paths=paths)
    allowed = {path for path, said in outcome.items() if said == "written"}
    assert allowed == {"/tmp/x", "/dev/shm/x"}


async def test_it_sees_nobody_else(attack: Any) -> None:
    seen = await attack("processes")
    assert len(seen) < 10
    assert not any("JETFLEET_DATA_DIR" in str(text) for text in seen.values())


async def test_a_model_that_stops_its_containers_first_process_is_ended_all_the_same(
    attack: Any, engine: Engine
) -> None:
    """It may trace what runs as its user; the first process then obeys only the kernel."""
    await attack("stop_init")
    with pytest.raises(InvocationFailed):
        await attack("print_forever", timeout_s=1)


async def test_a_fork_bomb_is_contained(attack: Any) -> None:
    outcome = await attack("fork_bomb")
    assert outcome["refused"] is not None
    assert outcome["started"] < 64


async def test_a_disk_fill_ends_at_the_size_of_tmp(attack: Any) -> None:
    outcome = await attack("fill")
    assert outcome["mib"] <= 16
    assert "space" in outcome["refused"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("eat_memory", "model_exited"),
        ("endless_fork_bomb", "timeout"),
        ("print_forever", "timeout"),
    ],
)
async def test_what_never_ends_has_a_typed_outcome(attack: Any, name: str, code: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvocationFailed) as caught:
        await attack(name, timeout_s=3)
    assert caught.value.outcome.data.error.code == code
    assert time.monotonic() - began < WAIT_S
    if code == "model_exited":
        assert "memory" in str(caught.value)


async def test_the_neighbour_answers_while_it_is_attacked(
    attack: Any, fleet: tuple[Stack, Client]
) -> None:
    _, client = fleet
    attacks = [asyncio.ensure_future(attack("spin", seconds=3.0, threads=8))]
    for number in range(20):
        assert await client.run("neighbour", number, wait_s=10) == number
    await asyncio.gather(*attacks)


async def test_a_flood_of_output_stays_small_on_disk(
    attack: Any, engine: Engine, fleet: tuple[Stack, Client]
) -> None:
    assert await attack("print_forever", mib=20) >= 20 * 2**20
    logs = [path.stat().st_size for path in engine.data_root.glob("containers/*/*-json.log*")]
    assert logs
    assert max(logs) < 2 * 2**20
