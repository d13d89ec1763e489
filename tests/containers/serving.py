"""Jobs on images, in a stack of real processes whose agents use the engine of the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from containers.engine import Engine
from jetfleet.client import Client
from jetfleet.events import ReplicaReady
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet.streams import FLEET
from stack import Program, Stack, fleet_says, position, stack

READY_S = 90.0
JOB_FIELDS = {"ack_wait_s": 2, "timeout_s": 30, "queue_ttl_s": 120}


def agent(running: Stack, engine: Engine, name: str = "a") -> Program:
    """An agent process whose containers run on this engine."""
    return running.agent(name, environment={"DOCKER_HOST": engine.url})


@asynccontextmanager
async def serving(
    folder: Path, engine: Engine, agents: tuple[str, ...] = ("a",)
) -> AsyncIterator[tuple[Stack, Client]]:
    """A stack with such agents, and a client of it; at its end no container is left."""
    async with stack(folder, agents=()) as running:
        for name in agents:
            agent(running, engine, name)
        yield running, await running.client()
    assert [c.name for c in engine.client.containers.list(all=True)] == []


async def open_image(
    client: Client, name: str, image: str, *, ready: bool = True, **fields: Any
) -> JobSpec:
    """A job on this image; fields of JobSpec go to it, all others to the model."""
    job = {k: fields.pop(k) for k in list(fields) if k in JobSpec.model_fields and k != "name"}
    model = ModelSpec(
        **{"name": name, "runtime": "docker", "image": image, "startup_timeout_s": 60, **fields}
    )
    spec = JobSpec(name=name, model=model, **{**JOB_FIELDS, **job})
    start = await position(client, FLEET) + 1
    await client.register_model(model)
    await client.apply_job(spec)
    if ready:
        for _ in range(spec.replicas):
            await fleet_says(client, ReplicaReady, job=name, start=start, within_s=READY_S)
    return spec
