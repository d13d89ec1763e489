"""Submitting and waiting in one: the broker's yes is heard, and nobody is woken for it.

An outcome implies that the log has the invocation, so who waits for the outcome alone has no use
for the acceptance before it. A refusal, or no answer in time, ends the wait.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from jetfleet.errors import JetfleetError
from jetfleet.events import OutcomeEvent
from jetfleet.outcomes import Outcomes, Waiter
from jetfleet.stores import STORE_TIMEOUT_S, Stored, header_block
from jetfleet.submit import Gauge, Request, Submitter


@dataclass(slots=True, eq=False)
class _Run:
    """What hears the broker's answer (a ``stores.Answer``), and when the wait is over."""

    waiter: Waiter
    gauge: Gauge
    outcomes: Outcomes
    wait_s: float | None
    future: asyncio.Future[OutcomeEvent] = field(init=False)
    answered: bool = False
    late: bool = False  # the wait was over before the broker had answered

    def __post_init__(self) -> None:
        self.future = asyncio.get_running_loop().create_future()
        self.waiter.futures.append(self.future)

    def done(self) -> bool:
        return self.answered

    def set_result(self, stored: Stored) -> None:
        """Accepted: from now on it counts as queued, and its outcome can be read from the log."""
        self._answer()
        self.waiter.seq = stored.seq
        if stored.duplicate:  # sent again over a reconnect; its outcome may have come meanwhile
            self.outcomes.recover_soon()
        else:
            self.gauge.recent.append(stored.seq)
        if self.late:
            self.give_up()

    def set_exception(self, error: JetfleetError) -> None:
        self._answer()
        if not self.future.done():
            self.future.set_exception(error)

    def give_up(self) -> None:
        """The wait is over; whether it was accepted is waited for, so as not to say so falsely."""
        self.late = True
        if self.answered:
            self.waiter.give_up(self.future, self.wait_s or 0.0)

    def _answer(self) -> None:
        self.answered = True
        self.gauge.adding -= 1

    def close(self) -> None:
        if not self.answered:
            self._answer()


async def run(submitter: Submitter, request: Request, wait_s: float | None) -> OutcomeEvent:
    """The outcome of a new invocation; ``wait_s``: seconds from now, None for ever.

    Raises:
        OutcomePending: accepted, and no outcome within ``wait_s``.
        JetfleetError: refused; see ``Client.submit``.
    """
    if request.idempotency_key is not None:  # it may be an earlier one that has to be found
        waiter, _ = await submitter.submit(request)
        return await waiter.outcome(wait_s)
    job, gauge = await submitter.admit(request)
    try:
        waiter, subject, body = await submitter.prepare(request, job)
    except BaseException:
        gauge.adding -= 1
        raise
    going = _Run(waiter, gauge, submitter.outcomes, wait_s)
    timer = None if wait_s is None else going.future.get_loop().call_later(wait_s, going.give_up)
    number = None
    stores = submitter.connection.stores
    try:
        block = header_block(waiter.invocation, request.trace)
        number = stores.begin(subject, body, block, STORE_TIMEOUT_S, going, again=True)
        return await going.future
    finally:
        if timer is not None:
            timer.cancel()
        if number is not None:
            stores.end(number)
        going.close()
        waiter.futures.remove(going.future)
