"""A conductor and agents inside the test's own event loop, where a test wants to look into them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.connection import Connection
from jetfleet.secrets import Secrets
from jetfleet.settings import Settings
from jetfleet.specs import JobSpec
from jetfleet_agent.agent import Agent, Identity
from jetfleet_agent.links import WorkerKey
from jetfleet_projections.conductor import Conductor
from models.serving import function


@asynccontextmanager
async def connected(
    settings: Settings, role: str = "conductor", name: str = "test"
) -> AsyncIterator[Connection]:
    """A raw connection with the credentials of a role."""
    connection = await Connection.open(
        settings.nats_url, settings.credentials_of(role), user=role, name=name
    )
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def conducting(settings: Settings) -> AsyncIterator[Conductor]:
    """A running conductor; cancelled at the end, as a kill would."""
    async with connected(settings) as connection:
        conductor = Conductor(connection, settings)
        running = asyncio.create_task(conductor.run())
        try:
            yield conductor
            assert not running.done(), running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def working(settings: Settings, name: str = "w1", **who: Any) -> AsyncIterator[Agent]:
    """A running agent; it drains and leaves at the end."""
    credentials = Secrets(settings.data_dir).worker(name)
    connection = await Connection.open(settings.nats_url, credentials, user=name, name=name)
    identity = Identity(name, heartbeat_s=0.5, **who)
    workdir = settings.data_dir / "replicas" / name
    agent = Agent(identity, settings, connection, WorkerKey(credentials), workdir, "test", 5.0)
    running = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        agent.stop.set()
        try:
            async with asyncio.timeout(30):
                await running
        finally:
            await connection.close()


async def declare(
    client: Client, name: str = "echo", behaves: str = "echo", **more: Any
) -> JobSpec:
    """A registered model and an open job on it, without anybody to serve it."""
    spec = function(behaves).model_copy(update={"name": name})
    await client.register_model(spec)
    job = JobSpec(name=name, model=spec, **{"ack_wait_s": 2, "timeout_s": 30, **more})
    await client.apply_job(job)
    return job


def queue_of(job: str, settings: Settings) -> str:
    """The stream that holds a job's unfinished invocations."""
    return subjects.queue_stream(subjects.shard_of(job, settings.shards))


async def depth(connection: Connection, stream: str) -> int:
    """How many messages a stream has."""
    return int((await connection.api(f"STREAM.INFO.{stream}"))["state"]["messages"])
