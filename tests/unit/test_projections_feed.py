"""Following a stream: what the feed does when something breaks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jetfleet_projections import feed as feed_module
from jetfleet_projections.feed import Feed

pytestmark = pytest.mark.anyio
REPLY = b"$JS.ACK.FLEET.p1.1.7.%d.1700000000000000000.0"


class Reopened(Feed):
    """A feed whose consumer comes back with two messages."""

    opened = 0

    async def _open(self) -> None:
        self.opened += 1
        self._replies = [REPLY % 1, REPLY % 2]
        self._subjects, self._bodies = ["a", "b"], [b"1", b"2"]
        self._next, self._broken = 1, False

    async def _ask(self) -> None:
        pass


def broken() -> Reopened:
    connection: Any = None
    feed = Reopened(connection, "FLEET", 0, 0)
    feed._replies, feed._subjects, feed._bodies = [REPLY % 1, REPLY % 3], ["a", "c"], [b"1", b"3"]
    feed._next, feed._broken = 1, False
    return feed


async def test_messages_missing_on_the_way_are_read_anew_although_others_wait() -> None:
    feed = broken()
    async with asyncio.timeout(5):
        await feed.gather(0.001, asyncio.Event())
        assert (await feed.take(10)).seqs == []
        await feed.gather(0.001, asyncio.Event())
        batch = await feed.take(10)
    assert (feed.opened, batch.bodies) == (1, [b"1", b"2"])


async def test_a_reconnect_while_messages_wait_reads_anew() -> None:
    feed = broken()
    await feed._on_reconnect()
    async with asyncio.timeout(5):
        await feed.gather(0.001, asyncio.Event())
    assert feed.opened == 1
    assert feed_module.LIVE > 2
