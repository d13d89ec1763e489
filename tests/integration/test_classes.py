"""Priority classes, with a broker: high first, a floor for the low, nothing bound early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from given import queued
from inprocess import conducting, connected, queue_holds, queue_of, working
from jetfleet import subjects
from jetfleet.client import Client, Handle
from jetfleet.clock import new_id, utc_now
from jetfleet.errors import (
    InvalidRequest,
    InvocationCancelled,
    InvocationExpired,
    OutcomePending,
)
from jetfleet.events import InvocationCompleted, ReplicaReady, encode
from jetfleet.events import InvocationExpired as InvocationExpiredEvent
from jetfleet.evidence import explain
from jetfleet.policies import turns
from jetfleet.settings import Settings
from jetfleet.submit import queue_depth
from jetfleet_agent.class_pulls import ClassPulls
from jetfleet_agent.worker import JobWorker
from stack import fleet_says, open_job
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0
CLASSES = ("high", "normal", "low")
FLOOR = 0.5


class Gate:
    """A call that holds a slot until it is opened."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gate"

    def open(self) -> None:
        self.path.touch()

    async def begun(self) -> None:
        await until(Path(f"{self.path}.begun").exists, "the gate's call runs")


async def declare_classes(client: Client, name: str = "three", **more: Any) -> None:
    await open_job(
        client, name, "behaviours.py:gated", ready=False,
        priority_classes=CLASSES, priority_floor=FLOOR, **more,
    )  # fmt: skip


@asynccontextmanager
async def busy(
    client: Client, settings: Settings, folder: Path
) -> AsyncIterator[tuple[JobWorker, Gate]]:
    """A worker of one slot, which a call holds until the gate opens."""
    gate = Gate(folder)
    await declare_classes(client)
    async with working(settings) as agent:
        await client.submit("three", {"gate": str(gate.path)}, priority="normal")
        await gate.begun()
        (job,) = agent.jobs.values()
        try:
            yield job, gate
        finally:
            gate.open()


async def known(job: JobWorker, *classes: str) -> None:
    """Return when the worker knows that these classes wait."""
    pull = job._pull
    assert isinstance(pull, ClassPulls)
    waiting = [name in classes for name in CLASSES]
    await until(lambda: [queue.waits for queue in pull.queues] == waiting, f"{classes} wait")


def free_at_arrivals(job: JobWorker) -> list[int]:
    """Grows by the free slots of the worker whenever a message comes to it."""
    pull, found = job._pull, []
    take = pull.take

    def taken(message: Any) -> None:
        found.append(job._free())
        take(message)

    pull.take = taken
    return found


async def submit(client: Client, cls: str, count: int) -> list[Handle]:
    return [await client.submit("three", f"{cls}{n}", priority=cls) for n in range(count)]


async def completed(client: Client) -> list[str]:
    """Outputs in the order of the log, of calls that were not gates."""
    events = [r.event async for r in client.events() if isinstance(r.event, InvocationCompleted)]
    return [each.data.output for each in events if isinstance(each.data.output, str)]


def in_turn(counts: Sequence[int]) -> list[str]:
    """In which order the policy starts a backlog."""
    left, state, found = list(counts), turns.first(len(counts), FLOOR), []
    while any(left):
        waiting = [count > 0 for count in left]
        each = turns.choose(state, waiting)
        assert each is not None
        state = turns.started(state, each, waiting)
        found.append(f"{CLASSES[each]}{counts[each] - left[each]}")
        left[each] -= 1
    return found


async def bound(client: Client, settings: Settings) -> int:
    """How many messages of the job workers hold."""
    infos = [
        await client.connection.api(
            f"CONSUMER.INFO.{queue_of('three', settings)}."
            + subjects.job_consumer("default", "three", each)
        )
        for each in CLASSES
    ]
    return sum(info["num_ack_pending"] for info in infos)


async def test_a_backlog_of_three_classes_runs_high_first_with_a_floor_and_in_order(
    client, conductor, settings, tmp_path
):
    counts = (12, 6, 3)
    async with busy(client, settings, tmp_path) as (job, gate):
        by_class = {
            cls: await submit(client, cls, n) for cls, n in zip(CLASSES, counts, strict=True)
        }
        await known(job, *CLASSES)
        assert await bound(client, settings) == 1
        gate.open()
        for handle in (each for handles in by_class.values() for each in handles):
            event = await handle.outcome(WAIT)
            assert event.data.attempt == 1
        order = await completed(client)
        assert order == in_turn(counts)
        assert order[:7] == ["high0", "high1", "normal0", "high2", "high3", "normal1", "low0"]
        assert job.link.connection.denied == []


