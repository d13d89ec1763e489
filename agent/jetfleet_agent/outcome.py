"""Publishing what happens to an invocation: started, chunks, and its one outcome."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from jetfleet import blobs, subjects
from jetfleet.connection import ApiError, Connection
from jetfleet.errors import BrokerUnavailable, LogFull
from jetfleet.events import (
    InvocationCompleted,
    InvocationQueued,
    InvocationStarted,
    OutcomeEvent,
    encode,
)
from jetfleet.stamp import Stamp

logger = logging.getLogger("jetfleet.outcome")
RETRY_S = 0.5
LONGEST_RETRY_S = 10.0


@dataclass(slots=True, eq=False)
class Publisher:
    """Says what happens to the invocations of one job, in this worker's name."""

    connection: Connection
    worker: str
    tenant: str
    job: str
    shard: int
    stamp: Stamp
    inline_limit: int

    async def started(self, event: InvocationQueued, replica: str, attempt: int) -> None:
        """Not awaited by the broker: it informs, nothing hangs on it."""
        data = InvocationStarted.Data(
            invocation=event.data.invocation, job=self.job, worker=self.worker, replica=replica,
            attempt=attempt,
        )  # fmt: skip
        said = InvocationStarted(**self.stamp(self.tenant, cause=event), data=data)
        subject = subjects.started(self.shard, self.tenant, self.job, self.worker)
        try:
            await self.connection.publish(subject, encode(said))
        except BrokerUnavailable as error:
            logger.info("started of %s is not in the log: %s", event.data.invocation, error)

    async def chunk(self, invocation: str, number: int, text: bytes) -> None:
        """A piece of output for whoever listens: ``<number> <JSON text>``."""
        subject = subjects.output(invocation, self.worker)
        try:
            await self.connection.publish(subject, b"%d %s" % (number, text))
        except BrokerUnavailable as error:
            logger.info("chunk %d of %s is lost: %s", number, invocation, error)

    async def outcome(self, event: InvocationQueued, outcome: OutcomeEvent) -> None:
        """Return when the log has it, however long that takes; the broker drops a second one."""
        body = encode(outcome)
        if len(body) > self.inline_limit and isinstance(outcome, InvocationCompleted):
            body = encode(await self._outside(event, outcome))
        subject = subjects.done(self.shard, self.tenant, self.job, event.data.origin, self.worker)
        wait = RETRY_S
        while True:
            try:
                await self.connection.store(
                    subject, body, msg_id=f"{event.data.invocation}.done", timeout_s=None
                )
            except (LogFull, ApiError, BrokerUnavailable) as error:
                logger.warning("! outcome of %s not stored: %s", event.data.invocation, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_RETRY_S)
            else:
                return

    async def _outside(
        self, event: InvocationQueued, outcome: InvocationCompleted
    ) -> InvocationCompleted:
        """The same outcome with its output in the payload store."""
        data = outcome.data
        blob = outcome.id
        ref = await blobs.write(
            self.connection,
            blobs.to_json(data.output),
            blob,
            lambda n: subjects.output_blob(self.tenant, self.job, self.worker, blob, n),
            worker=self.worker,
            timeout_s=None,
        )
        moved: dict[str, Any] = {"output": None, "output_ref": ref}
        return outcome.model_copy(update={"data": data.model_copy(update=moved)})
