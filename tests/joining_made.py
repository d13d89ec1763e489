"""Join tokens and workers that come with them, inside the test's own event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jetfleet import access, joining
from jetfleet.joining import JoinToken
from jetfleet.server import Broker
from jetfleet.settings import Settings
from jetfleet_agent.agent import Agent, Identity
from jetfleet_agent.joining import Membership
from jetfleet_agent.links import WorkerKey


def token_of(
    broker: Broker, *, for_s: int = 600, seed: bytes | None = None, **terms: Any
) -> JoinToken:
    """A join token, signed by the broker's account of workers unless another seed is given."""
    now = int(time.time())
    return joining.issue(
        joining.new_terms(now, for_s=for_s, **terms),
        account_seed=seed or broker.secrets.seed(access.WORKERS_ACCOUNT),
        now=now,
        url=broker.websocket_url,
    )


def place_of(
    broker: Broker, folder: Path, token: JoinToken | None, name: str = "box"
) -> Membership:
    """A machine that comes over WebSocket and keeps what it gets in ``folder``."""
    return Membership(broker.websocket_url, name, folder, token)


@dataclass
class Joined:
    agent: Agent
    place: Membership


@asynccontextmanager
async def joined(
    broker: Broker, folder: Path, token: JoinToken | None, name: str = "box", **who: Any
) -> AsyncIterator[Joined]:
    """A worker that joined; it drains and leaves at the end. It has no setting but these."""
    place = place_of(broker, folder / "joined", token, name)
    told = await place.enter(Settings(data_dir=folder, nats_url="nats://nowhere.invalid:1"))
    connection = await place.connect()
    identity = Identity(name, heartbeat_s=0.5, **who)
    agent = Agent(
        identity, told, connection, WorkerKey(place.credentials), folder / "replicas", "test", 5.0
    )
    running = asyncio.create_task(agent.run())
    keeping = asyncio.create_task(place.keep(connection, agent.leave))
    try:
        yield Joined(agent, place)
    finally:
        agent.leave("the test is over")
        try:
            async with asyncio.timeout(30):
                await running
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await connection.close()
