"""The registry: writes that race, writes that repeat, and reads that see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from given import job, model
from inprocess import connected, depth
from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.errors import (
    AlreadyExists,
    BrokerUnavailable,
    Conflict,
    JobNotFound,
    ModelNotFound,
)
from jetfleet.events import JobDeleted, encode
from jetfleet.registry import Registry
from jetfleet.stamp import Stamp
from waiting import until

pytestmark = pytest.mark.anyio
GONE = encode(JobDeleted(**Stamp("test")("default"), data={"job": "echo"}))


@pytest.fixture
async def two(settings) -> AsyncIterator[tuple[Client, Client]]:
    async with await Client.connect(settings) as one:
        async with await Client.connect(settings, role="gateway") as other:
            yield one, other


async def length(client: Client) -> int:
    return await depth(client.connection, "REGISTRY")


async def test_a_model_is_registered_once_and_the_same_again_changes_nothing(two):
    one, _ = two
    first = await one.register_model(model())
    again = await one.register_model(model())
    assert (first.kind, first.seq) == ("created", 1)
    assert (again.kind, again.seq) == ("unchanged", 0)
    assert await length(one) == 1
    assert one.registry.model("default", "echo") == model()


async def test_a_version_registered_differently_is_refused_with_what_differs(two):
    one, other = two
    await one.register_model(model(memory_mib=100))
    for client in (one, other):
        with pytest.raises(AlreadyExists, match="resources"):
            await client.register_model(model(memory_mib=200))
    assert (await other.register_model(model(version="2", memory_mib=200))).kind == "created"
    assert await length(one) == 2


async def test_what_one_client_writes_another_reads(two):
    one, other = two
    await one.register_model(model())
    await one.apply_job(job())
    await other.registry.sync()
    assert other.registry.job("default", "echo").spec == job()
    changed = job(queue_cap=7)
    change = await other.apply_job(changed)
    assert (change.kind, change.fields) == ("updated", ("queue_cap",))
    await one.registry.wait_for(change.seq)
    assert one.registry.job("default", "echo").spec.queue_cap == 7


async def test_updates_arrive_at_other_clients_by_themselves(two):
    one, other = two
    await one.register_model(model())
    await one.apply_job(job())
    await one.disable_job("echo", "maintenance")
    await until(
        lambda: (j := other.registry.job("default", "echo")) is not None and not j.enabled,
        "the other client sees the job disabled",
    )


async def test_a_job_made_a_moment_ago_by_another_client_is_found(two):
    one, other = two
    await one.register_model(model())
    for n in range(20):
        await one.apply_job(job(f"job-{n}"))
        assert (await other.registry.find_job(f"job-{n}")).spec.name == f"job-{n}"


async def test_of_clients_racing_to_create_one_creates_and_the_rest_agree(settings, two):
    one, other = two
    await one.register_model(model())
    await other.registry.sync()
    changes = await asyncio.gather(*(c.apply_job(job()) for c in (one, other) for _ in range(5)))
    assert sorted(change.kind for change in changes) == ["created"] + ["unchanged"] * 9
    assert await length(one) == 2


async def test_of_clients_racing_to_register_a_version_differently_one_wins(two):
    specs = [model(memory_mib=100 + n) for n in range(6)]
    results = await asyncio.gather(
        *(two[n % 2].register_model(spec) for n, spec in enumerate(specs)), return_exceptions=True
    )
    refused = [r for r in results if isinstance(r, AlreadyExists)]
    assert len(refused) == 5
    assert await length(two[0]) == 1


async def test_clients_racing_to_change_a_job_leave_one_of_their_specs_and_lose_no_write(two):
    one, other = two
    await one.register_model(model())
    await one.apply_job(job())
    await other.registry.sync()
    changes = await asyncio.gather(
        one.apply_job(job(queue_cap=1)), other.apply_job(job(queue_cap=2))
    )
    assert [c.kind for c in changes] == ["updated", "updated"]
    assert await length(one) == 4
    last = max(changes, key=lambda change: change.seq)
    winner = 1 if last is changes[0] else 2
    for client in two:
        await client.registry.sync()
        assert client.registry.job("default", "echo").spec.queue_cap == winner


async def test_creating_what_exists_is_refused(two):
    one, _ = two
    await one.register_model(model())
    await one.create_job(job())
    with pytest.raises(AlreadyExists):
        await one.create_job(job())


async def test_of_clients_racing_to_create_a_job_one_does_and_the_others_change_nothing(two):
    await two[0].register_model(model())
    await two[1].registry.sync()
    results = await asyncio.gather(
        *(two[n % 2].create_job(job(queue_cap=n + 1)) for n in range(6)), return_exceptions=True
    )
    assert sum(isinstance(result, AlreadyExists) for result in results) == 5
    assert await length(two[0]) == 2


async def test_a_job_on_a_model_that_is_not_registered_so_is_refused(two):
    one, _ = two
    with pytest.raises(ModelNotFound):
        await one.apply_job(job())
    await one.register_model(model(memory_mib=100))
    with pytest.raises(ModelNotFound):
        await one.apply_job(job(memory_mib=200))
    assert await length(one) == 1


async def test_a_job_is_disabled_enabled_and_deleted_and_repeating_changes_nothing(two):
    one, _ = two
    await one.register_model(model())
    await one.apply_job(job())
    assert (await one.disable_job("echo")).kind == "updated"
    assert (await one.disable_job("echo")).kind == "unchanged"
    assert (await one.enable_job("echo")).kind == "updated"
    assert (await one.enable_job("echo")).kind == "unchanged"
    assert (await one.delete_job("echo")).kind == "deleted"
    assert one.registry.job("default", "echo") is None
    with pytest.raises(JobNotFound):
        await one.delete_job("echo")
    assert (await one.apply_job(job())).kind == "created"


@pytest.mark.parametrize("name", ["missing", "", "a b", "a.b", "echo\n", "a\r\nb", "*", ">"])
async def test_what_is_not_there_cannot_be_changed(two, name):
    one, _ = two
    for change in (one.enable_job, one.disable_job, one.delete_job):
        with pytest.raises(JobNotFound):
            await change(name)
    assert await length(one) == 0
    assert one.connected


async def test_a_new_client_folds_everything_before_it_is_used(settings, two):
    one, _ = two
    await one.register_model(model())
    for n in range(30):
        await one.apply_job(job(f"job-{n}"))
    async with await Client.connect(settings) as late:
        assert late.registry.ready
        assert [j.spec.name for j in late.registry.jobs("default")] == [
            f"job-{n}" for n in range(30)
        ]
        assert late.registry.models("default") == [model()]


@pytest.mark.parametrize(
    ("of", "verb", "body"),
    [
        ("echo", "deleted", b"not an event"),
        ("another", "deleted", GONE),  # the broker vouches for the subject alone
        ("echo", "disabled", GONE),
    ],
    ids=["it does not validate", "of another job", "of another kind"],
)
async def test_an_event_that_cannot_be_believed_is_counted_and_never_obeyed(two, of, verb, body):
    one, other = two
    await one.register_model(model())
    await one.apply_job(job())
    await one.connection.store(subjects.job_event("default", of, verb), body)
    await until(lambda: other.registry.invalid == 1, "it is set aside")
    assert other.registry.job("default", "echo") is not None
    assert (await one.apply_job(job(queue_cap=3))).kind == "updated"  # and it blocks nobody


async def test_the_priority_class_of_a_job_never_changes(two):
    one, _ = two
    await one.register_model(model())
    await one.apply_job(job())
    with pytest.raises(Conflict, match="create another job with 'urgent'"):
        await one.apply_job(job(priority_class="urgent", queue_cap=3))
    assert one.registry.job("default", "echo").spec == job()
    await one.delete_job("echo")
    assert (await one.apply_job(job(priority_class="urgent"))).kind == "created"


async def test_reading_goes_on_while_the_broker_is_away_and_writing_says_so(broker, two):
    one, _ = two
    await one.register_model(model())
    broker.kill()
    await until(lambda: not one.connected, "the connection is lost")
    assert one.registry.model("default", "echo") == model()
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(one.register_model(model("other")), 30)


async def test_a_client_sees_what_was_written_after_the_broker_came_back(broker, settings, two):
    one, other = two
    await one.register_model(model())
    broker.kill()
    await broker.start()
    await until(lambda: one.connected and other.connected, "both are connected again")
    await one.apply_job(job())
    await until(lambda: other.registry.job("default", "echo") is not None, "the other folds it", 30)


async def test_a_client_that_cannot_begin_leaves_no_connection_open(settings, monkeypatch):
    begun = []

    async def fail(self: Registry) -> None:
        begun.append(self.connection)
        raise Conflict("not today")

    monkeypatch.setattr(Registry, "start", fail)
    with pytest.raises(Conflict, match="not today"):
        await Client.connect(settings)
    assert not begun[0].connected


async def test_a_registry_that_follows_no_more_is_not_ready(two):
    one, _ = two
    assert one.registry.ready
    await one.registry.stop()
    assert not one.registry.ready


async def test_a_role_that_may_not_write_the_registry_is_refused_by_the_broker(settings, two):
    async with await Client.connect(settings, role="publisher") as publisher:
        with pytest.raises(BrokerUnavailable):
            await publisher.register_model(model())
        assert any("jf.reg" in denied for denied in publisher.connection.denied)
    async with connected(settings) as owner:
        assert await depth(owner, "REGISTRY") == 0
