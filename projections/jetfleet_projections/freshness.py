"""Whether what a conductor knows is of now.

A process that was stopped for a while goes on with clocks that ran and with what it knew before:
everybody seems silent, and jobs that were made meanwhile seem deleted. So before anything is
concluded the broker is asked where the logs end. It answers in order: with the answer all has come
that it held back on this connection, heartbeats too, and the folds are waited for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from jetfleet.connection import NOT_FOUND, ApiError, Connection
from jetfleet.errors import Unavailable
from jetfleet.streams import FLEET, REGISTRY

logger = logging.getLogger("jetfleet.conductor")
SLOW_S = 1.0  # an answer that takes longer: the broker slept, or we did
HOLDS_S = 5.0  # what is concluded later than this must be asked for again
LOOK_S = 0.01
STREAMS = (REGISTRY, FLEET)


@dataclass(slots=True, eq=False)
class Freshness:
    """See the module. ``folded``: last positions folded of REGISTRY and FLEET."""

    connection: Connection
    folded: Callable[[], tuple[int, int]]
    _nothing_until: dict[str, int] = field(default_factory=dict)  # positions without a message

    async def renew(self) -> float | None:
        """The loop's time now, once all until now is folded and heard; None: not within a second.

        Raises:
            ApiError: the broker refuses to say where a log ends.
        """
        loop = asyncio.get_running_loop()
        asked = loop.time()
        if not self.connection.connected:
            return None
        try:
            ends = await asyncio.gather(*map(self._end, STREAMS))
            while behind := self._behind(ends):
                if loop.time() - asked > SLOW_S:
                    await self._look_for(behind, ends)
                    return None
                await asyncio.sleep(LOOK_S)
        except Unavailable as error:
            logger.debug("what is known is not of now: %s", error)
            return None
        return asked if loop.time() - asked <= SLOW_S else None

    @staticmethod
    def holds(known: float | None) -> bool:
        """Whether what was known then (see ``renew``) may still be relied on."""
        return known is not None and asyncio.get_running_loop().time() - known < HOLDS_S

    async def _end(self, stream: str) -> int:
        info = await self.connection.api(f"STREAM.INFO.{stream}", timeout_s=SLOW_S)
        return int(info["state"]["last_seq"])

    def _behind(self, ends: list[int]) -> list[str]:
        return [
            stream
            for stream, at, end in zip(STREAMS, self.folded(), ends, strict=True)
            if max(at, self._nothing_until.get(stream, 0)) < end
        ]

    async def _look_for(self, behind: list[str], ends: list[int]) -> None:
        """Somebody may have deleted the last messages of a log: then nothing is waited for."""
        for stream, at, end in zip(STREAMS, self.folded(), ends, strict=True):
            if stream not in behind:
                continue
            try:
                await self.connection.api(
                    f"STREAM.MSG.GET.{stream}", {"seq": at + 1, "next_by_subj": ">"}, SLOW_S
                )
            except ApiError as error:
                if error.status != NOT_FOUND:
                    raise
                self._nothing_until[stream] = end
