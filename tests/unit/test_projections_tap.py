"""The short cut through nats-py: raw messages for one subscription, all others as ever."""

from __future__ import annotations

from typing import Any

import pytest

from jetfleet_projections.tap import tap

pytestmark = pytest.mark.anyio


class FakeClient:
    """What a tap uses of nats-py's client."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def _process_msg(self, sid: int, *_parts: bytes | None) -> None:
        self.seen.append(sid)


async def receive(client: FakeClient, sid: int, headers: bytes | None = None) -> None:
    await client._process_msg(sid, b"a.b", b"reply", b"body", headers)


async def test_only_a_tapped_subscription_is_diverted() -> None:
    client, got = FakeClient(), []
    end = tap(client, 7, lambda *parts: got.append(parts))
    await receive(client, 7)
    await receive(client, 8)
    await receive(client, 7, b"NATS/1.0 100\r\n\r\n")
    assert got == [
        (b"a.b", b"reply", b"", b"body"),
        (b"a.b", b"reply", b"NATS/1.0 100\r\n\r\n", b"body"),
    ]
    assert client.seen == [8]
    end()
    end()
    await receive(client, 7)
    assert client.seen == [8, 7]


async def test_several_taps_of_one_client_do_not_see_each_other() -> None:
    client, got = FakeClient(), []
    ends = [tap(client, sid, lambda *_, sid=sid: got.append(sid)) for sid in (1, 2)]
    await receive(client, 2)
    ends[0]()
    await receive(client, 1)
    await receive(client, 2)
    assert (got, client.seen) == ([2, 2], [1])
