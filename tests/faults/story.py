"""What the log says of the work, and what must hold of it after every fault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from jetfleet.client import Client
from jetfleet.events import OUTCOMES, InvocationQueued, InvocationStarted, OutcomeEvent
from jetfleet.log import Record
from jetfleet.streams import INVOCATIONS
from waiting import WITHIN_S


@dataclass
class Story:
    """What the log says of the work: by invocation, in stream order."""

    queued: dict[str, int] = field(default_factory=dict)
    started: list[InvocationStarted] = field(default_factory=list)
    outcomes: dict[str, list[OutcomeEvent]] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        event = record.event
        if isinstance(event, InvocationQueued):
            self.queued.setdefault(event.data.invocation, record.seq)
        elif isinstance(event, InvocationStarted):
            self.started.append(event)
        elif isinstance(event, OUTCOMES):
            self.outcomes.setdefault(event.data.invocation, []).append(event)

    def counting(self, invocation: str) -> OutcomeEvent:
        """The outcome that counts: the first."""
        return self.outcomes[invocation][0]

    def attempts(self, invocation: str) -> list[InvocationStarted]:
        return [event for event in self.started if event.data.invocation == invocation]


async def told(client: Client) -> Story:
    """The whole INVOCATIONS log, folded."""
    story = Story()
    async for record in client.events(INVOCATIONS):
        story.take(record)
    return story


async def all_ended(client: Client, accepted: Iterable[str], within_s: float = WITHIN_S) -> Story:
    """The log's story once all of these have an outcome; asserts what must hold of it.

    Every accepted id is in the log and has an outcome, and no outcome lacks its ``queued``.
    """
    wanted = set(accepted)
    open_ = set(wanted)
    story = Story()
    records = client.events(INVOCATIONS, follow=True)
    try:
        async with asyncio.timeout(within_s):
            while open_:
                record = await anext(records)
                story.take(record)
                if isinstance(record.event, OUTCOMES):
                    open_.discard(record.event.data.invocation)
    except TimeoutError:
        lost = {i for i in open_ if i not in story.queued}
        raise AssertionError(
            f"{len(open_)} of {len(wanted)} accepted have no outcome after {within_s:g} s, "
            f"{len(lost)} of them are not in the log: {json.dumps(sorted(open_)[:5])}"
        ) from None
    finally:
        await records.aclose()  # type: ignore[attr-defined]  # it is an async generator
    story = await told(client)
    assert wanted <= story.queued.keys()
    assert story.outcomes.keys() <= story.queued.keys()
    return story
