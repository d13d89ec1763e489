"""The connection against a real broker that dies, comes back, refuses, and lets tokens expire."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from conftest import settings_for
from inprocess import connected, depth
from jetfleet import access, jwt, subjects
from jetfleet.connection import Connection
from jetfleet.errors import ApiError, BrokerUnavailable, NoResponders, WrongSequence
from jetfleet.server import Broker
from stack import until

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


@dataclass
class ShortLived:
    """Tokens of the conductor's rights; the first ends after two seconds, later ones do not."""

    broker: Broker
    first_s: int = 2
    later_s: int | None = None
    given: list[str] = field(default_factory=list)
    seed: bytes = field(default_factory=lambda: jwt.new_seed("user"))

    def token(self) -> str:
        now = int(time.time())
        life = self.later_s if self.given else self.first_s
        text = access.user_token(
            access.role_permissions("conductor"),
            account_seed=self.broker.secrets.seed(access.FLEET_ACCOUNT),
            user=jwt.public_key(self.seed),
            name="short",
            issued_at=now,
            expires_at=None if life is None else now + life,
        )
        self.given.append(text)
        return text

    def sign(self, nonce: str) -> bytes:
        return jwt.sign_nonce(self.seed, nonce)


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
