"""The reaper: what nobody will run gets its outcome, and what a crash hid is put back."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

import given
from inprocess import conducting, connected, declare, depth, queue_holds, queue_of, working
from jetfleet import access, subjects
from jetfleet.blobs import decode_stored
from jetfleet.client import Client
from jetfleet.connection import Connection
from jetfleet.errors import BrokerUnavailable, InvocationCancelled, InvocationExpired
from jetfleet.events import OUTCOMES, InvocationCancelRequested, encode
from jetfleet.secrets import Secrets
from jetfleet.settings import Settings
from jetfleet_agent.worker import JobWorker
from jetfleet_projections.queue_rescue import UNSETTLED, rescue
from jetfleet_projections.queue_scan import Queued, QueueScan
from jetfleet_projections.reaper import Reaper
from rights import Rights
from stack import started
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0
SINCE = timedelta(minutes=2)


async def outcomes(client: Client) -> list[object]:
    return [r.event async for r in client.events() if isinstance(r.event, OUTCOMES)]


# -- outcomes for what nobody will run


async def test_what_expires_in_the_queue_gets_its_outcome_and_leaves(client, settings):
    await declare(client)
    async with conducting(settings):
        handles = [await client.submit("echo", n, ttl_s=0.3) for n in range(20)]
        stays = await client.submit("echo", "later", ttl_s=60)
        for handle in handles:
            with pytest.raises(InvocationExpired):
                await handle.output(WAIT)
        await queue_holds(client, 1)  # what did not expire
        assert len(await outcomes(client)) == 20
        assert (await client.find(stays.invocation)).state == "queued"


async def test_what_expired_while_no_conductor_ran_is_reaped_by_the_next(client, settings):
    await declare(client)
    handle = await client.submit("echo", 1, ttl_s=0.05)
    queued = (await anext(aiter(client.events(start=handle.seq)))).event
    await until(lambda: datetime.now(UTC) > queued.data.expires_at, "its time has passed")
    async with conducting(settings):
        with pytest.raises(InvocationExpired):
            await handle.output(WAIT)
        await queue_holds(client, 0)


async def test_what_is_due_while_the_broker_does_not_answer_is_reaped_later(
    client, settings, monkeypatch
):
    await declare(client)
    looks, real = [], Reaper._nobody_has

    async def fails_once(self: Reaper, item: Queued) -> bool:
        looks.append(item.invocation)
        if len(looks) == 1:
            raise BrokerUnavailable
        return await real(self, item)

    monkeypatch.setattr(Reaper, "_nobody_has", fails_once)
    async with conducting(settings):
        handle = await client.submit("echo", 1, ttl_s=0.3)
        with pytest.raises(InvocationExpired):
            await handle.output(WAIT)
    assert looks == [handle.invocation] * 2


async def test_what_ended_behind_one_that_waits_gets_no_other_outcome(client, settings):
    await declare(client)
    await client.submit("echo", "waits", ttl_s=60)
    ended = await client.submit("echo", "ends", ttl_s=1)
    marker = await client.submit("echo", "marker", ttl_s=1.5)
    async with conducting(settings) as conductor, connected(settings) as owner:
        scan = conductor.reaper.scans[subjects.shard_of("echo", settings.shards)]
        item = await until(lambda: scan.by_invocation.get(ended.invocation), "it was seen")
        event = given.cancelled(ended.invocation)
        subject = subjects.done(scan.shard, "default", "echo", item.origin, subjects.NOBODY)
        await owner.store(subject, encode(event), msg_id="by somebody else")
        await owner.api(f"STREAM.MSG.DELETE.{scan.stream}", {"seq": item.seq})
        with pytest.raises(InvocationExpired):
            await marker.output(WAIT)
        assert item.seq not in scan.items
    told = [outcome.data.invocation for outcome in await outcomes(client)]
    assert told == [ended.invocation, marker.invocation]


async def test_a_worker_that_missed_a_cancellation_is_told_again_and_why(
    client, settings, monkeypatch
):
    monkeypatch.setattr(JobWorker, "_on_cancel", lambda *_: None)
    await declare(client, "act", behaves="act")
    async with conducting(settings), working(settings):
        running = await client.submit("act", "hang")
        await started(client, running.invocation)
        await client.cancel(running.invocation, "not needed")
        with pytest.raises(InvocationCancelled, match="not needed"):
            await running.output(WAIT)


async def test_a_cancelled_invocation_that_nobody_pulled_leaves_the_queue(client, settings):
    await declare(client)
    first = await client.submit("echo", 1)
    second = await client.submit("echo", 2)
    async with conducting(settings):
        await client.cancel(first.invocation, "not needed")
        with pytest.raises(InvocationCancelled, match="not needed"):
            await first.output(WAIT)
    async with conducting(settings), working(settings):
        assert await second.output(WAIT) == 2
    assert len(await outcomes(client)) == 2


async def test_a_cancellation_asked_for_while_no_conductor_ran_is_not_forgotten(client, settings):
    await declare(client)
    handle = await client.submit("echo", 1)
    asking = asyncio.create_task(client.cancel(handle.invocation))
    await until(lambda: _cancel_stored(client), "the request is in the log")
    async with conducting(settings):
        assert (await asking).state == "cancelled"


async def _cancel_stored(client: Client) -> bool:
    found = [r async for r in client.events() if isinstance(r.event, InvocationCancelRequested)]
    return bool(found)


async def test_what_a_deleted_job_had_queued_is_cancelled(client, settings):
    await declare(client)
    await declare(client, "other")
    async with conducting(settings):
        handles = [await client.submit("echo", n) for n in range(10)]
        kept = await client.submit("other", 1)
        await client.delete_job("echo")
        for handle in handles:
            with pytest.raises(InvocationCancelled, match="the job was deleted"):
                await handle.output(WAIT)
        await queue_holds(client, 0)
        assert (await client.find(kept.invocation)).state == "queued"


async def test_what_a_worker_is_running_is_not_the_reapers_to_end(client, settings):
    await declare(client, "act", behaves="act")
    async with conducting(settings), working(settings):
        running = await client.submit("act", "hang", ttl_s=1.0)
        waiting = await client.submit("act", "fine", ttl_s=1.0)
        await started(client, running.invocation)
        with pytest.raises(InvocationExpired):
            await waiting.output(WAIT)
        assert (await client.find(running.invocation)).state == "started"
        await client.cancel(running.invocation)


async def test_two_reapers_give_one_outcome(client, settings):
    await declare(client)
    async with conducting(settings), conducting(settings):
        handles = [await client.submit("echo", n, ttl_s=0.2) for n in range(30)]
        for handle in handles:
            with pytest.raises(InvocationExpired):
                await handle.output(WAIT)
        await queue_holds(client, 0)
    assert len(await outcomes(client)) == 30


# -- nobody has a say in what is not theirs


async def _publisher(settings: Settings, tenant: str) -> Connection:
    """A connection with the rights of a publisher of one tenant."""
    rights = Rights(Secrets(settings.data_dir), access.role_permissions("publisher", tenant=tenant))
    return await Connection.open(settings.nats_url, rights, user="publisher", name="rival")


async def test_another_tenant_cannot_cancel_by_naming_the_invocation(client, settings):
    await declare(client)
    handle = await client.submit("echo", 1)
    shard = subjects.shard_of("echo", settings.shards)
    rival = await _publisher(settings, "rival")
    try:
        async with conducting(settings) as conductor:
            for claimed in ("rival", "default"):
                data = {"invocation": handle.invocation, "job": "echo", "queued_seq": 1,
                        "origin": client.origin}  # fmt: skip
                now = {**given.envelope(tenant=claimed), "time": datetime.now(UTC)}
                event = InvocationCancelRequested(**now, data=data)
                await rival.store(
                    subjects.cancel(shard, "rival", "echo"), encode(event), msg_id=event.id
                )
            own = await client.submit("echo", 2)
            assert (await client.cancel(own.invocation)).state == "cancelled"  # in order: seen
            assert (await client.find(handle.invocation)).state == "queued"
            assert handle.invocation not in conductor.reaper._cancels
    finally:
        await rival.close()


async def test_a_queued_event_that_claims_another_tenants_job_expires_and_runs_nothing_there(
    client, settings
):
    await declare(client)
    victim = await client.submit("echo", "mine")
    shard = subjects.shard_of("echo", settings.shards)
    rival = await _publisher(settings, "rival")
    try:
        forged = given.queued(victim.invocation, input="theirs")  # says tenant default, expired
        assert forged.data.expires_at < datetime.now(UTC)
        await rival.store(subjects.queued(shard, "rival", "echo"), encode(forged), msg_id="forged")
        async with conducting(settings) as conductor:
            await until(
                lambda: conductor.reaper._rescue_at is None, "it looked for what is missing"
            )
            marker = await client.submit("echo", "marker", ttl_s=0.2)
            with pytest.raises(InvocationExpired):
                await marker.output(WAIT)
            view = await client.find(victim.invocation)
            assert view.state == "queued"
            queue = subjects.queue(shard, "default", "echo", "*")
            info = await client.connection.api(
                f"STREAM.INFO.{queue_of('echo', settings)}", {"subjects_filter": queue}
            )
            assert sum(info["state"]["subjects"].values()) == 1
    finally:
        await rival.close()


# -- putting back


async def _scans(connection: Connection, settings: Settings) -> list[QueueScan]:
    return [QueueScan(connection, shard) for shard in range(settings.shards)]


async def _lose(connection: Connection, settings: Settings, handle) -> None:
    """Take an invocation's copy out of its queue, as a crash at the wrong moment does."""
    stream = queue_of(handle.job, settings)

    async def there() -> bool:
        return await depth(connection, stream) > 0

    await until(there, "the queue has followed the log")
    state = (await connection.api(f"STREAM.INFO.{stream}"))["state"]
    for seq in range(state["first_seq"], state["last_seq"] + 1):
        message = (await connection.api(f"STREAM.MSG.GET.{stream}", {"seq": seq}))["message"]
        if json.loads(decode_stored(message))["data"]["invocation"] == handle.invocation:
            await connection.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq})
            return
    raise AssertionError("it is not in its queue")


