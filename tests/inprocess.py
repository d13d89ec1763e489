"""Conductor, projector and agents in the test's own loop, where a test wants to look into them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
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
from jetfleet_projections.projector import Projector
from jetfleet_projections.sandboxes import Sandbox
from jetfleet_projections.service import Service
from jetfleet_projections.warehouse import Warehouse
from models.serving import function
from waiting import until


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs it meanwhile; cancelled at the end, which it must not reach by itself."""
    running = asyncio.create_task(work)
    try:
        yield
        assert not running.done(), running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


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
        async with background(conductor.run()):
            yield conductor


@asynccontextmanager
async def projecting(settings: Settings, path: Path) -> AsyncIterator[Projector]:
    """A running projector on this file; it asks the broker for nothing that it may not have."""
    async with connected(settings, "projector") as connection:
        warehouse = Warehouse.open(path)
        projector = Projector(connection, warehouse)
        try:
            async with background(projector.run()):
                yield projector
        finally:
            warehouse.close()
        assert connection.denied == []


@asynccontextmanager
async def answering(settings: Settings, deadline_s: float = 10.0) -> AsyncIterator[Service]:
    """A running projector that answers queries; SQL of users is stopped after the deadline."""
    async with projecting(settings, settings.data_dir / "warehouse.duckdb") as projector:
        sandbox = Sandbox(
            settings.data_dir / "copies",
            lambda: projector.warehouse.commits,
            projector.copy,
            deadline_s,
        )
        service = Service(projector.connection, projector, sandbox)
        await service.start()
        try:
            yield service
        finally:
            await service.stop()


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


async def queue_holds(client: Client, count: int, job: str = "echo") -> None:
    """Return when the queue of the job's shard holds so many; it follows the log a little later."""
    stream = queue_of(job, client.settings)

    async def exactly() -> bool:
        return await depth(client.connection, stream) == count

    await until(exactly, f"{stream} holds {count}")
