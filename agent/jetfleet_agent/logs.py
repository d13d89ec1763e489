"""Lines of models' output, sent to who asked for them, for as long as they ask.

A nudge (``{"logs": {"tenant", "job", "for_s"}}`` on the worker's command subject) is a lease of
some seconds: the lines that are kept are sent once, new ones until the lease ends. Nobody asks,
nothing is sent. Lines carry their number, so a reader sees what it has already, and what is
missing: more than ``LINES_PER_S`` of one replica are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jetfleet import subjects
from jetfleet.errors import BrokerUnavailable
from jetfleet_agent.replicas import Replica
from jetfleet_agent.runtimes.tail import Tail
from jetfleet_agent.serving import Serving

LONGEST_LEASE_S = 60.0
EVERY_S = 0.1
LINES_PER_S = 1000
MESSAGE_BYTES = 64 * 1024


class Waiting(NamedTuple):
    """A line on its way out. ``run``: restarts of the replica before the instance that said it."""

    run: int
    number: int
    text: str


@dataclass(slots=True, eq=False)
class Feed:
    """The lines of one replica on their way out."""

    replica: Replica
    until: float = 0  # end of the lease, loop time
    unended: bool = False  # the line still being written is wanted too, once
    tail: Tail | None = None  # of the instance that is followed
    run: int = 0
    waiting: deque[Waiting] = field(default_factory=lambda: deque(maxlen=LINES_PER_S))

    def __post_init__(self) -> None:
        self.replica.on_instance.append(self.follow)
        self.follow()

    def _take(self, number: int, text: str) -> None:
        self.waiting.append(Waiting(self.run, number, text))

    def follow(self) -> None:
        """Attach to the replica's present instance; its output so far comes first."""
        instance = self.replica.instance
        if instance is not None and instance.output is not self.tail:
            self.silence()
            self.tail, self.run = instance.output, self.replica.restarts
            self.again()
            self.tail.listeners.append(self._take)

    def again(self) -> None:
        """Send what is kept once more: somebody else asks."""
        if self.tail is None:
            return
        lines = self.tail.whole_lines()
        first = self.tail.ended - len(lines) + 1
        earlier = [each for each in self.waiting if each.run != self.run or each.number < first]
        self.waiting.clear()
        self.waiting.extend(earlier)
        self.waiting.extend(Waiting(self.run, *line) for line in enumerate(lines, first))

    def silence(self) -> None:
        """Take no new lines: a model that never stops talking must not keep this going."""
        if self.tail is not None and self._take in self.tail.listeners:
            self.tail.listeners.remove(self._take)

    def end(self) -> None:
        """Let go of the replica."""
        self.silence()
        if self.follow in self.replica.on_instance:
            self.replica.on_instance.remove(self.follow)

    def messages(self, room: int) -> list[bytes]:
        """The next lines, at most ``room``, in messages of a bounded size."""
        found: list[bytes] = []
        while self.waiting and room > 0:
            first, lines = self.waiting[0], self._some(room)
            found.append(_message(first.run, first.number, lines))
            room -= len(lines)
        return found

    def _some(self, room: int) -> list[str]:
        """The next lines of one run, in one message's size."""
        run, size = self.waiting[0].run, 0
        lines: list[str] = []
        while self.waiting and len(lines) < room and self.waiting[0].run == run:
            size += 6 * len(self.waiting[0].text)  # no character takes more, escaped or not
            if lines and size > MESSAGE_BYTES:
                break
            lines.append(self.waiting.popleft().text)
        return lines

    def hello(self) -> bytes:
        """That we heard, with the line that is still being written if it is wanted."""
        text = self.tail.unended() if self.tail is not None and self.unended else None
        number = self.tail.ended + 1 if self.tail is not None else 1
        return _message(self.run, number, [], **({} if text is None else {"unended": text}))


def _message(run: int, first: int, lines: list[str], **more: str) -> bytes:
    said = {"run": run, "first": first, "lines": lines, **more}
    return json.dumps(said, ensure_ascii=False).encode()


@dataclass(slots=True, eq=False)
class LogStreams:
    """All feeds of this worker."""

    serving: Serving
    feeds: dict[str, Feed] = field(default_factory=dict)  # by replica
    _leases: dict[tuple[str, str | None], float] = field(default_factory=dict)  # tenant, job
    _running: asyncio.Task[None] | None = None

    def lease(self, request: dict[str, Any]) -> None:
        """Obey a nudge. ``job`` None: every job of the tenant here."""
        key = (str(request.get("tenant")), request.get("job"))
        for_s = min(float(request.get("for_s", 0)), LONGEST_LEASE_S)
        until = asyncio.get_running_loop().time() + for_s
        self._leases[key] = max(until, self._leases.get(key, 0))
        self._grant()
        if not request.get("renew"):
            for feed in self.feeds.values():
                if _covers(key, feed.replica):
                    feed.unended |= for_s == 0
                    feed.again()
        if self._running is None or self._running.done():
            self._running = self.serving.soon(self._run())

    def _grant(self) -> None:
        """A feed for each replica that a lease covers, those that came after it included."""
        for replica in self.serving.replicas.values():
            ends = [until for key, until in self._leases.items() if _covers(key, replica)]
            if ends:
                feed = self.feeds.get(replica.id) or Feed(replica)
                self.feeds[replica.id] = feed
                feed.until = max(ends)

    async def _run(self) -> None:
        """Until no lease is left."""
        loop = asyncio.get_running_loop()
        greeted: set[str] = set()
        try:
            while self._leases or self.feeds:
                self._grant()
                for feed in list(self.feeds.values()):
                    if loop.time() < feed.until:
                        self._send(feed, greeted, int(LINES_PER_S * EVERY_S))
                    else:
                        feed.silence()
                        self._send(feed, greeted, LINES_PER_S)  # all that waits
                        self._end(feed)
                now = loop.time()
                self._leases = {key: until for key, until in self._leases.items() if until > now}
                await asyncio.sleep(EVERY_S)
        finally:
            for feed in list(self.feeds.values()):
                self._end(feed)

    def _end(self, feed: Feed) -> None:
        feed.end()
        self.feeds.pop(feed.replica.id, None)

    def _send(self, feed: Feed, greeted: set[str], most: int) -> None:
        replica = feed.replica
        job = self.serving.jobs.get((replica.tenant, replica.spec.name))
        if job is None:
            return  # the job is not opened yet, or closed: there are no rights to send
        bodies = feed.messages(most)
        if not feed.waiting and (replica.id not in greeted or feed.unended):
            bodies.append(feed.hello())
            greeted.add(replica.id)
            feed.unended = False
        subject = subjects.log(replica.tenant, replica.spec.name, job.worker, replica.id)
        for body in bodies:
            with contextlib.suppress(BrokerUnavailable):
                job.link.connection.send(subject, body)


def _covers(lease: tuple[str, str | None], replica: Replica) -> bool:
    tenant, job = lease
    return replica.tenant == tenant and job in (None, replica.spec.name)
