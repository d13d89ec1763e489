"""What an agent's own credentials cannot do, said by the broker and shown by the streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client as NatsClient
from story import all_ended

from jetfleet import access, jwt, subjects
from jetfleet.client import Client
from jetfleet.connection import Connection
from jetfleet.streams import PRIORITY_GROUP, SECOND
from jetfleet_agent.links import JobLink, JobToken, NotAssigned, WorkerKey
from stack import Stack, open_job, stack, started
from waiting import WITHIN_S, until

ME, OTHER, JOB, FOREIGN = "a", "b", "mine", "foreign"
SHARDS = 4
SHARD = subjects.shard_of(JOB, SHARDS)
QUEUE = subjects.queue_stream(SHARD)
CONSUMER = subjects.job_consumer("default", JOB)
FOREIGN_QUEUE = subjects.queue_stream(subjects.shard_of(FOREIGN, SHARDS))
FOREIGN_CONSUMER = subjects.job_consumer("default", FOREIGN)
LOGS = ("REGISTRY", "INVOCATIONS", "FLEET", "PAYLOADS", *(f"Q{n}" for n in range(SHARDS)))

# Subjects of the log (and of JetStream's API) where an intruder would like its answers to land.
TARGETS = (
    subjects.done(SHARD, "default", JOB, "someone", OTHER),
    subjects.done(SHARD, "default", JOB, "someone", ME),
    subjects.queued(SHARD, "default", JOB),
    subjects.queue(SHARD, "default", JOB),
    subjects.cancel(SHARD, "default", JOB),
    subjects.started(SHARD, "default", JOB, OTHER),
    subjects.fleet(OTHER, "left"),
    subjects.control("default", JOB, "assigned", OTHER),
    subjects.job_event("default", JOB, "deleted"),
    subjects.output_blob("default", JOB, OTHER, "blob", 0),
    "$JS.API.STREAM.DELETE.INVOCATIONS",
    "$JS.API.STREAM.PURGE.INVOCATIONS",
)
LASTING = tuple(t for t in TARGETS if t != subjects.queue(SHARD, "default", JOB))
FORBIDDEN_TO_PUBLISH = (
    # another job's queue, and its acknowledgements
    f"$JS.API.CONSUMER.MSG.NEXT.{FOREIGN_QUEUE}.{FOREIGN_CONSUMER}",
    f"$JS.ACK.{FOREIGN_QUEUE}.{FOREIGN_CONSUMER}.1.1.1.1.0",
    # another worker's word, another job's outcome, work and decisions that are not a worker's
    *(target for target in TARGETS if not target.endswith(f".{ME}")),
    subjects.done(subjects.shard_of(FOREIGN, SHARDS), "default", FOREIGN, "someone", ME),
    subjects.telemetry(OTHER),
    subjects.output("some-invocation", OTHER),
    subjects.ask_credentials(OTHER),
    # letting itself or another in, taking tokens back, asking with a token that it does not hold
    subjects.admitted(ME),
    subjects.admitted(OTHER),
    subjects.revoked("token"),
    subjects.ask_join("token"),
    subjects.ask_query(),
    subjects.command(OTHER),
    f"$JS.API.CONSUMER.MSG.NEXT.FLEET.{subjects.worker_consumer(OTHER)}",
    # streams and consumers as such, and reading the log
    "$JS.API.INFO",
    f"$JS.API.STREAM.INFO.{QUEUE}",
    "$JS.API.STREAM.CREATE.MINE",
    "$JS.API.STREAM.UPDATE.INVOCATIONS",
    f"$JS.API.STREAM.MSG.DELETE.{QUEUE}",
    "$JS.API.STREAM.MSG.GET.INVOCATIONS",
    "$JS.API.DIRECT.GET.INVOCATIONS",
    f"$JS.API.CONSUMER.CREATE.{QUEUE}.spy",
    f"$JS.API.CONSUMER.DELETE.{QUEUE}.{CONSUMER}",
    f"$JS.API.CONSUMER.INFO.{QUEUE}.{CONSUMER}",
    # somebody's inbox
    f"{access.inbox('gateway')}.x",
    "_R_.x",
)
FORBIDDEN_TO_HEAR = (
    ">",
    "jf.>",
    "_INBOX_*.>",
    f"{access.inbox(OTHER)}.>",
    f"{access.inbox('gateway')}.>",
    "_R_.>",
    "jf.inv.>",
    subjects.ALL_FLEET,
    subjects.command(OTHER),
    subjects.cancel("*", "*", "*"),
    "jf.out.>",
    "$JS.>",
    "$SYS.>",
)


@dataclass
class Intruder:
    """Worker ``a``'s own two connections: as itself, and for the job assigned to it."""

    worker: Connection
    job: Connection
    key: WorkerKey

    @property
    def both(self) -> tuple[Connection, Connection]:
        return (self.worker, self.job)


