"""One invocation on this worker, from the message pulled to the outcome published."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pydantic_core
from nats.aio.msg import Msg

from jetfleet import blobs, subjects
from jetfleet.errors import BrokerUnavailable
from jetfleet.events import (
    Failure,
    InvocationCancelled,
    InvocationExpired,
    InvocationFailed,
    InvocationQueued,
    OutcomeEvent,
)
from jetfleet.limits import excess
from jetfleet_agent.contracts import (
    Call,
    CallCancelled,
    CallFailed,
    InvalidOutput,
    ModelExited,
    Session,
)
from jetfleet_agent.outcome import Unwritable
from jetfleet_agent.replicas import Replica

if TYPE_CHECKING:
    from jetfleet_agent.worker import JobWorker

logger = logging.getLogger("jetfleet.attempt")
CANCEL_DEADLINE_S = 2.0  # a model that was asked to stop and did not is killed then
INPUT_WAIT_S = 30.0  # longest wait for a broker that does not hand out an input
INPUT_RETRY_S = 0.2
STARTED_AFTER_S = 0.02  # an attempt that ends sooner is told of by its outcome alone
TEXT_LIMIT = 16_000  # characters of a traceback or log tail kept in the log


class Completed(NamedTuple):
    """What the model returned: as JSON text, and read."""

    raw: bytes
    output: Any


@dataclass(slots=True, eq=False)
class Task:
    """An invocation in progress."""

    owner: JobWorker
    event: InvocationQueued
    message: Msg
    invocation: str
    waiting: bool = False  # for a replica
    chunks: int = 0
    attempt: int = 0
    replica: Replica | None = None
    run_s: float | None = None
    history: list[str] = field(default_factory=list)
    excused: int = 0  # attempts that ended because the model was stopped for another call
    _cancel_reason: str | None = None
    _timed_out: bool = False
    _began: float = 0.0
    _call: tuple[Replica, Session, Call] | None = None
    _over: asyncio.Future[None] | None = None  # of a call that is being stopped: done when it ended
    _timer: asyncio.TimerHandle | None = None

    def cancel(self, reason: str) -> None:
        """Ask for it to end; the first reason is kept."""
        if self._cancel_reason is None:
            self._cancel_reason = reason
            self._stop_call()

    def wait(self) -> None:
        """It needs a replica and has none: a slot is spoken for."""
        if not self.waiting:
            self.waiting = True
            self.owner.waiting += 1

    def wait_over(self) -> None:
        """It has a replica, or needs none any more."""
        if self.waiting:
            self.waiting = False
            self.owner.waiting -= 1

    async def run(self, cancelled: str | None) -> bool:
        """See it to its outcome; False when it was handed back instead."""
        owner, data = self.owner, self.event.data
        delivered = int(self.message.reply.rsplit(".", 5)[1])
        if cancelled is not None:
            await self._publish(self._cancelled_event(cancelled))
        elif delivered == 1 and owner.now() > data.expires_at:
            expired = InvocationExpired.Data(**self._facts(), expires_at=data.expires_at)
            await self._publish(InvocationExpired(**self._envelope(), data=expired))
        elif delivered > owner.spec.retry_limit + 1:
            self.attempt = delivered - 1
            await self._publish(self._failed("attempts_exhausted", self._exhausted(delivered)))
        else:
            outcome = await self._attempts(delivered)
            if outcome is None:
                owner.hand_back(self)
                return False
            if isinstance(outcome, Completed):
                await self._complete(outcome)
            else:
                await self._publish(outcome)
        return True

    async def _complete(self, outcome: Completed) -> None:
        try:
            await self.owner.publisher.completed(self.event, self._facts(), *outcome)
        except Unwritable as error:
            why = f"the model's answer cannot be kept: {error}"
            await self._publish(self._failed("invalid_output", why))
        else:
            logger.debug("← %s", self.invocation)

    def _exhausted(self, delivered: int) -> str:
        return (
            f"{delivered - 1} attempts were lost with their workers or models; "
            f"retry_limit allows {self.owner.spec.retry_limit} more than the first"
        )

    async def _attempts(self, delivered: int) -> Completed | OutcomeEvent | None:
        """Run it, again when the model's process ended under it; None: hand it back."""
        try:
            text = await self._input()
        except blobs.BlobUnreadable as error:
            return self._failed("invalid_input", str(error))
        except BrokerUnavailable:
            why = self._cancel_reason
            return None if why is None else self._cancelled_event(why)
        self.attempt = delivered - 1
        limit = self.owner.spec.retry_limit + 1
        while True:
            replica = self.owner.choose() or await self._replica_back()
            if replica is None:
                return None
            self.attempt += 1
            try:
                return await self._attempt(replica, text)
            except ModelExited as error:
                self.wait()
                why = replica.killed_for or error.message
                self.excused += bool(replica.killed_for)
                self.history.append(f"attempt {self.attempt}: {why}")
                logger.info("↻ %s: %s", self.invocation, why)
                if self._cancel_reason is not None:
                    return self._cancelled_event(self._cancel_reason)
                if self.attempt - self.excused >= limit:
                    return self._failed("model_exited", error.message, error.detail)

    async def _replica_back(self) -> Replica | None:
        """Wait for a replica that is being restarted; None when there is none to wait for."""
        owner = self.owner
        while any(not replica.stopping and replica.failure is None for replica in owner.replicas):
            if owner.draining:
                return None
            if (replica := owner.choose()) is not None:
                return replica
            await owner.slot_event()
        return None

    async def _attempt(self, replica: Replica, text: bytes) -> Completed | OutcomeEvent:
        """One run in one replica: its output, or another outcome. Raises ModelExited."""
        owner, data = self.owner, self.event.data
        self.replica = replica
        self.wait_over()
        replica.running += 1
        self.chunks = 0
        logger.debug("→ %s attempt %d", self.invocation, self.attempt)
        call = Call(self.invocation, text, stream=data.stream, on_chunk=self._on_chunk)
        self.run_s, self._began = None, time.monotonic()
        raw = b""
        try:
            raw = await self._invoke(replica, call)
            output = pydantic_core.from_json(raw, allow_inf_nan=False)
        except CallFailed as error:
            if self._timed_out or self._cancel_reason is not None:
                return self._stopped_event(replica)
            if isinstance(error, ModelExited):
                raise
            code = "invalid_output" if isinstance(error, InvalidOutput) else "model_error"
            return self._failed(code, error.message, error.detail)
        except ValueError as error:
            why = excess(raw) or f"it is not JSON: {error}"
            return self._failed("invalid_output", f"the model's answer cannot be kept: {why}")
        else:
            replica.well()
            owner.completed(time.monotonic() - self._began)
            return Completed(raw, output)
        finally:
            self.run_s = time.monotonic() - self._began
            owner.finished += 1
            owner.busy_s += self.run_s
            replica.running -= 1
            owner.slots_changed()

    def _stopped_event(self, replica: Replica) -> OutcomeEvent:
        """The outcome of a call that we ended: too long, or cancelled."""
        if self._cancel_reason is not None:
            return self._cancelled_event(self._cancel_reason)
        limit = self.event.data.timeout_s
        tail = "\n".join(replica.tail())
        return self._failed("timeout", f"it ran longer than timeout_s ({limit:g} s)", tail)

    async def _invoke(self, replica: Replica, call: Call) -> bytes:
        """The call, which a timeout or a cancellation ends from outside by stopping the model."""
        session = replica.session
        if session is None:
            raise ModelExited("the model's process ended before the call")
        if self._cancel_reason is not None:
            raise CallCancelled("cancelled before it began")
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(STARTED_AFTER_S, self._on_goes_on, replica.id)
        self._call = replica, session, call
        try:
            return await session.invoke(call)
        finally:
            self._timer.cancel()
            self._call = None
            if self._over is not None:
                self._over.set_result(None)
                self._over = None

    def _on_goes_on(self, replica: str) -> None:
        run_s = time.monotonic() - self._began
        self.owner.publisher.started(self.event, replica, self.attempt, run_s)
        rest_s = self.event.data.timeout_s - run_s
        self._timer = asyncio.get_running_loop().call_later(max(rest_s, 0), self._on_timeout)

    def _on_timeout(self) -> None:
        self._timed_out = True
        self._stop_call()

    def _stop_call(self) -> None:
        if self._call is not None and self._over is None:
            self._over = over = asyncio.get_running_loop().create_future()
            self.owner.link.connection.spawn(self._stop(*self._call, over))

    async def _stop(
        self, replica: Replica, session: Session, call: Call, over: asyncio.Future[None]
    ) -> None:
        """Ask the model to stop this call, and kill it when it cannot or does not."""
        if await session.cancel(call.id):
            await asyncio.wait({over}, timeout=CANCEL_DEADLINE_S)
        if not over.done():
            logger.warning("! %s does not stop: its model is killed", self.invocation)
            await replica.kill(f"its model was stopped, because call {self.invocation} did not")

    def _on_chunk(self, text: bytes) -> None:
        number = self.chunks
        self.chunks += 1
        self.owner.publisher.chunk(self.invocation, number, text)

    async def _input(self) -> bytes:
        """Its JSON text. Raises BlobUnreadable, and BrokerUnavailable when that stays so."""
        data = self.event.data
        ref = data.input_ref
        if ref is None:
            return pydantic_core.to_json(data.input)
        owner, began = self.owner, time.monotonic()
        while True:
            try:
                return await blobs.read(
                    owner.link.connection,
                    ref,
                    lambda n: subjects.input_blob(owner.tenant, data.job, ref.blob, n),
                )
            except BrokerUnavailable as error:
                # Handed back at once it would come again at once, an attempt less each time.
                waited_s = time.monotonic() - began
                given_up = owner.draining or self._cancel_reason is not None
                if given_up or waited_s > INPUT_WAIT_S:
                    raise
                logger.debug("the input of %s cannot be read yet: %s", self.invocation, error)
            await asyncio.sleep(INPUT_RETRY_S)

    # -- outcomes

    async def _publish(self, outcome: OutcomeEvent) -> None:
        try:
            await self.owner.publisher.outcome(self.event, outcome)
        except Unwritable as error:
            # Without an outcome the call would be run again and again.
            logger.warning("! the outcome of %s cannot be written: %s", self.invocation, error)
            self.history.clear()
            outcome = self._failed("model_error", "how it ended cannot be written down")
            await self.owner.publisher.outcome(self.event, outcome)
        if isinstance(outcome, InvocationFailed):
            logger.info("! %s: %s", self.invocation, outcome.data.error.message)
        else:
            logger.info("⊘ %s %s", self.invocation, outcome.type.rsplit(".", 1)[1])

    def _envelope(self) -> Any:
        return self.owner.stamp(self.owner.tenant, cause=self.event)

    def _elapsed(self) -> float | None:
        """Seconds of the last attempt; None when there was none."""
        if self.run_s is None and self._began:
            return time.monotonic() - self._began
        return self.run_s

    def _facts(self) -> dict[str, Any]:
        return {
            "invocation": self.invocation,
            "job": self.owner.spec.name,
            "worker": self.owner.worker,
            "replica": self.replica.id if self.replica else None,
            "attempt": self.attempt,
            "run_s": self._elapsed(),
            "chunks": self.chunks,
        }

    def _failed(self, code: Any, message: str, detail: str = "") -> InvocationFailed:
        error = Failure(
            code=code, message=_clean(message[:TEXT_LIMIT]), detail=_clean(detail[-TEXT_LIMIT:]),
            history=tuple(map(_clean, self.history)),
        )  # fmt: skip
        data = InvocationFailed.Data(**self._facts(), error=error)
        return InvocationFailed(**self._envelope(), data=data)

    def _cancelled_event(self, reason: str) -> InvocationCancelled:
        data = InvocationCancelled.Data(**self._facts(), reason=reason)
        return InvocationCancelled(**self._envelope(), data=data)


def _clean(text: str) -> str:
    """As it can be written: half of a surrogate pair, as in names of files, becomes an escape."""
    return text.encode(errors="backslashreplace").decode()
