"""A connection that nats-py drops on the way to a broker is closed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings

import pytest

from jetfleet.fastlane import FastNats

pytestmark = pytest.mark.anyio
INFO = b'INFO {"server_id":"x","version":"2.12.0","proto":1,"max_payload":1048576}\r\n'


async def test_a_broker_that_hangs_up_before_it_says_anything_leaves_nothing_open():
    talked = 0
    again = asyncio.Event()

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """It greets the first and the last of three, and hangs up on the first two."""
        nonlocal talked
        talked += 1
        if talked != 2:
            writer.write(INFO)
            await reader.readuntil(b"PING\r\n")
            writer.write(b"PONG\r\n")
        with contextlib.suppress(asyncio.IncompleteReadError):
            while talked > 2 and await reader.readuntil(b"PING\r\n"):
                writer.write(b"PONG\r\n")
                again.set()
        writer.close()

    async def ignore(_: Exception) -> None:
        pass

    server = await asyncio.start_server(broker, "127.0.0.1", 0)
    (listening,) = server.sockets
    url = f"nats://127.0.0.1:{listening.getsockname()[1]}"
    client = FastNats()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        await client.connect(
            url, error_cb=ignore, max_reconnect_attempts=-1, reconnect_time_wait=0.01
        )
        async with asyncio.timeout(10):
            await again.wait()
        gc.collect()
        await client.end()
        gc.collect()
    server.close()
    assert talked == 3
    assert [str(each.message) for each in told if issubclass(each.category, ResourceWarning)] == []
