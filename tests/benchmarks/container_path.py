"""What a container costs over a child process: the same function, the same agent, one caller."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import measured as measure
from fleet import Fleet

from jetfleet.specs import JobSpec, ModelSpec, RuntimeName

TESTS = Path(__file__).parent.parent
FUNCTION = TESTS / "containers/images/function/model.py"
WORKER = "docker"
READY_S = 120.0


def why_not() -> str | None:
    """Why containers cannot be measured here; None: they can."""
    sys.path.insert(0, str(TESTS))
    from containers.engine import why_not

    return why_not()


@asynccontextmanager
async def jobs(fleet: Fleet, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """By name, a way to measure one caller of the function in a process and in a container."""
    from containers.engine import Engine
    from containers.images import Images
    from containers.registry import Registry

    engine, registry = Engine(folder / "engine"), Registry(folder / "registry")
    try:
        await asyncio.to_thread(engine.start)
        await asyncio.to_thread(registry.start)
        image = await asyncio.to_thread(Images(registry).__getitem__, "function")
        env = {**fleet.env, "DOCKER_HOST": engine.url}
        agent = fleet.processes.start(
            sys.executable, "-m", "jetfleet", "agent", "--name", WORKER, env=env
        )
        try:
            await _open(fleet, "in-process", function=f"{FUNCTION}:echo")
            await _open(
                fleet, "in-container", image=image, function="/app/model.py:echo",
                runtime=RuntimeName.DOCKER,
            )  # fmt: skip
            yield {name: _caller(fleet, name) for name in ("in-process", "in-container")}
        finally:
            agent.terminate()
            await asyncio.to_thread(agent.wait)
    finally:
        await asyncio.to_thread(engine.close)
        registry.close()


async def _open(fleet: Fleet, name: str, **model: Any) -> None:
    spec = ModelSpec(name=name, **model)
    await fleet.client.register_model(spec)
    job = JobSpec(name=name, model=spec, assignment="manual", workers=(WORKER,))
    await fleet.client.apply_job(job)
    await fleet.client.run(name, {}, wait_s=READY_S)


def _caller(fleet: Fleet, name: str) -> Any:
    async def call() -> None:
        await fleet.client.run(name, measure.PAYLOAD, wait_s=measure.ANSWER_S)

    async def one_caller(calls: int) -> dict[str, float]:
        return await measure.latencies(name.replace("-", "_"), calls, call)

    return one_caller


if __name__ == "__main__":
    print(why_not() or f"containers can be measured here, as user {os.geteuid()}")
