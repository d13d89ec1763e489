"""The short cut through nats-py: however the bytes are cut, the same messages arrive, in order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jetfleet_projections.tap import Tap

pytestmark = pytest.mark.anyio
TAPPED, OTHER = 7, 8


class FakeClient:
    """What a parser calls of nats-py's client."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def _process_msg(self, sid: int, *parts: bytes | None) -> None:
        self.seen.append(("message", sid, *(bytes(part or b"") for part in parts)))

    async def _process_ping(self) -> None:
        self.seen.append("ping")

    async def _process_pong(self) -> None:
        self.seen.append("pong")

    async def _process_info(self, info: Any) -> None:
        self.seen.append(("info", info))

    async def _process_err(self, text: str) -> None:
        self.seen.append(("error", text))


def message(sid: int, reply: bytes, headers: bytes, body: bytes) -> bytes:
    reply = reply + b" " if reply else b""
    if headers:
        size = len(headers) + len(body)
        return b"HMSG a.b %d %s%d %d\r\n%s%s\r\n" % (sid, reply, len(headers), size, headers, body)
    return b"MSG a.b %d %s%d\r\n%s\r\n" % (sid, reply, len(body), body)


units = st.one_of(
    st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b"-ERR 'no'\r\n", b'INFO {"a":1}\r\n']),
    st.builds(
        message,
        st.sampled_from([TAPPED, OTHER]),
        st.sampled_from([b"", b"$JS.ACK.S.c.1.2.3.4.5"]),
        st.sampled_from([b"", b"NATS/1.0 100 Idle\r\n\r\n", b"NATS/1.0\r\nNats-Msg-Id: x\r\n\r\n"]),
        st.binary(max_size=30) | st.sampled_from([b"MSG a 7 3\r\nabc\r\n", b"\r\n", b"x" * 5000]),
    ),
)


async def receive(data: bytes, cuts: list[int], *, tapped: bool) -> list[Any]:
    client = FakeClient()
    tap = Tap(client)
    if tapped:
        tap.sinks[b"%d" % TAPPED] = lambda subject, reply, headers, body: client.seen.append(
            ("message", TAPPED, subject, reply, body, headers)
        )
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, stop in zip(edges, edges[1:], strict=False):
        await tap.parse(data[start:stop])
    return client.seen


@given(st.lists(units, max_size=12), st.lists(st.integers(0, 10**6), max_size=12))
async def test_the_same_messages_arrive_with_and_without_the_tap(
    stream: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(stream)
    without = await receive(data, [], tapped=False)
    assert await receive(data, cuts, tapped=True) == without
    assert await receive(data, cuts, tapped=False) == without


async def test_a_new_connection_begins_without_the_rest_of_the_old_one() -> None:
    client = FakeClient()
    tap = Tap(client)
    await tap.parse(b"MSG a 8 5\r\nabc")
    tap.reset()
    await tap.parse(b"PING\r\n")
    assert client.seen == ["ping"]


async def test_a_tap_is_not_put_on_in_the_middle_of_a_message() -> None:
    from nats.protocol.parser import Parser

    client: Any = FakeClient()
    client._ps = Parser(client)
    await client._ps.parse(b"MSG a 8 5\r\nabc")
    assert Tap.on(client) is None
    await client._ps.parse(b"de\r\n")
    tap = Tap.on(client)
    assert tap is not None
    assert Tap.on(client) is tap
