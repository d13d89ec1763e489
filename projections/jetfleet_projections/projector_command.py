"""``jetfleet projector``: one projector and its query service until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal

from jetfleet.commands.common import State
from jetfleet.connection import Connection
from jetfleet.settings import Settings
from jetfleet_projections.projector import Projector
from jetfleet_projections.sandboxes import Sandbox
from jetfleet_projections.service import Service
from jetfleet_projections.warehouse import FILE, Warehouse

logger = logging.getLogger("jetfleet.projections")


def projector(state: State) -> None:
    """Fold the log into tables and answer questions about them.

    One for each data folder, where its DuckDB file is. SIGTERM stops it, and nothing is lost when
    it is killed; when the file is deleted, it is built anew from the log.
    """
    import uvloop

    gc.set_threshold(50_000, 20, 50)  # catching up makes many objects and no rings of them: -5% CPU
    logging.getLogger("jetfleet").setLevel(logging.DEBUG if state.debug else logging.INFO)
    uvloop.run(project(state.settings()))


async def project(settings: Settings) -> None:
    """Open the warehouse, connect (waiting for the broker), and follow until SIGTERM or SIGINT.

    Raises:
        StartupError: another projector has the file.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    warehouse = Warehouse.open(settings.data_dir / FILE)
    try:
        stopping = asyncio.create_task(stop.wait())
        connecting = asyncio.create_task(
            Connection.open(
                settings.nats_url,
                settings.credentials_of("projector"),
                user="projector",
                name="projector",
            )
        )
        await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            connecting.cancel()
            return
        connection = connecting.result()
        try:
            await _serve(connection, warehouse, settings, stopping)
        finally:
            await connection.close()
    finally:
        warehouse.close()


async def _serve(
    connection: Connection,
    warehouse: Warehouse,
    settings: Settings,
    stopping: asyncio.Task[bool],
) -> None:
    projector = Projector(connection, warehouse)
    sandbox = Sandbox(settings.data_dir / "copies", lambda: warehouse.commits, projector.copy)
    service = Service(connection, projector, sandbox)
    following = asyncio.create_task(projector.run())
    try:
        await service.start()
        logger.info("following from %s", projector.position)
        await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            following.result()
    finally:
        await service.stop()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        logger.info("stopped at %s", projector.position)
