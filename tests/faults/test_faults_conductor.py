"""The conductor is killed (-9): what runs goes on, and the next one takes over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from story import all_ended, told

from conftest import free_ports
from jetfleet.events import ReplicaAssigned, ReplicaReady, WorkerLost
from jetfleet.secrets import Secrets
from jetfleet.streams import FLEET
from stack import all_joined, fleet_says, open_job, position, stack
from waiting import WITHIN_S, until


@pytest.mark.anyio
async def test_work_goes_on_without_a_conductor_and_a_new_one_continues(tmp_path: Path) -> None:
    release = tmp_path / "release"
    async with stack(tmp_path / "stack") as fleet:
        client = await fleet.client()
        await open_job(client, "slow", "faulty.py:until_file")
        await open_job(client, "quick", "faulty.py:echo")
        running = await client.submit("slow", str(release))
        await until((tmp_path / "release.begun").exists, "the task runs")
        conductor = fleet.programs[0]
        conductor.kill()
        assert await client.run("quick", 1, wait_s=WITHIN_S) == 1
        release.touch()
        output = await running.output(wait_s=WITHIN_S)
        # Created while nobody decides; served as soon as somebody does.
        await open_job(client, "new", "faulty.py:echo", ready=False)
        waiting = await client.submit("new", 2)
        fleet.conductor()
        assert await waiting.output(wait_s=WITHIN_S) == 2
        story = await told(client)
    assert output == "released"
    assert story.counting(running.invocation).data.attempt == 1


@pytest.mark.anyio
async def test_a_new_conductor_declares_a_worker_lost_and_replaces_its_replicas(
    tmp_path: Path,
) -> None:
    async with stack(tmp_path / "stack", agents=("a", "b")) as fleet:
        client = await fleet.client()
        await all_joined(client, "a", "b")
        start = await position(client, FLEET) + 1
        await open_job(client, "job", "faulty.py:echo")
        here = await fleet_says(client, ReplicaAssigned, start=start, job="job")
        worker = here.event.data.worker  # type: ignore[union-attr]  # it is a ReplicaAssigned
        fleet.programs[0].kill()
        next(p for p in fleet.programs if p.name == f"agent-{worker}").kill()
        waiting = await client.submit("job", 1)
        fleet.conductor()
        lost = await fleet_says(client, WorkerLost, start=start, worker=worker)
        ready = await fleet_says(client, ReplicaReady, start=lost.seq, job="job")
        output = await waiting.output(wait_s=WITHIN_S)
        await all_ended(client, [waiting.invocation])
    assert {"a", "b"} - {worker} == {ready.event.data.worker}  # type: ignore[union-attr]  # likewise
    assert output == 1


@pytest.mark.anyio
async def test_two_conductors_decide_each_replica_once(tmp_path: Path) -> None:
    async with stack(tmp_path / "stack") as fleet:
        client = await fleet.client()
        log = fleet.conductor().log  # of both
        await until(lambda: log.read_bytes().count(b"folded: ") == 2, "both conduct")
        for number in range(5):
            await open_job(client, f"job{number}", "faulty.py:echo", ready=False)
        for number in range(5):
            assert await client.run(f"job{number}", number, wait_s=WITHIN_S) == number
        assigned = [
            record.event.data.job
            async for record in client.events(FLEET)
            if isinstance(record.event, ReplicaAssigned)
        ]
        assert fleet.programs[0].process.poll() is None
        fleet.programs[0].signal(signal.SIGTERM)
        assert await fleet.programs[0].ended() == 0
    assert sorted(assigned) == [f"job{number}" for number in range(5)]


@pytest.mark.parametrize("command", ["conductor", "projector"])
def test_one_that_waits_for_a_broker_obeys_too(tmp_path: Path, command: str) -> None:
    Secrets(tmp_path).prepare()
    environment = {**os.environ, "JETFLEET_NATS_URL": f"nats://127.0.0.1:{free_ports(1)[0]}",
                   "JETFLEET_DATA_DIR": str(tmp_path)}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "jetfleet", command],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert "onnect" in process.stderr.readline()  # it has tried, and goes on trying
        process.terminate()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.communicate()
