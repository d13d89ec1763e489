"""Looking into the queues: what is unfinished, found by reading only what is new since last time.

A WorkQueue stream holds exactly the unfinished invocations, so a pass from the last position on
sees the new ones, and the stream's first sequence tells which old ones are gone. What ended while
an older one still waits is not noticed by that: ask ``still_holds`` before acting on it.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import takewhile
from typing import Any

from nats.aio.msg import Msg

from jetfleet import subjects
from jetfleet.catalog import JobKey
from jetfleet.connection import NOT_FOUND, ApiError, Connection
from jetfleet.events import InvalidEvent, InvocationQueued, decode
from jetfleet.queues import read_batch


@dataclass(frozen=True, slots=True)
class Queued:
    """An unfinished invocation, as its queue holds it."""

    shard: int
    seq: int  # in its queue stream
    tenant: str
    job: str
    priority_class: str
    invocation: str
    event: str  # id of the queued event
    origin: str
    expires_at: datetime
    trace: str | None

    @property
    def key(self) -> JobKey:
        return (self.tenant, self.job)


@dataclass(slots=True, eq=False)
class QueueScan:
    """The unfinished invocations of one shard, and some that ended since: see the module."""

    connection: Connection
    shard: int
    items: dict[int, Queued] = field(default_factory=dict)  # by queue sequence, ascending
    by_invocation: dict[str, Queued] = field(default_factory=dict)
    jobs: Counter[JobKey] = field(default_factory=Counter)  # how many of each
    next_seq: int = 1
    _new: list[Queued] = field(default_factory=list)

    @property
    def stream(self) -> str:
        return subjects.queue_stream(self.shard)

    async def refresh(self, within_s: float | None = None) -> None:
        """Forget what is gone, read what is new (``take_new``).

        ``within_s``: stop reading after so many seconds and go on next time, so that looking into a
        queue that fills quickly does not slow down who fills it.
        """
        until = None if within_s is None else time.monotonic() + within_s
        state = (await self.connection.api(f"STREAM.INFO.{self.stream}"))["state"]
        self._forget_below(state["first_seq"] if state["messages"] else state["last_seq"] + 1)
        while self.next_seq <= state["last_seq"]:
            found = 0
            everything = subjects.queue(self.shard, *[subjects.ANY] * 3)
            async for message in read_batch(
                self.connection, self.stream, everything, self.next_seq
            ):
                found += 1
                self.next_seq = int((message.headers or {})["Nats-Sequence"]) + 1
                item = _read(self.shard, message)
                if item is not None:
                    self._keep(item)
            if not found:
                self.next_seq = state["last_seq"] + 1
            if until is not None and time.monotonic() > until:
                break

    def take_new(self) -> list[Queued]:
        """What was read since this was last asked."""
        new, self._new = self._new, []
        return new

    def _keep(self, item: Queued) -> None:
        self.items[item.seq] = item
        self.by_invocation[item.invocation] = item
        self.jobs[item.key] += 1
        self._new.append(item)

    def forget(self, item: Queued) -> None:
        if self.items.pop(item.seq, None) is not None:
            self.jobs[item.key] -= 1
            if not self.jobs[item.key]:
                del self.jobs[item.key]
        if self.by_invocation.get(item.invocation) is item:  # not another one under its id
            del self.by_invocation[item.invocation]

    async def still_holds(self, item: Queued) -> bool:
        """Whether it is unfinished; one that ended behind older ones is forgotten here at last."""
        try:
            await self.connection.api(f"STREAM.MSG.GET.{self.stream}", {"seq": item.seq})
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            self.forget(item)
            return False
        return True

    def _forget_below(self, first: int) -> None:
        for item in list(takewhile(lambda item: item.seq < first, self.items.values())):
            self.forget(item)


def _read(shard: int, message: Msg) -> Queued | None:
    """None for what is not a queued event: an agent that pulls it will set it aside."""
    headers: dict[str, Any] = message.headers or {}
    try:
        event = decode(message.data)
    except InvalidEvent:
        return None
    if not isinstance(event, InvocationQueued):
        return None
    data = event.data
    vouched = subjects.queue(shard, event.tenant, data.job, data.priority_class)
    if headers.get("Nats-Subject") != vouched:
        return None  # it claims to be of another tenant or job than its subject says
    return Queued(
        shard,
        int(headers["Nats-Sequence"]),
        event.tenant,
        data.job,
        data.priority_class,
        data.invocation,
        event.id,
        data.origin,
        data.expires_at,
        event.traceparent,
    )
