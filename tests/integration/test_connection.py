"""The connection against a real broker that dies, comes back, refuses, and lets tokens expire."""

from __future__ import annotations

import asyncio
import time
from urllib.request import urlopen

import aiohttp
import nats.errors
import pytest
from nats.aio.transport import WebSocketTransport

from conftest import settings_for
from inprocess import connected, depth
from jetfleet import access, subjects
from jetfleet.connection import Connection, Stored, Subscription
from jetfleet.errors import ApiError, BrokerUnavailable, NoResponders, WrongSequence
from jetfleet.log import LogReader
from jetfleet.server import Broker
from rights import Rights
from waiting import until

pytestmark = pytest.mark.anyio
SUBJECT = subjects.fleet("w1", "joined")


async def count(connection: Connection) -> int:
    return await depth(connection, "FLEET")


async def test_a_store_returns_where_in_the_stream_it_is(settings):
    async with connected(settings) as connection:
        first = await connection.store(SUBJECT, b"1")
        second = await connection.store(SUBJECT, b"2")
        assert (first.stream, first.seq, first.duplicate) == ("FLEET", 1, False)
        assert second.seq == 2


async def test_a_store_repeated_with_its_id_is_stored_once(settings):
    async with connected(settings) as connection:
        first = await connection.store(SUBJECT, b"1", msg_id="a")
        again = await connection.store(SUBJECT, b"1", msg_id="a")
        assert (again.seq, again.duplicate) == (first.seq, True)
        assert await count(connection) == 1


async def test_of_two_who_expect_the_same_last_sequence_one_wins(settings):
    async with connected(settings) as one, connected(settings) as other:
        results = await asyncio.gather(
            *(c.store(SUBJECT, b"x", expect=(0, "jf.fleet.>")) for c in (one, other)),
            return_exceptions=True,
        )
        assert sorted(type(r).__name__ for r in results) == ["Stored", "WrongSequence"]
        assert await count(one) == 1
        with pytest.raises(WrongSequence):
            await one.store(SUBJECT, b"x", expect=(7, "jf.fleet.>"))


async def test_a_subject_of_no_stream_is_refused(settings):
    async with connected(settings) as connection:
        with pytest.raises(BrokerUnavailable, match="no stream takes"):
            await connection.store("jf.cmd.w1", b"x", timeout_s=5)


async def test_what_jetstream_refuses_is_an_error_with_its_status(settings):
    async with connected(settings) as connection:
        with pytest.raises(ApiError) as caught:
            await connection.api("STREAM.INFO.NOPE")
        assert caught.value.status == 404
        with pytest.raises(NoResponders):
            await connection.request("_R_.nobody", b"")


async def test_a_publish_that_is_not_permitted_is_recorded_and_never_stored(settings):
    async with connected(settings, "projector") as connection, connected(settings) as owner:
        with pytest.raises(BrokerUnavailable):
            await connection.store(SUBJECT, b"x", msg_id="m", timeout_s=0.5)
        assert any(SUBJECT in denied for denied in connection.denied)
        assert await count(owner) == 0


async def test_stores_under_way_when_the_broker_is_killed_are_stored_once(broker, settings):
    async with connected(settings) as connection:
        bodies = [f"{n:05}".encode() for n in range(2000)]
        await connection.store(SUBJECT, b"first", msg_id="first")
        under_way = [
            asyncio.create_task(connection.store(SUBJECT, body, msg_id=body.decode(), timeout_s=60))
            for body in bodies
        ]
        # Killed among the acknowledgements: some answered, some stored, some not even sent.
        await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        broker.kill()
        await broker.start()
        stored = await asyncio.gather(*under_way)
        assert len({each.seq for each in stored}) == len(bodies)
        assert await count(connection) == len(bodies) + 1


async def test_stores_made_while_the_broker_is_away_wait_for_it(broker, settings):
    async with connected(settings) as connection:
        broker.kill()
        await until(lambda: not connection.connected, "the connection is lost")
        waiting = asyncio.create_task(connection.store(SUBJECT, b"x", msg_id="m", timeout_s=None))
        await asyncio.sleep(0)
        assert not waiting.done()
        await broker.start()
        assert (await asyncio.wait_for(waiting, 30)).seq == 1


async def test_a_store_gives_up_in_time_and_says_that_it_may_be_repeated(broker, settings):
    async with connected(settings) as connection:
        broker.kill()
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="repeat it with the same key"):
            await connection.store(SUBJECT, b"x", msg_id="m", timeout_s=0.3)
        assert time.monotonic() - began < 5
        await broker.start()
        await until(lambda: connection.connected, "connected again")
        again = await connection.store(SUBJECT, b"x", msg_id="m", timeout_s=30)
        assert again.seq == 1
        assert await count(connection) == 1


