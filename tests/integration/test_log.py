"""Reading streams: from anywhere, filtered, followed, and over a killed broker without a gap."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from inprocess import connected
from jetfleet.connection import Connection
from jetfleet.log import LogReader, read_records, record
from waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def connection(settings) -> AsyncIterator[Connection]:
    async with connected(settings) as opened:
        yield opened


async def append(connection: Connection, numbers: range, worker: str = "w1", verb: str = "x"):
    """Store these numbers, in order; each once, whatever happens to the broker."""
    for at in range(numbers.start, numbers.stop, 500):
        await asyncio.gather(
            *(
                connection.store(
                    f"jf.fleet.{worker}.{verb}", b"%d" % n, msg_id=f"{worker}{n}", timeout_s=60
                )
                for n in numbers[at - numbers.start : at - numbers.start + 500]
            )
        )


async def read(reader: LogReader, limit: int | None = None) -> list[int]:
    """The numbers a reader gives, up to ``limit`` of them."""
    found: list[int] = []
    source = reader.batches()
    try:
        async for batch in source:
            found += [int(message.body) for message in batch]
            if limit is not None and len(found) >= limit:
                return found
        return found
    finally:
        await source.aclose()


async def test_everything_is_read_once_and_in_order(connection):
    await append(connection, range(5000))
    assert await read(LogReader(connection, "FLEET")) == list(range(5000))


async def test_an_empty_stream_ends_at_once_and_is_caught_up(connection):
    reader = LogReader(connection, "FLEET")
    assert await asyncio.wait_for(read(reader), 10) == []
    assert reader.caught_up.is_set()


async def test_reading_begins_at_a_sequence(connection):
    await append(connection, range(10))
    assert await read(LogReader(connection, "FLEET", start=8)) == [7, 8, 9]
    assert await read(LogReader(connection, "FLEET", start=0)) == list(range(10))
    assert await read(LogReader(connection, "FLEET", start=11)) == []


async def test_reading_begins_at_a_time(connection):
    await append(connection, range(3))
    between = (await connection.api("STREAM.INFO.FLEET"))["state"]["last_ts"]
    await append(connection, range(3, 6))
    moment = datetime.fromisoformat(between[:26].rstrip("Z") + "+00:00") + timedelta(microseconds=1)
    assert await read(LogReader(connection, "FLEET", start=moment)) == [3, 4, 5]
    assert await read(LogReader(connection, "FLEET", start=datetime.now(UTC))) == []
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    assert await read(LogReader(connection, "FLEET", start=long_ago)) == list(range(6))


async def test_only_what_is_new_is_read(connection):
    await append(connection, range(3))
    reader = LogReader(connection, "FLEET", start="new", follow=True)
    reading = asyncio.create_task(read(reader, 2))
    await asyncio.wait_for(reader.caught_up.wait(), 10)
    await append(connection, range(3, 5))
    assert await asyncio.wait_for(reading, 10) == [3, 4]


async def test_following_goes_on_with_what_is_appended(connection):
    await append(connection, range(3))
    reader = LogReader(connection, "FLEET", follow=True)
    reading = asyncio.create_task(read(reader, 6))
    await asyncio.wait_for(reader.caught_up.wait(), 10)
    await append(connection, range(3, 6))
    assert await asyncio.wait_for(reading, 10) == list(range(6))


async def test_not_following_ends_at_what_was_there_when_reading_began(connection):
    await append(connection, range(3000))
    reader = LogReader(connection, "FLEET")
    reading = asyncio.create_task(read(reader))
    writing = asyncio.create_task(append(connection, range(3000, 4000)))
    found = await asyncio.wait_for(reading, 30)
    await writing
    assert found == list(range(len(found)))
    assert len(found) >= 3000


async def test_filters_give_only_their_subjects_in_the_streams_order(connection):
    for n in range(0, 60, 3):
        await append(connection, range(n, n + 1), "w1")
        await append(connection, range(n + 1, n + 2), "w2")
        await append(connection, range(n + 2, n + 3), "w3", verb="y")
    one = LogReader(connection, "FLEET", ("jf.fleet.w1.*",))
    assert await read(one) == list(range(0, 60, 3))
    two = LogReader(connection, "FLEET", ("jf.fleet.w1.*", "jf.fleet.*.y"))
    assert await read(two) == [n for n in range(60) if n % 3 != 1]
    none = LogReader(connection, "FLEET", ("jf.fleet.w9.*", "jf.ctl.>"))
    assert await asyncio.wait_for(read(none), 10) == []


async def test_a_filtered_reader_ends_though_later_messages_are_not_for_it(connection):
    await append(connection, range(5), "w1")
    await append(connection, range(100), "w2")
    assert await asyncio.wait_for(read(LogReader(connection, "FLEET", ("jf.fleet.w1.*",))), 10) == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip


@pytest.mark.parametrize("filters", [(), ("jf.fleet.w1.x", "jf.fleet.w2.x")])
async def test_a_follower_survives_a_killed_broker_without_gap_or_double(
    broker, settings, connection, filters
):
    """Thousands of messages, the broker killed three times while they are written and read."""
    total = 6000
    reader = LogReader(connection, "FLEET", filters, follow=True)
    reading = asyncio.create_task(read(reader, total))
    async with connected(settings) as writer:
        writing = asyncio.create_task(append(writer, range(total)))
        for kill in range(3):
            async with asyncio.timeout(60):
                await until(
                    lambda at=(kill + 1) * total // 5: (reader._next or 0) > at or writing.done(),
                    "some of it is read",
                    60,
                )
            broker.kill()
            await broker.start()
        await asyncio.wait_for(writing, 60)
        found = await asyncio.wait_for(reading, 60)
    stored = await read(LogReader(connection, "FLEET"))
    assert sorted(stored) == list(range(total))  # written once each
    assert found == stored  # and read once each, in the order of the log


async def test_a_reader_started_while_the_broker_is_away_waits_for_it(broker, connection):
    await append(connection, range(10))
    broker.kill()
    await until(lambda: not connection.connected, "the connection is lost")
    reading = asyncio.create_task(read(LogReader(connection, "FLEET")))
    await broker.start()
    assert await asyncio.wait_for(reading, 60) == list(range(10))


async def test_a_slow_reader_holds_a_bounded_part_and_misses_nothing(connection):
    await append(connection, range(8000))
    reader = LogReader(connection, "FLEET")
    found: list[int] = []
    async for batch in reader.batches():
        found += [int(message.body) for message in batch]
        await asyncio.sleep(0.01)
    assert found == list(range(8000))


async def test_a_reader_given_up_leaves_no_consumer_behind(connection):
    await append(connection, range(10))
    for limit in (None, 3):
        await read(LogReader(connection, "FLEET", follow=limit is not None), limit)

    async def gone() -> bool:
        names = await connection.api("CONSUMER.NAMES.FLEET")
        return not names["consumers"]

    await until(gone, "its consumers are gone")
    assert len(connection.subscriptions) == 1  # the one for acknowledgements
    assert not connection.on_reconnect


async def test_a_reader_that_tries_again_and_again_leaves_nothing_behind(
    connection, monkeypatch, caplog
):
    monkeypatch.setattr("jetfleet.log.RETRY_S", 0.001)
    caplog.set_level(logging.INFO, "jetfleet.log")
    reading = asyncio.create_task(read(LogReader(connection, "NOT-YET")))
    await until(lambda: caplog.text.count("cannot read NOT-YET yet") > 5, "it tries again")
    assert len(connection.subscriptions) <= 2  # its own, and the one for acknowledgements
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert len(connection.subscriptions) == 1


async def test_a_reader_whose_consumer_is_deleted_makes_another(connection):
    await append(connection, range(5))
    reader = LogReader(connection, "FLEET", follow=True)
    reading = asyncio.create_task(read(reader, 10))
    await asyncio.wait_for(reader.caught_up.wait(), 10)
    await connection.api(f"CONSUMER.DELETE.FLEET.{reader._consumer}")
    await append(connection, range(5, 10))
    assert await asyncio.wait_for(reading, 30) == list(range(10))


async def test_records_keep_what_is_not_an_event_and_say_why(connection):
    await append(connection, range(1))
    (only,) = [r async for r in read_records(LogReader(connection, "FLEET"))]
    assert (only.seq, only.subject, only.body, only.event) == (1, "jf.fleet.w1.x", b"0", None)
    assert "not a valid event" in only.error
    assert abs(datetime.now(UTC) - only.time) < timedelta(minutes=1)
    assert record("FLEET", (await _first(connection))).error == only.error


async def _first(connection: Connection):
    async for batch in LogReader(connection, "FLEET").batches():
        return batch[0]
    raise AssertionError("the stream is empty")
