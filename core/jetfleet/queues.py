"""Looking into the queues: what they hold, and where an invocation stands in that of its job."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any

from nats.aio.msg import Msg

from jetfleet import access, subjects
from jetfleet.catalog import JobKey
from jetfleet.causes import Queue
from jetfleet.connection import NOT_FOUND, ApiError, Connection
from jetfleet.errors import BrokerUnavailable
from jetfleet.events import InvalidEvent, InvocationQueued, decode

BATCH = 500
BATCH_BYTES = 8 * 1024**2
ANSWER_S = 5.0
LOOK_S = 2.0  # so long it is counted how many are before one


async def read_batch(
    connection: Connection, stream: str, subject: str, seq: int
) -> AsyncGenerator[Msg, None]:
    """The next messages of a queue on a subject, from a sequence on, by one batched direct get.

    Raises:
        BrokerUnavailable: no answer in time.
    """
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = f"{access.inbox(connection.user)}.s{secrets.token_hex(8)}"
    subscription = await connection.subscribe(inbox, arrived.put_nowait)
    request = {"seq": seq, "next_by_subj": subject, "batch": BATCH, "max_bytes": BATCH_BYTES}
    try:
        await connection.publish(
            f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox
        )
        while True:
            try:
                async with asyncio.timeout(ANSWER_S):
                    message = await arrived.get()
            except TimeoutError:
                raise BrokerUnavailable(f"no answer about {stream}") from None
            if "Nats-Sequence" not in (message.headers or {}):
                return  # 204 end of batch, 404 nothing there
            yield message
    finally:
        await subscription.stop()


async def look(
    connection: Connection,
    key: JobKey,
    *,
    shards: int,
    classes: Sequence[str],
    priority_class: str = "",
    invocation: str | None = None,
) -> Queue:
    """A job's queue now, and where an invocation stands in that of its class.

    Args:
        classes: of the job, highest first.
        priority_class: of the invocation.

    Raises:
        BrokerUnavailable: no answer in time.
    """
    tenant, job = key
    shard = subjects.shard_of(job, shards)
    stream = subjects.queue_stream(shard)
    subject = subjects.queue(shard, tenant, job, subjects.ANY)
    consumers = {
        each: await _consumer(connection, stream, subjects.job_consumer(tenant, job, each))
        for each in dict.fromkeys((*classes, *([priority_class] if invocation else [])))
    }
    consumer = consumers.get(priority_class)
    holds, before, counted, seq = None, 0, True, 0
    if invocation is not None:
        own = subjects.queue(shard, tenant, job, priority_class)
        holds, before, counted, seq = await _find(connection, stream, own, invocation)
    info = await connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": subject})
    counts: dict[str, int] = info["state"].get("subjects") or {}
    sources: list[dict[str, Any]] = info.get("sources") or [{}]
    running = {
        each: int(info["num_ack_pending"]) for each, info in consumers.items() if info is not None
    }
    delivered = 0 if consumer is None else int(consumer["delivered"]["stream_seq"])
    others = {
        each: (counts.get(subjects.queue(shard, tenant, job, each), 0), running.get(each, 0))
        for each in classes if invocation and each != priority_class
    }  # fmt: skip
    higher = classes[: classes.index(priority_class)] if priority_class in classes else ()
    return Queue(
        unfinished=sum(counts.values()),
        position=sources[0].get("seq", 0),
        oldest_at=await _oldest(connection, stream, subject) if counts else None,
        holds=holds,
        before=before,
        counted=counted,
        consumer=consumer is not None if invocation else all(consumers.values()),
        running=sum(running.values()) if running else None,
        handed_out=bool(seq and seq <= delivered),
        priority_class=priority_class if others else "",
        of_others=sum(held for held, _ in others.values()),
        running_of_others=sum(taken for _, taken in others.values()),
        higher=sum(max(0, others[each][0] - others[each][1]) for each in higher if others),
    )


async def _consumer(connection: Connection, stream: str, name: str) -> dict[str, Any] | None:
    try:
        return await connection.api(f"CONSUMER.INFO.{stream}.{name}")
    except ApiError as error:
        if error.status != NOT_FOUND:
            raise
        return None


async def _oldest(connection: Connection, stream: str, subject: str) -> datetime | None:
    """When the first message of a subject came; None: there is none any more."""
    request = json.dumps({"seq": 1, "next_by_subj": subject}).encode()
    reply = await connection.ask(f"$JS.API.DIRECT.GET.{stream}", request)
    stamp = (reply.headers or {}).get("Nats-Time-Stamp")
    return None if stamp is None else datetime.fromisoformat(stamp)


async def _find(
    connection: Connection, stream: str, subject: str, invocation: str
) -> tuple[bool | None, int, bool, int]:
    """Whether an invocation is in its queue, how many before it, whether these are all, its place.

    A long queue is read for ``LOOK_S``; whether it is in what was not read is not known (None).
    """
    needle, before, seq = invocation.encode(), 0, 1
    until = time.monotonic() + LOOK_S
    while True:
        read = 0
        async with aclosing(read_batch(connection, stream, subject, seq)) as batch:
            async for message in batch:
                read += 1
                seq = int((message.headers or {})["Nats-Sequence"]) + 1
                if needle in message.data and _is(message, invocation):
                    return True, before, True, seq - 1
                before += 1
        if not read:
            return False, 0, True, 0
        if time.monotonic() > until:
            return None, before, False, 0


def _is(message: Msg, invocation: str) -> bool:
    try:
        event = decode(message.data)
    except InvalidEvent:
        return False
    return isinstance(event, InvocationQueued) and event.data.invocation == invocation
