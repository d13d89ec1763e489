"""The gateway's one client, connected in the background: HTTP answers before the broker does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import Request

from jetfleet.client import Client
from jetfleet.errors import BrokerUnavailable, JetfleetError, Unavailable
from jetfleet.settings import Settings

logger = logging.getLogger("jetfleet.gateway")

Connect = Callable[[], Awaitable[Client]]
RETRY_S = 0.5


@dataclass(slots=True, eq=False)
class Door:
    """Tries ``connect`` until it succeeds once; from then on the client heals by itself."""

    connect: Connect
    settings: Settings
    _client: Client | None = None
    _task: asyncio.Task[None] | None = None
    _why: str = "no connection was made yet"
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._task = asyncio.create_task(self._open())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._client is not None:
            await self._client.close()

    def known(self) -> Client:
        """The client, for what it knows by heart (the registry), even while the broker is away.

        Raises:
            BrokerUnavailable: there was no connection yet.
        """
        if self._client is None:
            raise BrokerUnavailable(f"not connected to the broker: {self._why}")
        return self._client

    def live(self) -> Client:
        """The client, connected now.

        Raises:
            BrokerUnavailable: at once, when it is not.
        """
        client = self.known()
        if not client.connected:
            raise BrokerUnavailable("the broker cannot be reached")
        return client

    def ready(self) -> Client:
        """The client, connected and with the registry folded.

        Raises:
            Unavailable: not so (yet).
        """
        client = self.live()
        if not client.registry.ready:
            raise Unavailable("the registry is not folded yet")
        return client

    async def _open(self) -> None:
        while True:
            try:
                self._client = await self.connect()
            except (JetfleetError, OSError) as error:
                if str(error) != self._why:
                    logger.warning("not connected, trying on: %s", error)
                self._why = str(error)
                await asyncio.sleep(RETRY_S)
            else:
                logger.info("connected to the broker as %s", self._client.origin)
                self.opened.set()
                return


def door_of(request: Request) -> Door:
    """The door of the application that serves this request."""
    door: Door = request.scope["app"].door
    return door
