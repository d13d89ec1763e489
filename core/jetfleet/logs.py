"""What models print, from anywhere: ask the workers that run them, and listen.

Nothing of it is stored. Workers send the last lines that they keep, and new ones while they are
asked again every few seconds. Lines are numbered, so what came twice is told once, and what never
came is counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from jetfleet import subjects
from jetfleet.agreement import disagreement
from jetfleet.connection import Connection
from jetfleet.fleet import FleetState, ReplicaState, evolve_fleet
from jetfleet.log import LogReader, read_records
from jetfleet.streams import FLEET

logger = logging.getLogger("jetfleet.logs")
ANSWER_S = 3.0  # longest wait for the workers, when only asking once
RENEW_S = 5.0
LEASE_S = 15.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a replica. ``missing``: how many lines before it were left out on the way."""

    worker: str
    tenant: str
    job: str
    replica: str
    number: int
    text: str
    missing: int = 0


@dataclass(slots=True, eq=False)
class LogFeed:
    """The lines of a job's replicas, or of a worker's; see ``lines``.

    Args:
        job, worker: None: of any.
        follow: go on with new lines, also of replicas that come later.
    """

    connection: Connection
    tenant: str
    job: str | None = None
    worker: str | None = None
    follow: bool = False
    fleet: FleetState = field(default_factory=FleetState)
    silent: frozenset[str] = frozenset()  # replicas that did not answer (not when following)
    _messages: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # replica -> run, line

    def replicas(self) -> list[ReplicaState]:
        """Those that are there now."""
        return [
            replica
            for replica in self.fleet.replicas.values()
            if replica.tenant == self.tenant
            and self.job in (None, replica.job)
            and self.worker in (None, replica.worker)
        ]

    async def lines(self) -> AsyncIterator[Line]:
        """The lines that are kept, and with ``follow`` new ones for ever.

        Raises:
            BrokerUnavailable: the connection is closed for good.
        """
        any_ = subjects.ANY
        subject = subjects.log(self.tenant, self.job or any_, self.worker or any_, any_)
        reader = LogReader(self.connection, FLEET, follow=True)
        folding = asyncio.create_task(self._fold(reader))
        subscription = await self.connection.subscribe(subject, self._messages.put_nowait)
        try:
            await reader.caught_up.wait()
            source = self._follow() if self.follow else self._once()
            async for line in source:
                yield line
        finally:
            folding.cancel()
            await asyncio.gather(folding, return_exceptions=True)
            await subscription.stop()

    async def _fold(self, reader: LogReader) -> None:
        async for record in read_records(reader):
            if record.event is None or disagreement(FLEET, record.subject, record.event):
                continue
            before = self.fleet.replicas
            self.fleet = evolve_fleet(self.fleet, record.event, record.seq)
            if self.follow and self.fleet.replicas.keys() - before.keys():
                self._messages.put_nowait(None)  # somebody else may have to be asked

    async def _once(self) -> AsyncIterator[Line]:
        waited_for = {replica.id for replica in self.replicas()}
        self._ask(for_s=0)
        deadline = asyncio.get_running_loop().time() + ANSWER_S
        while waited_for:
            try:
                async with asyncio.timeout_at(deadline):
                    message = await self._messages.get()
            except TimeoutError:
                self.silent = frozenset(waited_for)
                return
            said, replica = self._read(message)
            for line in self._new(message.subject, said):
                yield line
            if not said["lines"]:  # the last message of an answer
                waited_for.discard(replica)

    async def _follow(self) -> AsyncIterator[Line]:
        loop = asyncio.get_running_loop()
        asked: set[str] = set()
        ask_at = 0.0
        while True:
            present = {replica.id for replica in self.replicas()}
            if loop.time() >= ask_at or present - asked:
                self._ask(for_s=LEASE_S, renew=bool(asked) and not present - asked)
                asked, ask_at = present, loop.time() + RENEW_S
            try:
                async with asyncio.timeout_at(ask_at):
                    message = await self._messages.get()
            except TimeoutError:
                continue
            if message is None:
                continue
            said, _ = self._read(message)
            for line in self._new(message.subject, said):
                yield line

    def _ask(self, *, for_s: float, renew: bool = False) -> None:
        request = {"tenant": self.tenant, "job": self.job, "for_s": for_s, "renew": renew}
        body = json.dumps({"logs": request}).encode()
        for worker in sorted({replica.worker for replica in self.replicas()}):
            self.connection.send(subjects.command(worker), body)

    def _read(self, message: Any) -> tuple[dict[str, Any], str]:
        """What a message says, and the replica of its subject; nothing, when it is damaged."""
        replica = message.subject.rsplit(".", 1)[1]
        try:
            said = json.loads(message.data)
            kinds = {"lines": list, "first": int, "run": int}
            if not all(isinstance(said[name], kind) for name, kind in kinds.items()):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            logger.warning("a message on %s is none of log lines", message.subject)
            return {"lines": [], "first": 1, "run": 0}, replica
        return said, replica

    def _new(self, subject: str, said: dict[str, Any]) -> Iterable[Line]:
        """The lines of a message that were not told yet."""
        _, _, tenant, job, worker, replica = subject.split(".")
        run, first = said["run"], said["first"]
        before = self._seen.get(replica)
        last = before[1] if before is not None and before[0] == run else None
        for number, text in enumerate(said["lines"], first):
            if last is not None and number <= last:
                continue
            missing = number - last - 1 if last is not None else 0
            last = number
            yield Line(worker, tenant, job, replica, number, str(text), missing)
        if "unended" in said and not self.follow:
            yield Line(worker, tenant, job, replica, first, str(said["unended"]))
        if last is not None:
            self._seen[replica] = (run, last)
