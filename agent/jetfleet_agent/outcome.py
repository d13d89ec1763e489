"""Publishing what happens to an invocation: started, chunks, and its one outcome."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticSerializationError, from_json

from jetfleet import blobs, subjects
from jetfleet.connection import ApiError, Connection
from jetfleet.errors import BrokerUnavailable, LogFull
from jetfleet.events import (
    InvalidEvent,
    InvocationCompleted,
    InvocationQueued,
    InvocationStarted,
    OutcomeEvent,
    compose,
    decode,
    encode,
    unreadable,
)
from jetfleet.limits import excess
from jetfleet.stamp import Stamp

logger = logging.getLogger("jetfleet.outcome")
RETRY_S = 0.5
LONGEST_RETRY_S = 10.0
CHUNK_LIMIT = 512 * 1024  # bytes of a chunk; the broker takes messages of 1 MB


class Unwritable(ValueError):
    """An outcome that nobody could read; it was not published."""


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

    def started(self, event: InvocationQueued, replica: str, attempt: int, run_s: float) -> None:
        """Not awaited by the broker: it informs, nothing hangs on it."""
        said = compose(
            InvocationStarted,
            self.stamp(self.tenant, cause=event),
            {
                "invocation": event.data.invocation,
                "job": self.job,
                "worker": self.worker,
                "replica": replica,
                "attempt": attempt,
                "run_s": run_s,
            },
        )
        subject = subjects.started(self.shard, self.tenant, self.job, self.worker)
        try:
            self.connection.send(subject, said)
        except BrokerUnavailable as error:
            logger.info("started of %s is not in the log: %s", event.data.invocation, error)

    def chunk(self, invocation: str, number: int, text: bytes) -> None:
        """A piece of output for whoever listens: ``<number> <JSON text>``.

        One that is too large for a message, or that listeners could not read, is sent without its
        text, so that they know of the gap; the outcome has the whole output.
        """
        subject = subjects.output(invocation, self.worker)
        if len(text) > CHUNK_LIMIT or excess(text):
            text = b""
        try:
            self.connection.send(subject, b"%d %s" % (number, text))
        except BrokerUnavailable as error:
            logger.info("chunk %d of %s is lost: %s", number, invocation, error)

    async def completed(
        self, event: InvocationQueued, facts: dict[str, Any], raw: bytes, output: Any
    ) -> None:
        """Completed with this output (JSON text), kept outside the event when it is big.

        Raises:
            Unwritable: the output nests too deep or has numbers too long to be read everywhere.
        """
        envelope = self.stamp(self.tenant, cause=event)
        if len(raw) > self.inline_limit:
            if why := excess(raw):
                raise Unwritable(why)
            blob = envelope["id"]
            facts["output_ref"] = await blobs.write(
                self.connection,
                raw,
                blob,
                lambda n: subjects.output_blob(self.tenant, self.job, self.worker, blob, n),
                worker=self.worker,
                timeout_s=None,
            )
        else:
            facts["output"] = output
        try:
            body = compose(InvocationCompleted, envelope, facts)
        except PydanticSerializationError as error:
            raise Unwritable(str(error)) from error
        if b"Infinity" in body and _has_infinity(body):
            raise Unwritable("it has a number that is too large")
        if why := unreadable(body):
            raise Unwritable(why)
        await self._store(event, body)

    async def outcome(self, event: InvocationQueued, outcome: OutcomeEvent) -> None:
        """Any other outcome.

        Raises:
            Unwritable: it holds text that cannot be written.
        """
        try:
            body = encode(outcome)
            decode(body)  # rare, so not too dear
        except (PydanticSerializationError, InvalidEvent) as error:
            raise Unwritable(str(error)) from error
        await self._store(event, body)

    async def _store(self, event: InvocationQueued, body: bytes) -> None:
        """Return when the log has it, however long that takes; the broker drops a second one."""
        subject = subjects.done(self.shard, self.tenant, self.job, event.data.origin, self.worker)
        msg_id = subjects.outcome_id(event.data.invocation, event.id)
        wait = RETRY_S
        while True:
            try:
                await self.connection.store(subject, body, msg_id=msg_id, timeout_s=None)
            except (LogFull, ApiError, BrokerUnavailable) as error:
                logger.warning("! outcome of %s not stored: %s", event.data.invocation, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_RETRY_S)
            else:
                return


def _has_infinity(body: bytes) -> bool:
    """Whether it is more than a word in a text: what 1e999 is read as."""
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError:
        return True
    return False
