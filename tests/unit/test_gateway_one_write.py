"""The head of an answer waits for its body, and for nothing else."""

from __future__ import annotations

import asyncio

import pytest

from jetfleet_gateway.one_write import OneWrite

HEAD, BODY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n", b"{}"


class Sink:
    """A transport that keeps its writes."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.writes.append(b"(closed)")


async def turn() -> None:
    """One turn of the loop."""
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(passed.set_result, None)
    await passed


@pytest.mark.anyio
async def test_head_and_body_are_one_write() -> None:
    sink = Sink()
    transport = OneWrite(sink)  # type: ignore[arg-type]  # what it uses of a transport
    transport.write(HEAD)
    transport.write(BODY)
    await turn()
    assert sink.writes == [HEAD + BODY]


@pytest.mark.anyio
async def test_a_head_without_a_body_leaves_in_the_same_turn() -> None:
    sink = Sink()
    transport = OneWrite(sink)  # type: ignore[arg-type]
    transport.write(HEAD)
    await turn()
    transport.write(b"data: 1\n\n")
    assert sink.writes == [HEAD, b"data: 1\n\n"]


@pytest.mark.anyio
async def test_what_a_client_waits_for_is_not_held_back() -> None:
    sink = Sink()
    transport = OneWrite(sink)  # type: ignore[arg-type]
    transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert sink.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]


@pytest.mark.anyio
async def test_closing_sends_what_is_held_back_first() -> None:
    sink = Sink()
    transport = OneWrite(sink)  # type: ignore[arg-type]
    transport.write(HEAD)
    transport.close()
    await turn()
    assert sink.writes == [HEAD, b"(closed)"]


@pytest.mark.anyio
async def test_two_answers_of_one_turn_keep_their_order() -> None:
    sink = Sink()
    transport = OneWrite(sink)  # type: ignore[arg-type]
    for _ in range(2):
        transport.write(HEAD)
        transport.write(BODY)
    await turn()
    assert b"".join(sink.writes) == (HEAD + BODY) * 2
