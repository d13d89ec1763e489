"""Bringing an installation's streams to the state that ``streams.py`` writes out."""

from __future__ import annotations

import logging
from typing import Any

from jetfleet import streams
from jetfleet.connection import NOT_FOUND, ApiError, Connection
from jetfleet.errors import StartupError
from jetfleet.settings import Settings

logger = logging.getLogger("jetfleet.setup")


async def ensure_streams(settings: Settings) -> None:
    """Create missing streams and update changed ones, as the conductor's role.

    Raises:
        StartupError: the number of shards differs from what this installation was made with.
    """
    connection = await Connection.open(
        settings.nats_url, settings.credentials_of("conductor"), user="conductor", name="setup"
    )
    try:
        await ensure(connection, settings)
    finally:
        await connection.close()


async def ensure(connection: Connection, settings: Settings) -> None:
    """The same over an open connection that has the conductor's rights."""
    if await _config(connection, f"Q{settings.shards}") is not None:
        raise StartupError(
            f"this installation has more than {settings.shards} queue shards; "
            "JETFLEET_SHARDS is fixed when the data directory is made"
        )
    for wanted in streams.all_streams(settings.shards, settings.stream_replicas):
        name = wanted["name"]
        present = await _config(connection, name)
        if present is None:
            await connection.api(f"STREAM.CREATE.{name}", wanted)
            logger.info("stream %s created", name)
        elif any(present.get(key) != value for key, value in wanted.items()):
            await connection.api(f"STREAM.UPDATE.{name}", {**present, **wanted})
            logger.info("stream %s updated", name)


async def _config(connection: Connection, stream: str) -> dict[str, Any] | None:
    try:
        answer = await connection.api(f"STREAM.INFO.{stream}")
    except ApiError as error:
        if error.status == NOT_FOUND:
            return None
        raise
    config: dict[str, Any] = answer["config"]
    return config
