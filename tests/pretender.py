"""A worker that says what workers say and runs nothing, for tests of who decides about it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import given
from jetfleet import jwt, subjects
from jetfleet.connection import Connection
from jetfleet.events import ReplicaReady, WorkerHeartbeat, WorkerJoined, encode
from jetfleet.secrets import Secrets
from jetfleet.settings import Settings


def now(tenant: str = "default") -> dict[str, Any]:
    return {**given.envelope(tenant=tenant), "time": datetime.now(UTC)}


@dataclass
class Pretender:
    """A worker that says what workers say, and runs nothing."""

    connection: Connection
    name: str
    session: str = "s1"
    public_key: str = field(default_factory=lambda: jwt.public_key(jwt.new_seed("user")))
    commands: list[dict[str, Any]] = field(default_factory=list)
    _beats: asyncio.Task[None] | None = None

    async def join(self, memory_mib: int = 8192) -> None:
        told = given.joined(self.name, session=self.session, memory_mib=memory_mib)
        data = told.data.model_copy(update={"public_key": self.public_key, "heartbeat_s": 0.5})
        await self.say(WorkerJoined(**now(), data=data), "joined")
        if self._beats is None:
            self._beats = asyncio.create_task(self._beat())

    async def say(self, event: Any, verb: str) -> None:
        await self.connection.store(
            subjects.fleet(self.name, verb), encode(event), msg_id=event.id, timeout_s=30
        )

    async def ready(self, replica: str, of: str) -> None:
        data = given.ready(replica, self.name, of).data
        await self.say(ReplicaReady(**now(), data=data), "ready")

    async def _beat(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(0.3)

    async def beat(self) -> None:
        """One heartbeat."""
        data = WorkerHeartbeat.Data(worker=self.name, session=self.session)
        beat = WorkerHeartbeat(**now(), data=data)
        await self.connection.publish(subjects.telemetry(self.name), encode(beat))

    def fall_silent(self) -> None:
        if self._beats is not None:
            self._beats.cancel()
            self._beats = None

    async def ask(self, job: str, tenant: str = "default") -> dict[str, Any]:
        """What the conductor answers to a request for the rights of a job."""
        body = json.dumps({"tenant": tenant, "job": job}).encode()
        return json.loads(
            await self.connection.request(subjects.ask_credentials(self.name), body, 10)
        )


@asynccontextmanager
async def pretending(settings: Settings, name: str, **more: Any) -> AsyncIterator[Pretender]:
    path = Secrets(settings.data_dir).worker(name)
    connection = await Connection.open(settings.nats_url, path, user=name, name=name)
    worker = Pretender(connection, name)
    await connection.subscribe(
        subjects.command(name), lambda m: worker.commands.append(json.loads(m.data))
    )
    await worker.join(**more)
    try:
        yield worker
    finally:
        worker.fall_silent()
        await connection.close()
