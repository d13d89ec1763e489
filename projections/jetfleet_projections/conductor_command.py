"""``jetfleet conductor``: one conductor until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal

from jetfleet.commands.common import State
from jetfleet.connection import Connection
from jetfleet.settings import Settings
from jetfleet_projections.conductor import Conductor

logger = logging.getLogger("jetfleet.conductor")


def conductor(state: State) -> None:
    """Place replicas, declare silent workers lost, reap what nobody will run.

    Any number may run at once; SIGTERM stops it, and nothing is lost when it is killed.
    """
    import uvloop

    logging.getLogger("jetfleet").setLevel(logging.DEBUG if state.debug else logging.INFO)
    uvloop.run(conduct(state.settings()))


async def conduct(settings: Settings) -> None:
    """Connect (waiting for the broker) and conduct until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    connecting = asyncio.create_task(
        Connection.open(
            settings.nats_url,
            settings.credentials_of("conductor"),
            user="conductor",
            name="conductor",
        )
    )
    await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not connecting.done():
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        return
    connection = connecting.result()
    conducting = asyncio.create_task(Conductor(connection, settings).run())
    try:
        await asyncio.wait({conducting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if conducting.done():
            conducting.result()
    finally:
        conducting.cancel()
        stopping.cancel()
        await asyncio.gather(conducting, stopping, return_exceptions=True)
        await connection.close()