@dataclass
class Scene:
    fleet: Stack
    client: Client
    intruder: Intruder


@pytest.fixture(scope="module")
async def scene(anyio_backend: str, tmp_path_factory: Any) -> AsyncIterator[Scene]:
    """Workers a and b, a job of each."""
    async with stack(tmp_path_factory.mktemp("rights") / "stack", agents=(ME, OTHER)) as fleet:
        client = await fleet.client()
        for job, worker in ((JOB, ME), (FOREIGN, OTHER)):
            await open_job(
                client, job, "faulty.py:until_file", assignment="manual", workers=(worker,)
            )
        async with intruder(fleet) as mine:
            yield Scene(fleet, client, mine)


@asynccontextmanager
async def intruder(fleet: Stack) -> AsyncIterator[Intruder]:
    path = fleet.broker.secrets.credentials(f"worker-{ME}")
    key = WorkerKey(path)
    worker = await Connection.open(fleet.broker.url, path, user=ME, name="intruder")
    link = await JobLink.open(worker, key, ME, "default", JOB)
    try:
        yield Intruder(worker, link.connection, key)
    finally:
        await link.close()
        await worker.close()


async def contents(client: Client) -> dict[str, dict[str, int]]:
    """Messages by subject, of every stream but the heartbeats'."""
    found = {}
    for name in LOGS:
        info = await client.connection.api(f"STREAM.INFO.{name}", {"subjects_filter": ">"})
        found[name] = info["state"].get("subjects") or {}
    return found


async def refused(connection: Connection, subject: str) -> bool:
    """Whether the broker's last word, after all that was sent, is a refusal of this subject."""
    await connection.flush()
    return bool(connection.denied) and f'"{subject}"'.lower() in connection.denied[-1].lower()


@pytest.mark.anyio
@pytest.mark.parametrize("subject", FORBIDDEN_TO_PUBLISH)
async def test_the_broker_refuses_to_publish(scene: Scene, subject: str) -> None:
    before = await contents(scene.client)
    for connection in scene.intruder.both:
        connection.denied.clear()
        connection.send(subject, b"{}", f"{access.inbox(ME)}.answer")
        assert await refused(connection, subject), connection.denied
    assert await contents(scene.client) == before


@pytest.mark.anyio
@pytest.mark.parametrize("subject", FORBIDDEN_TO_HEAR)
async def test_the_broker_refuses_to_subscribe(scene: Scene, subject: str) -> None:
    heard: list[Any] = []
    for connection in scene.intruder.both:
        connection.denied.clear()
        subscription = await connection.subscribe(subject, heard.append)
        assert await refused(connection, subject), connection.denied
        await subscription.stop()
    assert not heard


