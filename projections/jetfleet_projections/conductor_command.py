"""``jetfleet conductor``: one conductor until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal

from jetfleet.connection import Connection
from jetfleet.settings import Settings
from jetfleet_projections.conductor import Conductor

logger = logging.getLogger("jetfleet.conductor")


async def conduct(settings: Settings) -> None:
    """Connect (waiting for the broker) and conduct until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    connection = await Connection.open(
        settings.nats_url, settings.credentials_of("conductor"), user="conductor", name="conductor"
    )
    conducting = asyncio.create_task(Conductor(connection, settings).run())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({conducting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if conducting.done():
            conducting.result()
    finally:
        conducting.cancel()
        stopping.cancel()
        await asyncio.gather(conducting, stopping, return_exceptions=True)
        await connection.close()