async def test_what_is_missing_from_its_queue_is_put_back_once_and_run(client, settings):
    await declare(client)
    handle = await client.submit("echo", {"a": None})
    async with connected(settings) as owner:
        await _lose(owner, settings, handle)
        stored = (await client.find(handle.invocation)).queued_at
        early, late = stored + UNSETTLED / 2, stored + 2 * UNSETTLED
        assert await rescue(owner, await _scans(owner, settings), SINCE, early) == 0  # on its way
        assert await rescue(owner, await _scans(owner, settings), SINCE, late) == 1
        assert await rescue(owner, await _scans(owner, settings), SINCE, late) == 0
        assert await depth(owner, queue_of("echo", settings)) == 1
    async with conducting(settings), working(settings):
        assert await handle.output(WAIT) == {"a": None}
    assert len(await outcomes(client)) == 1


async def test_what_went_missing_before_a_long_pause_is_put_back_too(client, settings):
    await declare(client)
    handle = await client.submit("echo", 1)
    async with connected(settings) as owner:
        await _lose(owner, settings, handle)
        after = (await client.find(handle.invocation)).queued_at + timedelta(days=1)
        assert await rescue(owner, await _scans(owner, settings), SINCE, after) == 1


async def test_what_has_an_outcome_or_is_in_its_queue_is_not_put_back(client, settings):
    await declare(client)
    async with conducting(settings), working(settings):
        done = await client.submit("echo", 1)
        await done.outcome(WAIT)
        await queue_holds(client, 0)
    waiting = await client.submit("echo", 2)
    later = (await client.find(waiting.invocation)).queued_at + 2 * UNSETTLED
    async with connected(settings) as owner:
        assert await rescue(owner, await _scans(owner, settings), SINCE, later) == 0
        assert await depth(owner, queue_of("echo", settings)) == 1
    assert (await client.find(waiting.invocation)).state == "queued"


async def test_a_conductor_that_starts_puts_back_what_is_missing(client, settings):
    await declare(client)
    handle = await client.submit("echo", 1)
    async with connected(settings) as owner:
        await _lose(owner, settings, handle)
    async with conducting(settings), working(settings):  # it looks once all that was is settled
        assert await handle.output(WAIT) == 1


async def test_a_scan_reads_every_unfinished_one_of_many(client, settings):
    await declare(client, queue_cap=10_000)
    count = 1300  # more than one batched read gives
    handles = await asyncio.gather(*(client.submit("echo", n) for n in range(count)))
    async with connected(settings) as owner:
        await queue_holds(client, count)  # it has followed the log
        scan = QueueScan(owner, subjects.shard_of("echo", settings.shards))
        await scan.refresh()
        assert len(scan.take_new()) == count
        assert set(scan.by_invocation) == {handle.invocation for handle in handles}
        await scan.refresh()
        assert scan.take_new() == []
        first = next(iter(scan.items.values()))
        await owner.api(f"STREAM.PURGE.{queue_of('echo', settings)}", {"seq": first.seq + 100})
        await scan.refresh()
        assert len(scan.items) == count - 100
