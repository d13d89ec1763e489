"""Machines that come with a join token, over WebSocket, against a real broker and conductor."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from conftest import settings_for
from inprocess import conducting, connected, declare, working
from jetfleet import access, joining, jwt, subjects
from jetfleet.client import Client
from jetfleet.connection import Connection
from jetfleet.events import WorkerAdmitted, WorkerDraining, WorkerJoined, WorkerTokenRevoked, encode
from jetfleet.joining import JoinToken
from jetfleet.server import Broker
from jetfleet.settings import Settings
from jetfleet.stamp import Stamp
from jetfleet_agent.joining import JoinRefused, Membership
from jetfleet_projections.conductor import Conductor
from joining_made import joined, place_of, token_of
from stack import fleet_says
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 10.0


@pytest.fixture
async def conductor(conductor: Conductor) -> Conductor:
    await until(lambda: conductor.rounds, "it answers")
    return conductor


async def revoke(client: Client, token: JoinToken) -> None:
    name = token.terms.token
    event = WorkerTokenRevoked(**Stamp("test")("default"), data={"token": name})
    await client.connection.store(subjects.revoked(name), encode(event))


async def count(client: Client, kind: type) -> int:
    return sum([isinstance(r.event, kind) async for r in client.events("FLEET")])


# -- coming in


async def test_a_machine_with_a_token_and_a_url_serves(broker, client, conductor, tmp_path):
    await declare(client)
    async with joined(broker, tmp_path, token_of(broker)) as box:
        assert await client.run("echo", 7, wait_s=WAIT) == 7
        assert box.agent.connection.url.startswith("ws://")
    files = [path for path in (tmp_path / "joined").iterdir() if path.is_file()]
    assert len(files) == 3
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


async def test_it_is_told_the_settings_of_the_fleet(broker, tmp_path):
    settings = settings_for(broker, tenant="acme", inline_limit=4096, payload_limit=100_000)
    async with conducting(settings):
        told = await place_of(broker, tmp_path, token_of(broker)).enter(Settings())
    assert (told.tenant, told.shards, told.inline_limit) == ("acme", settings.shards, 4096)
    assert (told.payload_limit, told.nats_url) == (100_000, broker.websocket_url)


async def test_owner_trust_and_labels_are_the_tokens_whatever_the_worker_says(
    broker, client, conductor, tmp_path
):
    mine = token_of(broker, owner="ada", labels={"zone": "attic"})
    claims = {"owner": "root", "trusted": True, "labels": {"zone": "dc1", "disk": "ssd"}}
    async with joined(broker, tmp_path, mine, **claims):
        await until(lambda: "box" in conductor.fleet.workers, "it has joined")
        state = conductor.fleet.workers["box"]
    assert (state.owner, state.trusted) == ("ada", False)
    assert state.labels == {"zone": "attic", "disk": "ssd"}
    admitted = (await fleet_says(client, WorkerAdmitted, worker="box")).event.data
    assert (admitted.token, admitted.owner) == (mine.terms.token, "ada")


async def test_a_trusted_token_makes_a_trusted_worker(broker, conductor, tmp_path):
    async with joined(broker, tmp_path, token_of(broker, trusted=True)):
        await until(lambda: "box" in conductor.fleet.workers, "it has joined")
        assert conductor.fleet.workers["box"].trusted


async def test_a_worker_with_a_credentials_file_says_itself_whether_it_is_trusted(
    settings, conductor
):
    async with working(settings, "w1", trusted=True, owner="us"):
        await until(lambda: "w1" in conductor.fleet.workers, "it has joined")
        assert conductor.fleet.workers["w1"].trusted


async def test_it_waits_for_a_conductor(broker, settings, tmp_path):
    entering = asyncio.create_task(place_of(broker, tmp_path, token_of(broker)).enter(Settings()))
    async with connected(settings) as owner:
        asked = asyncio.Event()
        hearing = await owner.subscribe(subjects.ask_join("*"), lambda _: asked.set())
        async with asyncio.timeout(WAIT):
            await asked.wait()
        await hearing.stop()
    assert not entering.done()
    async with conducting(settings):
        async with asyncio.timeout(WAIT):
            await entering


async def test_it_waits_for_a_broker_that_is_not_there_yet(broker, settings, tmp_path, caplog):
    caplog.set_level(logging.INFO, "jetfleet.connection")
    token = token_of(broker)
    await broker.stop()
    entering = asyncio.create_task(place_of(broker, tmp_path, token).enter(Settings()))
    await until(lambda: caplog.records, "it has tried")
    assert not entering.done()
    await broker.start()
    async with conducting(settings):
        async with asyncio.timeout(WAIT):
            await entering


# -- credentials that end


async def test_credentials_are_renewed_while_it_lives(broker, client, tmp_path):
    await declare(client)
    async with conducting(settings_for(broker, worker_life_s=3)):
        async with joined(broker, tmp_path, token_of(broker)) as box:

            def ends() -> int:
                return jwt.decode(jwt.parse_credentials(box.place.credentials.read_text())[0])[
                    "exp"
                ]

            first = ends()
            await until(lambda: ends() > first + 3, "renewed twice")
            assert time.time() > first  # the first ones have ended
            assert await client.run("echo", 1, wait_s=WAIT) == 1
    assert await count(client, WorkerAdmitted) == 1


async def test_without_renewal_the_broker_ends_the_connection(broker, tmp_path):
    async with conducting(settings_for(broker, worker_life_s=2)):
        place = place_of(broker, tmp_path, token_of(broker))
        await place.enter(Settings())
        connection = await place.connect()
        try:
            await until(lambda: not connection.connected, "it is put out")
        finally:
            await connection.close()

        async def refused() -> bool:  # the broker puts out within the second before the end
            try:
                await (await place_with_nothing(place).connect()).close()
            except JoinRefused as error:
                return "not expired" in str(error)
            return False

        await until(refused, "the credentials have ended")


def place_with_nothing(place: Membership) -> Membership:
    """The same machine, without its token."""
    return Membership(place.url, place.name, place.folder, None)


async def test_after_a_restart_what_is_stored_is_used_while_it_holds(broker, settings, tmp_path):
    async with conducting(settings):
        place = place_of(broker, tmp_path, token_of(broker))
        before = await place.enter(Settings())
    again = place_with_nothing(place)  # and no conductor
    assert await again.enter(Settings()) == before
    await (await again.connect()).close()


async def test_what_has_ended_is_exchanged_anew_with_the_token_and_costs_no_use(
    broker, client, tmp_path
):
    token = token_of(broker, uses=1)
    async with conducting(settings_for(broker, worker_life_s=1)):
        place = place_of(broker, tmp_path, token)
        await place.enter(Settings())
        key = place._seed()
        await until(lambda: not place._stored(), "it has ended")
        again = place_of(broker, tmp_path, token)
        await again.enter(Settings())
        assert again._seed() == key
        await until(lambda: not again._stored(), "it has ended")
        with pytest.raises(JoinRefused, match="no credentials that hold"):
            await place_with_nothing(place).enter(Settings())
    assert await count(client, WorkerAdmitted) == 1


async def test_a_worker_whose_token_is_revoked_gets_nothing_more_and_leaves(
    broker, client, tmp_path
):
    token = token_of(broker)
    async with conducting(settings_for(broker, worker_life_s=3)):
        async with joined(broker, tmp_path, token) as box:
            await fleet_says(client, WorkerJoined, worker="box")
            await revoke(client, token)
            said = await fleet_says(client, WorkerDraining, worker="box")
            assert "revoked" in said.event.data.reason
            assert "revoked" in box.place.refused


# -- being refused


async def refusal(broker: Broker, folder, token: JoinToken, name: str = "box") -> str:
    with pytest.raises(JoinRefused) as refused:
        async with asyncio.timeout(WAIT):
            await place_of(broker, folder, token, name).enter(Settings())
    return str(refused.value)


async def test_a_token_of_another_installation_is_refused(broker, conductor, tmp_path):
    foreign = token_of(broker, seed=jwt.new_seed("account"))
    assert "is it of this installation" in await refusal(broker, tmp_path, foreign)


async def test_an_expired_token_is_refused(broker, conductor, tmp_path):
    old = token_of(broker, for_s=-1)
    assert "it has expired" in await refusal(broker, tmp_path, old)


async def test_a_revoked_token_is_refused(broker, client, conductor, tmp_path):
    token = token_of(broker)
    await revoke(client, token)
    assert "was revoked" in await refusal(broker, tmp_path, token)


async def test_a_used_up_token_is_refused(broker, client, conductor, tmp_path):
    token = token_of(broker, uses=2)
    for name in ("one", "two"):
        await place_of(broker, tmp_path / name, token, name).enter(Settings())
    assert "used 2 times of 2" in await refusal(broker, tmp_path, token, "three")
    await place_of(broker, tmp_path / "one", token, "one").enter(Settings())


async def test_of_two_who_come_at_once_with_one_use_one_is_let_in(
    broker, client, settings, tmp_path
):
    token = token_of(broker)
    async with conducting(settings), conducting(settings):
        results = await asyncio.gather(
            *(place_of(broker, tmp_path / n, token, n).enter(Settings()) for n in ("a1", "a2")),
            return_exceptions=True,
        )
    assert sorted(type(r).__name__ for r in results) == ["JoinRefused", "Settings"]
    assert await count(client, WorkerAdmitted) == 1


async def test_a_name_at_work_is_not_given_to_another_key(broker, client, conductor, tmp_path):
    token = token_of(broker, uses=5)
    async with joined(broker, tmp_path / "first", token):
        await fleet_says(client, WorkerJoined, worker="box")
        assert "name box is taken" in await refusal(broker, tmp_path / "second", token)
    other = token_of(broker, owner="eve")
    assert "another owner" in await refusal(broker, tmp_path / "third", other)
    async with joined(broker, tmp_path / "second", token):  # it has left: the name is free
        pass


async def test_the_name_of_a_worker_with_a_file_is_never_given_away(
    broker, settings, client, conductor, tmp_path
):
    async with working(settings, "w1"):
        await fleet_says(client, WorkerJoined, worker="w1")
    assert "name w1 is taken" in await refusal(broker, tmp_path, token_of(broker), "w1")


# -- what the holder of a token may do


@pytest.fixture
async def holder(broker: Broker) -> AsyncIterator[tuple[JoinToken, Connection]]:
    token = token_of(broker, uses=5)
    user = access.join_user(token.terms.token)
    connection = await Connection.open(broker.websocket_url, token, user=user, name="holder")
    try:
        yield token, connection
    finally:
        await connection.close()


async def test_it_may_not_publish_anything_but_its_question(broker, holder):
    _, connection = holder
    for subject in (
        subjects.ask_join("another"), subjects.fleet("box", "joined"), subjects.telemetry("box"),
        subjects.ask_credentials("box"), subjects.admitted("box"), subjects.revoked("t1"),
        subjects.queued(0, "default", "echo"), subjects.command("w1"), subjects.ask_query(),
        "$JS.API.INFO", "$JS.API.STREAM.INFO.FLEET", "$JS.API.CONSUMER.MSG.NEXT.Q0.x",
        f"{access.inbox('w1')}.x", "$SYS.REQ.SERVER.PING",
    ):  # fmt: skip
        connection.denied.clear()
        await connection.publish(subject, b"{}")
        await connection.flush()
        assert connection.denied and subject.lower() in connection.denied[-1].lower()


async def test_it_may_not_hear_anything_but_its_answers(broker, holder):
    token, connection = holder
    for subject in (
        ">", "jf.>", subjects.ask_join(token.terms.token), subjects.command("w1"),
        f"{access.inbox('w1')}.>", f"{access.inbox(access.join_user('another'))}.>", "_R_.>",
        "$SYS.>",
    ):  # fmt: skip
        connection.denied.clear()
        subscription = await connection.subscribe(subject, lambda _: None)
        await connection.flush()
        assert connection.denied and subject.lower() in connection.denied[-1].lower()
        await subscription.stop()


def request(held: JoinToken, name: str = "box", **changes: str) -> bytes:
    seed = jwt.new_seed("user")
    body = {
        "token": held.jwt_text, "name": name, "public_key": jwt.public_key(seed),
        "proof": jwt.sign_nonce(seed, joining.proof_text(held.terms.token, name)).decode(),
    }  # fmt: skip
    return json.dumps({**body, **changes}).encode()


def better(token: JoinToken) -> str:
    """The same token, with trust that nobody gave it, signed by its holder."""
    terms = replace(token.terms, trusted=True)
    forged = joining.issue(terms, account_seed=jwt.new_seed("account"), now=int(time.time()))
    head, body, _ = forged.jwt_text.split(".")
    return f"{head}.{body}.{token.jwt_text.rsplit('.', 1)[1]}"


async def test_a_question_that_lies_is_refused(broker, conductor, holder):
    token, connection = holder
    subject = subjects.ask_join(token.terms.token)
    other = token_of(broker, trusted=True)
    thief = jwt.public_key(jwt.new_seed("user"))
    for body, code in (
        (request(token, token=better(token)), "bad_token"),
        (request(token, token=other.jwt_text), "bad_token"),
        (request(token, token="x.y.z"), "bad_token"),
        (request(token, public_key=thief), "bad_proof"),
        (request(token, public_key="U"), "bad_proof"),
        (request(token, proof=""), "bad_proof"),
        (request(token, name="a.b"), "invalid_request"),
        (b"not json", "invalid_request"),
        (b"[]", "invalid_request"),
    ):
        answer = json.loads(await connection.request(subject, body))
        assert answer.get("code") == code, (answer, body)
    assert not conductor.fleet.admissions


async def test_what_a_conductor_answers_gives_a_worker_its_own_rights_alone(
    broker, conductor, holder
):
    token, connection = holder
    answer = json.loads(
        await connection.request(subjects.ask_join(token.terms.token), request(token))
    )
    claims = jwt.decode(answer["token"])
    assert claims["nats"]["pub"]["allow"] == list(access.worker_permissions("box").publish)
    assert claims["exp"] <= time.time() + 3600


async def test_a_worker_with_a_file_is_not_renewed(broker, settings, client, conductor):
    async with working(settings, "w1") as agent:
        await fleet_says(client, WorkerJoined, worker="w1")
        answer = json.loads(
            await agent.connection.request(subjects.ask_credentials("w1"), b'{"renew":true}')
        )
    assert "credentials file" in answer["error"]


async def test_a_token_of_an_admitted_worker_is_needed_for_the_rights_on_its_jobs(
    broker, client, conductor, tmp_path
):
    token = token_of(broker)
    await declare(client)
    async with joined(broker, tmp_path, token) as box:
        assert await client.run("echo", 1, wait_s=WAIT) == 1
        await revoke(client, token)
        await until(lambda: conductor.fleet.tokens[token.terms.token].revoked, "it is known")
        answer = json.loads(
            await box.agent.connection.request(
                subjects.ask_credentials("box"), b'{"tenant":"default","job":"echo"}'
            )
        )
    assert "not assigned" in answer["error"]
