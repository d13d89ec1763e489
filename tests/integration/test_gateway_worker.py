"""A worker small enough for the gateway's tests: it pulls from a job's queue and answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from nats.aio.msg import Msg

from conftest import settings_for
from jetfleet import access, streams, subjects
from jetfleet.blobs import to_json, write
from jetfleet.client import Client
from jetfleet.clock import new_id
from jetfleet.connection import Connection
from jetfleet.events import (
    Failure,
    InvocationCompleted,
    InvocationFailed,
    InvocationQueued,
    InvocationStarted,
    decode,
    encode,
)
from jetfleet.server import Broker
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet.stamp import Stamp
from rights import Rights

WORKER = "w1"
MODEL = ModelSpec(name="echo", function="models.py:echo")
JOB = JobSpec(name="echo", model=MODEL, timeout_s=20, queue_ttl_s=60)


@dataclass
class Task:
    """One invocation in the hands of the worker."""

    worker: TinyWorker
    queued: InvocationQueued
    chunks: int = 0

    @property
    def input(self) -> Any:
        return self.queued.data.input

    async def chunk(self, value: Any) -> None:
        body = b"%d %s" % (self.chunks, json.dumps(value).encode())
        subject = subjects.output(self.queued.data.invocation, WORKER)
        await self.worker.connection.publish(subject, body)
        self.chunks += 1


Model = Callable[[Task], Awaitable[Any]]


@dataclass
class TinyWorker:
    """Serves one job: pulls as many as it has slots, runs ``model``, publishes, acknowledges."""

    connection: Connection
    job: JobSpec
    model: Model
    running: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def shard(self) -> int:
        return subjects.shard_of(self.job.name, 4)

    @property
    def stream(self) -> str:
        return subjects.queue_stream(self.shard)

    async def start(self) -> None:
        config = streams.job_consumer("default", self.job.name, self.job, self.shard)
        verb = f"CONSUMER.CREATE.{self.stream}.{config['name']}.{config['filter_subject']}"
        await self.connection.api(
            verb, {"stream_name": self.stream, "config": config, "action": ""}
        )
        inbox = f"{access.inbox('test')}.pull"
        await self.connection.subscribe(inbox, self._on_message)
        body = {"batch": 1000, "expires": 60 * streams.SECOND, "group": streams.PRIORITY_GROUP}
        await self.connection.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{config['name']}",
            json.dumps(body).encode(),
            reply=inbox,
        )

    def _on_message(self, message: Msg) -> None:
        if message.data:
            task = asyncio.ensure_future(self._run(message))
            self.running.add(task)

    async def _run(self, message: Msg) -> None:
        queued = decode(message.data)
        assert isinstance(queued, InvocationQueued)
        data, stamp = queued.data, Stamp(f"worker/{WORKER}")
        said: dict[str, Any] = {
            "invocation": data.invocation, "job": data.job, "worker": WORKER, "replica": "r1",
            "attempt": 1,
        }  # fmt: skip
        started = InvocationStarted(
            **stamp("default", cause=queued), data=InvocationStarted.Data(**said)
        )
        await self.connection.publish(
            subjects.started(self.shard, "default", data.job, WORKER), encode(started)
        )
        task = Task(self, queued)
        outcome: Any
        try:
            output = await self.model(task)
        except ValueError as error:
            failure = Failure(
                code="model_error", message=f"ValueError: {error}", detail="a traceback"
            )
            outcome = InvocationFailed(
                **stamp("default", cause=queued), data=InvocationFailed.Data(**said, error=failure)
            )
        else:
            outcome = InvocationCompleted(
                **stamp("default", cause=queued),
                data=InvocationCompleted.Data(
                    **said, chunks=task.chunks, **await self._keep(queued, output)
                ),
            )
        await self.connection.store(
            subjects.done(self.shard, "default", data.job, data.origin, WORKER),
            encode(outcome),
            msg_id=subjects.outcome_id(data.invocation, queued.id),
            timeout_s=None,
        )
        await message.respond(b"+ACK")

    async def _keep(self, queued: InvocationQueued, output: Any) -> dict[str, Any]:
        """The output inline, or as a reference when it is big."""
        text = to_json(output)
        if len(text) < 128 * 1024:
            return {"output": output}
        job, blob = queued.data.job, new_id()
        ref = await write(
            self.connection, text, blob,
            lambda n: subjects.output_blob("default", job, WORKER, blob, n),
            worker=WORKER,
        )  # fmt: skip
        return {"output_ref": ref}


async def echo(task: Task) -> Any:
    """Gives back its input; ``{"raise": text}`` raises, ``{"say": [...]}`` streams."""
    given = task.input
    if isinstance(given, dict) and "raise" in given:
        raise ValueError(given["raise"])
    if isinstance(given, dict) and "say" in given:
        for word in given["say"]:
            await task.chunk(word)
        return "".join(given["say"])
    if isinstance(given, dict) and "repeat" in given:
        return "x" * given["repeat"]
    return given


@asynccontextmanager
async def serving(
    broker: Broker, model: Model = echo, job: JobSpec = JOB
) -> AsyncIterator[TinyWorker]:
    """A worker of ``job`` on this broker, while the block runs."""
    rights = Rights(broker.secrets)  # a conductor's and a worker's in one
    connection = await Connection.open(broker.url, rights, user="test", name="worker")
    worker = TinyWorker(connection, job, model)
    await worker.start()
    try:
        yield worker
    finally:
        for task in worker.running:
            task.cancel()
        await asyncio.gather(*worker.running, return_exceptions=True)
        await connection.close()


async def register(broker: Broker, *jobs: JobSpec) -> None:
    """The model and its job (or these jobs), as an operator would register them."""
    async with await Client.connect(settings_for(broker), role="operator") as operator:
        await operator.register_model(MODEL)
        for job in jobs or (JOB,):
            await operator.apply_job(job)


@pytest.mark.anyio
async def test_the_tiny_worker_serves_a_core_client(broker: Broker) -> None:
    await register(broker)
    async with (
        serving(broker),
        await Client.connect(settings_for(broker), role="publisher") as client,
    ):
        assert await client.run("echo", {"a": 1}, wait_s=5) == {"a": 1}