@pytest.mark.anyio
async def test_a_pull_whose_reply_is_a_subject_of_the_log_stores_nothing(
    scene: Scene, tmp_path: Path
) -> None:
    client, mine = scene.client, scene.intruder
    running = await client.submit(JOB, str(tmp_path / "release"))
    await started(client, running.invocation)  # the agent's only slot is taken: the pulls are ours
    pulls = len(TARGETS) + 1
    taken = [await client.submit(JOB, str(tmp_path / "release")) for _ in range(pulls)]
    await until(lambda: _queued(client, 1 + len(taken)), "the queue has them all")
    before = await contents(client)
    answered: list[Any] = []
    await mine.job.subscribe(f"{access.inbox(ME)}.honest", answered.append)
    request = {"batch": 1, "expires": 5 * SECOND, "group": PRIORITY_GROUP}
    for target in (*TARGETS, f"{access.inbox(ME)}.honest"):
        mine.job.send(
            f"$JS.API.CONSUMER.MSG.NEXT.{QUEUE}.{CONSUMER}", json.dumps(request).encode(), target
        )
    # Pulls are answered in order: with the last one, which is honest, all have been.
    await until(lambda: answered, "the pulls are answered")
    assert await _delivered(client) > 2, "no injection got a message, so this shows nothing"
    assert await contents(client) == before
    (tmp_path / "release").touch()
    story = await all_ended(client, [running.invocation, *(each.invocation for each in taken)])
    after = await contents(client)
    assert all(len(story.outcomes[each.invocation]) == 1 for each in taken)
    for name, counts in after.items():
        assert {t: counts.get(t) for t in LASTING} == {t: before[name].get(t) for t in LASTING}


async def _queued(client: Client, count: int) -> bool:
    info = await client.connection.api(f"STREAM.INFO.{QUEUE}")
    return int(info["state"]["messages"]) == count


async def _delivered(client: Client) -> int:
    """By the conductor's eyes: an operator may not look at the queue's consumers."""
    eyes = await Connection.open(
        client.settings.nats_url,
        client.settings.credentials_of("conductor"),
        user="conductor",
        name="eyes",
    )
    try:
        info = await eyes.api(f"CONSUMER.INFO.{QUEUE}.{CONSUMER}")
    finally:
        await eyes.close()
    return int(info["delivered"]["consumer_seq"])


@pytest.mark.anyio
@pytest.mark.parametrize("target", TARGETS)
async def test_a_publish_whose_reply_is_a_subject_of_the_log_stores_itself_alone(
    scene: Scene, target: str
) -> None:
    client, mine = scene.client, scene.intruder
    said = {
        mine.worker: (subjects.fleet(ME, "noise"), "FLEET"),
        mine.job: (subjects.started(SHARD, "default", JOB, ME), "INVOCATIONS"),
    }
    for connection, (subject, stream) in said.items():
        before = await contents(client)
        connection.send(subject, b'{"not": "an event"}', target)
        await connection.flush()
        # Its acknowledgement would be in the log before that of the next one comes to us.
        await connection.store(subject, b'{"not": "an event"}')
        twice = before[stream].get(subject, 0) + 2
        assert await contents(client) == {**before, stream: {**before[stream], subject: twice}}


@pytest.mark.anyio
async def test_rights_are_given_for_assigned_jobs_only_and_bound_to_the_workers_key(
    scene: Scene,
) -> None:
    mine, url = scene.intruder, scene.fleet.broker.url
    with pytest.raises(NotAssigned):
        await JobLink.open(mine.worker, mine.key, ME, "default", FOREIGN)
    answer = json.loads(
        await mine.worker.request(
            subjects.ask_credentials(ME), json.dumps({"tenant": "default", "job": JOB}).encode()
        )
    )
    thief = WorkerKey(mine.key.path)
    thief.seed = jwt.new_seed("user")
    stolen = JobToken(thief, answer["token"], answer["expires_at"])
    theft = NatsClient()
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await theft.connect(
            url,
            user_jwt_cb=lambda: bytearray(stolen.token().encode()),
            signature_cb=stolen.sign,
            allow_reconnect=False,
            error_cb=_raised_anyway,
        )
    await theft.close()


async def _raised_anyway(_: Exception) -> None:
    """nats-py would log what it also raises."""


@pytest.mark.anyio
async def test_after_all_this_both_jobs_still_serve(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "now").touch()
    for job in (JOB, FOREIGN):
        output = await scene.client.run(job, str(tmp_path / "now"), wait_s=WITHIN_S)
        assert output == "released"
