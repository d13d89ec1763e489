"""Putting back what a crash kept out of a queue.

A queue follows the log within a millisecond, and after a restart of the broker goes on from the
time of its last message. If it was empty then, an event that the log took in that last millisecond
can be passed over. The log still has it: compare, and put it back.

However long the broker was away, that event is among the last ones before the pause.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from jetfleet import subjects
from jetfleet.agreement import disagreement
from jetfleet.connection import Connection
from jetfleet.errors import BrokerUnavailable
from jetfleet.events import OUTCOMES, InvocationQueued, OutcomeEvent
from jetfleet.log import LogReader, Message, Record, record
from jetfleet.streams import INVOCATIONS
from jetfleet_projections.queue_scan import QueueScan

logger = logging.getLogger("jetfleet.rescue")
UNSETTLED = timedelta(seconds=1)  # younger than this may still be on its way into its queue
BEFORE = 10_000  # far more than what the log takes in a millisecond


@dataclass(frozen=True, slots=True)
class Missing:
    """A queued event that has neither an outcome nor a place in its queue."""

    shard: int
    seq: int  # in the log
    event: InvocationQueued
    body: bytes


async def rescue(
    connection: Connection, scans: Sequence[QueueScan], since: timedelta, now: datetime
) -> int:
    """Put back what is missing of the last ``since`` before ``now``; returns how many.

    ``BEFORE`` events before that are looked at too, for a broker that was away longer. What was
    younger than ``UNSETTLED`` at ``now`` is left alone.

    Reads the log first and the queues after it, so that what finishes or arrives meanwhile is
    seen; putting one back twice changes nothing (message id), and running one twice still has one
    outcome that counts.
    """
    start = await _first_since(connection, now - since) - BEFORE
    open_: dict[tuple[str, str, str], Record] = {}
    filters = (
        subjects.ALL_QUEUED,
        subjects.done(*[subjects.ANY] * 5),
    )
    async for batch in LogReader(connection, INVOCATIONS, filters, start=start).batches():
        for message in batch:
            _follow(open_, message)
    for scan in scans:
        await scan.refresh()
    missing = [m for record in open_.values() if (m := _missing(record, scans, now))]
    count = 0
    for one in missing:
        if await _still_open(connection, one):
            await _put_back(connection, one)
            count += 1
    if count:
        logger.warning("↻ %d invocations put back into their queues after a restart", count)
    return count


async def _first_since(connection: Connection, at: datetime) -> int:
    """Sequence in the log of the first event since then; of the next one, when there is none."""
    request = {"start_time": at.isoformat(), "next_by_subj": subjects.ALL_INVOCATIONS}
    reply = await connection.ask(f"$JS.API.DIRECT.GET.{INVOCATIONS}", json.dumps(request).encode())
    headers = reply.headers or {}
    if "Nats-Sequence" in headers:
        return int(headers["Nats-Sequence"])
    if headers.get("Status") != "404":
        raise BrokerUnavailable(f"{INVOCATIONS} cannot be read: {headers.get('Status')}")
    return int((await connection.api(f"STREAM.INFO.{INVOCATIONS}"))["state"]["last_seq"]) + 1


def _follow(open_: dict[tuple[str, str, str], Record], message: Message) -> None:
    read = record(INVOCATIONS, message)
    event = read.event
    if event is None:
        # An outcome that nobody can read: it was run, and to run it again would give the same.
        _, _, _, tenant, job, verb, *_ = message.subject.split(".")
        if verb == "done":
            open_.pop((tenant, job, _outcome_of(message)), None)
    elif disagreement(INVOCATIONS, read.subject, event):
        return  # set aside by everybody
    elif isinstance(event, InvocationQueued):
        open_[_key(event)] = read
    elif isinstance(event, OUTCOMES):
        open_.pop(_key(event), None)


def _outcome_of(message: Message) -> str:
    return subjects.outcome_of((message.headers or {}).get("Nats-Msg-Id", ""))


def _key(event: InvocationQueued | OutcomeEvent) -> tuple[str, str, str]:
    return (event.tenant, event.data.job, event.data.invocation)


def _missing(record: Record, scans: Sequence[QueueScan], now: datetime) -> Missing | None:
    event = record.event
    if not isinstance(event, InvocationQueued) or now - record.time < UNSETTLED:
        return None
    shard = int(record.subject.split(".")[2])
    if shard >= len(scans) or event.data.invocation in scans[shard].by_invocation:
        return None
    return Missing(shard, record.seq, event, record.body)


async def _still_open(connection: Connection, missing: Missing) -> bool:
    """It may have ended between our reading of the log and of its queue."""
    event = missing.event
    done = subjects.done(
        missing.shard, event.tenant, event.data.job, event.data.origin, subjects.ANY
    )
    async for batch in LogReader(connection, INVOCATIONS, (done,), start=missing.seq).batches():
        if any(_outcome_of(message) == event.data.invocation for message in batch):
            return False
    return True


async def _put_back(connection: Connection, missing: Missing) -> None:
    event = missing.event
    subject = subjects.queue(missing.shard, event.tenant, event.data.job, event.data.priority_class)
    await connection.store(subject, missing.body, msg_id=f"{event.data.invocation}.again")
