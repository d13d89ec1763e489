"""Many agents on one machine, joined over WebSocket: do they serve, and what does each cost idle.

Run: python tests/benchmarks/crowd.py [AGENTS] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from fleet import HERE, Processes, broker_with

from jetfleet.client import Client
from jetfleet.events import InvocationCompleted, ReplicaReady, WorkerJoined
from jetfleet.server import Broker
from jetfleet.specs import JobSpec, ModelSpec, Resources
from jetfleet.streams import FLEET, INVOCATIONS

TARGET_MIB = 60.0
STARTING = 4  # agents that start at once: each takes most of a second of a core
IDLE_S = 10.0
CALLS = 20  # per agent
WITHIN_S = 300.0


@dataclass(slots=True)
class Crowd:
    """The fleet under measurement."""

    broker: Broker
    client: Client
    processes: Processes
    folder: Path
    agents: list[subprocess.Popen[bytes]]


async def measure(count: int) -> dict[str, Any]:
    """Start ``count`` agents, let them serve, and look at them idle."""
    async with AsyncExitStack() as stack:
        crowd = await _open(stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        began = time.monotonic()
        await _join(crowd, count)
        joined_s = time.monotonic() - began
        ready_s = await _deploy(crowd, count)
        served = await _serve(crowd, count)
        return {
            "agents": count,
            "joined_s": round(joined_s, 1),
            "ready_s": round(ready_s, 1),
            **served,
            **await _idle(crowd),
        }


async def _open(stack: AsyncExitStack, folder: Path) -> Crowd:
    processes = Processes()
    broker, settings, env = await broker_with(stack, folder / "fleet", processes)
    processes.start(sys.executable, "-m", "jetfleet", "conductor", env=env)
    client = await stack.enter_async_context(await Client.connect(settings))
    return Crowd(broker, client, processes, folder, [])


async def _join(crowd: Crowd, count: int) -> None:
    """Start the agents, a few at a time, until all have joined."""
    url = f"ws://127.0.0.1:{crowd.broker.websocket_port}"
    token = crowd.folder / "token"
    with token.open("wb") as out:
        command = [sys.executable, "-m", "jetfleet", "worker", "token", "--uses", str(count)]
        env = {**os.environ, "JETFLEET_DATA_DIR": str(crowd.broker.data_dir),
               "JETFLEET_NATS_URL": crowd.broker.url}  # fmt: skip
        await asyncio.to_thread(subprocess.run, command, check=True, stdout=out, env=env)
    joined: set[str] = set()
    starting = asyncio.Semaphore(STARTING)

    async def start(number: int) -> None:
        await starting.acquire()
        name = f"crowd-{number}"
        env = {"JETFLEET_DATA_DIR": str(crowd.folder / name)}
        crowd.agents.append(
            crowd.processes.start(
                sys.executable, "-m", "jetfleet", "agent", "--name", name,
                "--join", url, "--token-file", str(token), env=env,
                log=crowd.folder / f"{name}.log",
            )
        )  # fmt: skip

    tasks = [asyncio.ensure_future(start(number)) for number in range(count)]
    async with asyncio.timeout(WITHIN_S):
        async for record in crowd.client.events(FLEET, follow=True):
            if isinstance(record.event, WorkerJoined):
                joined.add(record.event.data.worker)
                starting.release()
                if len(joined) == count:
                    break
    await asyncio.gather(*tasks)


async def _deploy(crowd: Crowd, count: int) -> float:
    """One replica of a job on every agent; seconds until all serve."""
    began = time.monotonic()
    model = ModelSpec(
        name="noop", function=f"{HERE / 'noop.py'}:noop", resources=Resources(memory_mib=64)
    )
    await crowd.client.register_model(model)
    job = JobSpec(name="noop", model=model, min_replicas=count, max_replicas=count)
    await crowd.client.apply_job(job)
    ready: set[str] = set()
    async with asyncio.timeout(WITHIN_S):
        async for record in crowd.client.events(FLEET, follow=True):
            if isinstance(record.event, ReplicaReady):
                ready.add(record.event.data.worker)
                if len(ready) == count:
                    break
    return time.monotonic() - began


async def _serve(crowd: Crowd, count: int) -> dict[str, Any]:
    """Calls, as many at once as there are agents; who answered them."""
    start = await _last(crowd.client)
    began = time.monotonic()
    slots = asyncio.Semaphore(count)

    async def call(number: int) -> None:
        async with slots:
            assert await crowd.client.run("noop", number, wait_s=60) == number

    calls = CALLS * count
    await asyncio.gather(*(call(number) for number in range(calls)))
    took = time.monotonic() - began
    workers = {
        record.event.data.worker
        async for record in crowd.client.events(INVOCATIONS, start=start + 1)
        if isinstance(record.event, InvocationCompleted)
    }
    return {"calls": calls, "calls_per_s": round(calls / took), "agents_that_served": len(workers)}


async def _last(client: Client) -> int:
    info = await client.connection.api(f"STREAM.INFO.{INVOCATIONS}")
    return int(info["state"]["last_seq"])


async def _idle(crowd: Crowd) -> dict[str, Any]:
    """Memory, messages and processor time of an agent that has nothing to do."""
    pids = [agent.pid for agent in crowd.agents]
    before, cpu_before = _messages(crowd.broker), sum(map(_cpu_s, pids))
    await asyncio.sleep(IDLE_S)  # the time over which is measured, not a wait for anything
    after, cpu_after = _messages(crowd.broker), sum(map(_cpu_s, pids))
    memory = [_pss_mib(pid) for pid in pids]
    agents = len(pids)
    return {
        "memory_mib_median": round(statistics.median(memory), 1),
        "memory_mib_max": round(max(memory), 1),
        "rss_mib_median": round(statistics.median(map(_rss_mib, pids)), 1),
        "messages_in_per_s": round((after[0] - before[0]) / IDLE_S / agents, 2),
        "messages_out_per_s": round((after[1] - before[1]) / IDLE_S / agents, 2),
        "cpu_percent": round(100 * (cpu_after - cpu_before) / IDLE_S / agents, 3),
    }


def _messages(broker: Broker) -> tuple[int, int]:
    """Into and out of the broker, since it began."""
    with urllib.request.urlopen(f"http://127.0.0.1:{broker.monitor_port}/varz") as answer:
        seen = json.load(answer)
    return int(seen["in_msgs"]), int(seen["out_msgs"])


def _pss_mib(pid: int) -> float:
    """Resident memory, that shared with other processes divided among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} tells no Pss")


def _rss_mib(pid: int) -> float:
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    )


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("agents", nargs="?", type=int, default=100)
    parser.add_argument("--json", type=Path, help="where the result goes, too")
    options = parser.parse_args()
    result = uvloop.run(measure(options.agents))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1))
    for name, value in result.items():
        print(f"{name:22} {value:>10,}")
    print(f"target: {TARGET_MIB:g} MiB of memory each")
    sys.exit(
        result["memory_mib_median"] > TARGET_MIB or result["agents_that_served"] < options.agents
    )


if __name__ == "__main__":
    main()