async def test_more_than_the_buffer_holds_is_stored_whether_sent_at_once_or_after_a_restart(
    broker, settings
):
    body = bytes(200_000)  # forty of them are several times what nats-py takes at once

    def many(connection: Connection, name: str) -> list[asyncio.Task[Stored]]:
        return [
            asyncio.create_task(
                connection.store(SUBJECT, body, msg_id=f"{name}{n}", timeout_s=None)
            )
            for n in range(40)
        ]

    async with connected(settings) as connection:
        await asyncio.wait_for(asyncio.gather(*many(connection, "a")), 30)
        broker.kill()
        await until(lambda: not connection.connected, "the connection is lost")
        waiting = many(connection, "b")
        await broker.start()
        await asyncio.wait_for(asyncio.gather(*waiting), 30)
        assert await count(connection) == 80


async def test_what_is_closed_for_good_takes_nothing_more(settings):
    async with connected(settings) as connection:
        await connection.close()
        with pytest.raises(BrokerUnavailable, match="is closed"):
            await connection.store(SUBJECT, b"x", msg_id="m", timeout_s=None)
        with pytest.raises(BrokerUnavailable):
            await connection.subscribe("jf.cmd.*", print)


async def test_closing_ends_what_waits(broker, settings):
    async with connected(settings) as connection:
        broker.kill()
        waiting = asyncio.create_task(connection.store(SUBJECT, b"x", msg_id="m", timeout_s=None))
        await asyncio.sleep(0)
        await connection.close()
        with pytest.raises(BrokerUnavailable, match="closed before"):
            await waiting


async def test_subscriptions_and_hooks_survive_a_restart_of_the_broker(broker, settings):
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    reconnected = asyncio.Event()

    async def hook() -> None:
        reconnected.set()

    async with connected(settings) as connection, connected(settings, "operator") as other:
        await connection.subscribe("jf.cmd.*", lambda message: heard.put_nowait(message.data))
        connection.on_reconnect.append(hook)
        broker.kill()
        await broker.start()
        await asyncio.wait_for(reconnected.wait(), 30)
        await until(lambda: other.connected, "the other is connected too")
        await connection.flush()
        await other.publish("jf.cmd.w1", b"hello")
        assert await asyncio.wait_for(heard.get(), 10) == b"hello"


async def test_a_subscriber_that_raises_goes_on_hearing(settings, caplog):
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    def take(message) -> None:
        if message.data == b"bad":
            raise ValueError("cannot handle this")
        heard.put_nowait(message.data)

    async with connected(settings) as connection:
        await connection.subscribe("jf.cmd.*", take)
        await connection.publish("jf.cmd.w1", b"bad")
        await connection.publish("jf.cmd.w1", b"good")
        assert await asyncio.wait_for(heard.get(), 10) == b"good"
    assert "could not be handled" in caplog.text


async def test_what_is_stopped_is_heard_no_more(settings):
    heard: list[bytes] = []
    async with connected(settings) as connection:
        subscription = await connection.subscribe("jf.cmd.*", lambda m: heard.append(m.data))
        await subscription.stop()
        await connection.publish("jf.cmd.w1", b"x")
        await connection.flush()
        assert heard == []
        assert subscription not in connection.subscriptions


# -- credentials


class ShortLived(Rights):
    """Of the conductor; the first token ends after two seconds, later ones do not."""

    def __init__(self, broker: Broker, first_s: int = 2, later_s: int | None = None) -> None:
        super().__init__(broker.secrets, access.role_permissions("conductor"), first_s)
        self.later_s = later_s
        self.given: list[str] = []

    def token(self) -> str:
        self.given.append(super().token())
        self.life_s = self.later_s
        return self.given[-1]


async def test_after_its_token_expired_it_comes_back_with_a_new_one_and_all_subscriptions(broker):
    source = ShortLived(broker)
    settings = settings_for(broker)
    connection = await Connection.open(broker.url, source, user="conductor", name="short")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    again = asyncio.Event()

    async def hook() -> None:
        again.set()

    async def slow(message) -> None:
        heard.put_nowait(b"async " + message.data)

    try:
        await connection.subscribe("jf.cmd.*", lambda m: heard.put_nowait(b"sync " + m.data))
        await connection.subscribe("jf.cmd.*", slow)
        connection.on_reconnect.append(hook)
        await asyncio.wait_for(again.wait(), 30)  # the broker cut it off, and it came back
        assert len(source.given) >= 2
        assert (await connection.store(SUBJECT, b"x", msg_id="m", timeout_s=30)).seq == 1
        await connection.flush()
        async with connected(settings, "operator") as other:
            await other.publish("jf.cmd.w1", b"hello")
            both = {await asyncio.wait_for(heard.get(), 10) for _ in range(2)}
        assert both == {b"sync hello", b"async hello"}
        assert heard.empty()
    finally:
        await connection.close()


async def test_a_store_made_while_it_is_cut_off_is_stored_once_it_is_back(broker):
    source = ShortLived(broker)
    connection = await Connection.open(broker.url, source, user="conductor", name="short")
    try:
        await until(lambda: not connection.connected, "the token expired")
        stored = await connection.store(SUBJECT, b"x", msg_id="m", timeout_s=30)
        assert stored.seq == 1
        assert await count(connection) == 1
    finally:
        await connection.close()