async def test_what_comes_to_an_idle_worker_is_bound_only_when_a_slot_is_free(
    client, conductor, settings, tmp_path
):
    """All classes at once, again and again: nothing is handed back, so no attempt is lost."""
    await declare_classes(client)
    async with working(settings) as agent:
        await client.run("three", "warm", wait_s=WAIT)
        (job,) = agent.jobs.values()
        free = free_at_arrivals(job)
        for _ in range(30):
            handles = await asyncio.gather(
                *(client.submit("three", cls, priority=cls) for cls in CLASSES)
            )
            outcomes = await asyncio.gather(*(handle.outcome(WAIT) for handle in handles))
            assert [each.data.attempt for each in outcomes] == [1, 1, 1]
        assert free == [1] * 90


async def test_an_invocation_of_a_lower_class_is_cancelled_and_expires_in_its_queue(
    client, conductor, settings, tmp_path
):
    async with busy(client, settings, tmp_path) as (job, _):
        late = await client.submit("three", "late", priority="low", ttl_s=0.3)
        unwanted = await client.submit("three", "unwanted", priority="high")
        await known(job, "high", "low")
        await client.cancel(unwanted.invocation, "not needed")
        with pytest.raises(InvocationCancelled):
            await unwanted.output(WAIT)
        with pytest.raises(InvocationExpired):
            await late.output(WAIT)
        await queue_holds(client, 1, "three")


async def test_explain_says_where_in_its_class_an_invocation_stands_and_what_goes_first(
    client, conductor, settings, tmp_path
):
    async with busy(client, settings, tmp_path) as (job, _):
        await submit(client, "high", 2)
        *_, last = await submit(client, "low", 3)
        await known(job, "high", "low")
        found = (await explain(client, last.invocation)).cause
        assert found.code == "in_queue"
        assert "it is 3 of 3 of class low in the queue of three, and 2 of higher" in found.text
        whole = (await explain(client, "three")).cause
        assert "5 waiting, 1 running" in whole.details
        state = await client.registry.find_job("three")
        assert (await queue_depth(client.connection, state, settings.shards))[0] == 6


async def test_what_is_queued_in_any_class_of_a_deleted_job_is_cancelled(
    client, conductor, settings
):
    await declare_classes(client)
    handles = [await client.submit("three", 1, priority=each) for each in CLASSES]
    await client.delete_job("three")
    for handle in handles:
        with pytest.raises(InvocationCancelled):
            await handle.output(WAIT)


async def test_a_class_that_the_job_does_not_have_is_refused(client, conductor):
    await declare_classes(client)
    with pytest.raises(InvalidRequest, match="no priority class 'urgent', only high, normal, low"):
        await client.submit("three", 1, priority="urgent")
    with pytest.raises(InvalidRequest) as refused:
        await client.submit("three", 1, priority="High")
    assert refused.value.field == "priority"


async def test_what_claims_a_class_that_the_job_does_not_have_expires(
    client, conductor, settings, tmp_path
):
    """Whoever may publish can write such an event; nobody pulls it."""
    async with busy(client, settings, tmp_path):
        event = queued(new_id(), of="three", priority_class="weird", expires_at=utc_now())
        shard = subjects.shard_of("three", settings.shards)
        subject = subjects.queued(shard, "default", "three", "weird")
        await client.connection.store(subject, encode(event), msg_id=event.id)
        assert isinstance(await client.outcome(event.data.invocation, WAIT), InvocationExpiredEvent)


async def test_a_slower_worker_takes_from_a_class_where_as_many_wait_as_its_threshold_says(
    client, settings
):
    await declare_classes(client)
    async with working(settings) as agent:
        async with conducting(settings):
            assert await client.run("three", 0, wait_s=WAIT) == 0
        (job,) = agent.jobs.values()
        job.heed(3, 60.0)
        await until(lambda: job.load(lambda _: "").min_pending == 3, "it asks so")
        first, *_ = await submit(client, "low", 2)
        (other,) = await submit(client, "high", 1)
        with pytest.raises(OutcomePending):
            await first.outcome(0.5)
        third = await client.submit("three", "third", priority="low")
        assert await first.output(WAIT) == "low0"
        job.heed(None, 0.0)
        assert await other.output(WAIT) == "high0"
        assert await third.output(WAIT) == "third"


async def test_after_a_broker_restart_every_class_is_served_again(
    client, conductor, settings, broker
):
    await declare_classes(client)
    async with working(settings):
        await fleet_says(client, ReplicaReady, job="three")
        broker.kill()
        await broker.start()
        await until(lambda: client.connected, "the client is back")
        for cls in CLASSES:
            handle = await client.submit("three", cls, priority=cls)
            assert await handle.output(WAIT) == cls


async def test_two_workers_run_all_of_a_backlog_once(client, settings):
    await declare_classes(client, min_replicas=2, concurrency=3)
    async with conducting(settings), working(settings), working(settings, "w2"):
        handles = [h for cls in CLASSES for h in await submit(client, cls, 60)]
        events = [await handle.outcome(WAIT) for handle in handles]
    assert {event.data.attempt for event in events} == {1}
    assert len(await completed(client)) == 180
    async with connected(settings) as connection:
        info = await connection.api(f"STREAM.INFO.{queue_of('three', settings)}")
        assert info["state"]["messages"] == 0
