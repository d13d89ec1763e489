"""Payloads over the inline limit: written once, read whole, never read damaged."""

from __future__ import annotations

import asyncio
import base64
import hashlib

import pytest

from inprocess import connected, depth
from jetfleet import blobs, subjects
from jetfleet.blobs import PIECE, BlobUnreadable
from jetfleet.errors import BrokerUnavailable
from waiting import until

pytestmark = pytest.mark.anyio


def subject(number: int) -> str:
    return subjects.input_blob("default", "echo", "b1", number)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
async def test_what_is_written_is_read_whole(settings, size):
    text = bytes(n % 251 for n in range(size))
    async with connected(settings, "operator") as connection:
        ref = await blobs.write(connection, text, "b1", subject)
        assert ref.pieces == max(1, -(-size // PIECE))
        assert (ref.size, ref.sha256) == (size, hashlib.sha256(text).hexdigest())
        assert await blobs.read(connection, ref, subject) == text


async def test_writing_twice_stores_once(settings):
    text = b"x" * (2 * PIECE)
    async with connected(settings, "operator") as connection:
        assert await blobs.write(connection, text, "b1", subject) == await blobs.write(
            connection, text, "b1", subject
        )
        assert await depth(connection, "PAYLOADS") == 2


async def test_a_missing_piece_is_named(settings):
    async with connected(settings, "operator") as connection, connected(settings) as owner:
        ref = await blobs.write(connection, b"x" * (2 * PIECE), "b1", subject)
        await owner.api("STREAM.PURGE.PAYLOADS", {"filter": subject(1)})
        with pytest.raises(BlobUnreadable, match="piece 1 of payload b1 is gone"):
            await blobs.read(connection, ref, subject)


@pytest.mark.parametrize(
    "change", [{"sha256": "0" * 64}, {"size": 5}, {"pieces": 1}], ids=["digest", "size", "pieces"]
)
async def test_a_payload_that_is_not_what_was_written_is_refused(settings, change):
    async with connected(settings, "operator") as connection:
        ref = await blobs.write(connection, b"x" * (PIECE + 5), "b1", subject)
        with pytest.raises(BlobUnreadable, match="damaged"):
            await blobs.read(connection, ref.model_copy(update=change), subject)


async def test_a_broker_that_is_away_is_told_from_a_payload_that_is_gone(broker, settings):
    async with connected(settings, "operator") as connection:
        ref = await blobs.write(connection, b"x", "b1", subject)
        broker.kill()
        await until(lambda: not connection.connected, "the connection is lost")
        with pytest.raises(BrokerUnavailable):
            await blobs.write(connection, b"y", "b2", subject, timeout_s=0.3)
        with pytest.raises(BrokerUnavailable):
            await asyncio.wait_for(blobs.read(connection, ref, subject), 30)


async def test_a_broker_that_has_no_payloads_yet_is_told_from_a_payload_that_is_gone(settings):
    async with connected(settings, "operator") as connection, connected(settings) as owner:
        ref = await blobs.write(connection, b"x", "b1", subject)
        await owner.api("STREAM.DELETE.PAYLOADS")  # nobody answers, as right after a restart
        with pytest.raises(BrokerUnavailable):
            await blobs.read(connection, ref, subject)


async def test_a_payload_outlives_a_killed_broker(broker, settings):
    text = b"x" * (PIECE + 1)
    async with connected(settings, "operator") as connection:
        ref = await blobs.write(connection, text, "b1", subject)
        broker.kill()
        await broker.start()
        await until(lambda: connection.connected, "connected again")

        async def read() -> bytes | None:
            try:
                return await blobs.read(connection, ref, subject)
            except BrokerUnavailable:
                return None  # JetStream is not up yet

        assert await until(read, "the payload is read") == text


async def test_a_stored_messages_body_is_read_from_the_api(settings):
    async with connected(settings, "operator") as connection:
        await blobs.write(connection, b"hello", "b1", subject)
        answer = await connection.api("STREAM.MSG.GET.PAYLOADS", {"seq": 1})
        assert blobs.decode_stored(answer["message"]) == b"hello"
    assert blobs.decode_stored({}) == b""
    assert blobs.decode_stored({"data": base64.b64encode(b"x").decode()}) == b"x"


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), {1, 2}, b"raw", object()])
def test_what_is_not_json_is_not_written_as_if_it_were(value):
    with pytest.raises((TypeError, ValueError)):
        blobs.to_json({"a": value})