async def test_a_reader_outlives_a_time_in_which_its_credentials_are_refused(broker, settings):
    source = ShortLived(broker, later_s=-10)
    connection = await Connection.open(broker.url, source, user="conductor", name="refused")
    reader = LogReader(connection, "FLEET", follow=True)
    batches = reader.batches()
    reading = asyncio.create_task(anext(batches))
    try:
        await asyncio.wait_for(reader.caught_up.wait(), 10)
        await until(lambda: connection.nats.is_closed, "the broker cut it off")
        await reader._on_reconnect()  # as after a long silence: it makes its consumer anew
        await until(lambda: len(source.given) > 2, "it is refused")
        source.later_s = None
        async with connected(settings) as other:
            await other.store(SUBJECT, b"x")
        (message,) = await asyncio.wait_for(reading, 30)
        assert message.body == b"x"
        assert len(connection.subscriptions) == 2  # the reader's, and the one for acknowledgements
    finally:
        reading.cancel()
        await batches.aclose()
        await connection.close()


async def test_it_is_dialled_once_more_when_a_subscription_cannot_be_restored(broker, monkeypatch):
    source = ShortLived(broker)
    connection = await Connection.open(broker.url, source, user="conductor", name="short")
    start, failed = Subscription.start, asyncio.Event()

    async def fails_once(self: Subscription) -> None:
        if not failed.is_set():
            failed.set()
            raise nats.errors.ConnectionClosedError
        await start(self)

    monkeypatch.setattr(Subscription, "start", fails_once)
    try:
        await asyncio.wait_for(failed.wait(), 30)
        assert (await connection.store(SUBJECT, b"x", msg_id="m", timeout_s=30)).seq == 1
    finally:
        await connection.close()


@pytest.fixture
def sessions(monkeypatch) -> list[aiohttp.ClientSession]:
    """The HTTP sessions that WebSocket connections of ours have opened."""
    opened, begin = [], WebSocketTransport.__init__

    def remembered(self: WebSocketTransport, *args: object, **named: object) -> None:
        begin(self, *args, **named)
        opened.append(self._client)

    monkeypatch.setattr(WebSocketTransport, "__init__", remembered)
    return opened


async def test_a_dial_that_is_given_up_at_any_moment_leaves_nothing_open(
    broker, settings, sessions
):
    secret = settings.credentials_of("gateway")

    async def given_up(after_s: float) -> None:
        opening = asyncio.create_task(
            Connection.open(broker.websocket_url, secret, user="gateway", name="given up")
        )
        await asyncio.wait({opening}, timeout=after_s)
        opening.cancel()
        (ended,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(ended, Connection):  # it was faster
            await ended.close()

    for step in range(60):
        await given_up(step * 0.0003)
    assert len(sessions) > 30
    assert all(session.closed for session in sessions)
    await until(lambda: "given up" not in connections(broker), "the broker has none of them")


async def test_a_dial_that_is_refused_leaves_nothing_open(broker, sessions):
    source = ShortLived(broker, first_s=-10, later_s=-10)
    for _ in range(10):
        with pytest.raises(BrokerUnavailable, match="refuses these credentials"):
            await Connection.open(broker.websocket_url, source, user="conductor", name="late")
    assert len(sessions) >= 10
    assert all(session.closed for session in sessions)


async def test_what_is_closed_while_the_broker_puts_it_out_leaves_nothing_open(broker, sessions):
    source = ShortLived(broker, later_s=-10)
    connection = await Connection.open(
        broker.websocket_url, source, user="conductor", name="put out"
    )
    await until(lambda: not connection.connected, "its token expired")
    await connection.close()
    assert all(session.closed for session in sessions)
    assert connection._redial is None or connection._redial.done()


def connections(broker: Broker) -> str:
    with urlopen(f"http://127.0.0.1:{broker.monitor_port}/connz") as answer:
        return answer.read().decode()


async def test_an_expired_token_is_refused_in_words(broker):
    source = ShortLived(broker, first_s=-10, later_s=-10)
    with pytest.raises(BrokerUnavailable, match="refuses these credentials"):
        await asyncio.wait_for(
            Connection.open(broker.url, source, user="conductor", name="late"), 30
        )


async def test_credentials_of_another_installation_are_refused_in_words(broker, tmp_path):
    from jetfleet.secrets import Secrets

    stranger = Secrets(tmp_path / "stranger")
    stranger.prepare()
    with pytest.raises(BrokerUnavailable, match="refuses these credentials"):
        await asyncio.wait_for(
            Connection.open(
                broker.url, stranger.credentials("gateway"), user="gateway", name="stranger"
            ),
            30,
        )


async def test_missing_credentials_say_what_to_do(broker, tmp_path):
    with pytest.raises(BrokerUnavailable, match="JETFLEET_CREDENTIALS"):
        await Connection.open(broker.url, tmp_path / "none.creds", user="x", name="x")
