"""The last word of a worker's telemetry, for whoever asks once instead of listening."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from jetfleet import subjects
from jetfleet.connection import Connection
from jetfleet.errors import BrokerUnavailable, NoResponders
from jetfleet.events import InvalidEvent, WorkerHeartbeat, decode
from jetfleet.streams import TELEMETRY


@dataclass(frozen=True, slots=True)
class Heard:
    """A heartbeat, and when the broker took it."""

    at: datetime
    heartbeat: WorkerHeartbeat


async def last_heartbeats(connection: Connection, sessions: Mapping[str, str]) -> dict[str, Heard]:
    """By worker, those of ``last_heartbeat`` that are of the worker's session.

    Raises:
        BrokerUnavailable: no answer in time.
    """
    beats = await asyncio.gather(*(last_heartbeat(connection, name) for name in sessions))
    return {
        name: heard
        for (name, session), heard in zip(sessions.items(), beats, strict=True)
        if heard is not None and heard.heartbeat.data.session == session
    }


async def last_heartbeat(connection: Connection, worker: str) -> Heard | None:
    """The newest heartbeat of a worker; None when none is kept: there was none in the last ten
    minutes, or none since the broker began.

    Raises:
        BrokerUnavailable: no answer in time.
    """
    try:
        reply = await connection.ask(f"$JS.API.DIRECT.GET.{TELEMETRY}.{subjects.telemetry(worker)}")
    except NoResponders:
        return None  # a broker that has just begun has no such stream until a conductor makes it
    headers = reply.headers or {}
    status = headers.get("Status", "")
    if status == "404":
        return None
    if status:
        raise BrokerUnavailable(f"the last heartbeat of {worker} cannot be read: {status}")
    try:
        event = decode(reply.data)
    except InvalidEvent:
        return None
    # The subject is vouched for by the broker; a body that names another worker is not believed.
    if not isinstance(event, WorkerHeartbeat) or event.data.worker != worker:
        return None
    return Heard(datetime.fromisoformat(headers["Nats-Time-Stamp"]), event)
