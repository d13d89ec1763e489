"""A run is woken by its outcome, by a refusal, and at the end of its wait; never by a yes."""

from __future__ import annotations

from typing import Any

import pytest

from jetfleet.errors import LogFull, OutcomePending
from jetfleet.fastlane import FastMsg, msg_id_of
from jetfleet.outcomes import Waiter
from jetfleet.running import _Run
from jetfleet.stores import Stored
from jetfleet.submit import Gauge


class Outcomes:
    """Counts how often the log is asked for outcomes."""

    asked = 0

    def recover_soon(self) -> None:
        self.asked += 1


def a_run(wait_s: float | None = 0.1) -> _Run:
    gauge = Gauge(adding=1)
    outcomes: Any = Outcomes()
    return _Run(Waiter("i1", "default", "job"), gauge, outcomes, wait_s)


@pytest.mark.anyio
async def test_a_yes_is_counted_and_wakes_nobody() -> None:
    run = a_run()
    run.set_result(Stored("INVOCATIONS", 7))
    assert run.done()
    assert not run.future.done()
    assert (run.waiter.seq, run.gauge.adding, list(run.gauge.recent)) == (7, 0, [7])


@pytest.mark.anyio
async def test_a_refusal_ends_it_and_gives_the_place_back() -> None:
    run = a_run()
    run.set_exception(LogFull("full"))
    run.close()
    assert run.gauge.depth == 0
    with pytest.raises(LogFull):
        await run.future


@pytest.mark.anyio
async def test_what_was_sent_twice_looks_for_the_outcome_it_may_have_missed() -> None:
    run = a_run()
    run.set_result(Stored("INVOCATIONS", 7, duplicate=True))
    assert run.outcomes.asked == 1  # type: ignore[attr-defined]
    assert run.gauge.depth == 0


@pytest.mark.anyio
async def test_nobody_is_told_that_it_goes_on_before_it_is_accepted() -> None:
    run = a_run(wait_s=0.0)
    run.give_up()
    assert not run.future.done()
    run.set_result(Stored("INVOCATIONS", 7))
    with pytest.raises(OutcomePending) as caught:
        await run.future
    assert caught.value.invocation == "i1"


@pytest.mark.anyio
async def test_a_caller_that_leaves_early_leaves_no_place_taken() -> None:
    run = a_run()
    run.close()
    assert run.gauge.depth == 0


@pytest.mark.parametrize(
    ("header", "msg_id"),
    [
        (b"NATS/1.0\r\nNats-Msg-Id: a.b.done\r\n\r\n", "a.b.done"),
        (b"NATS/1.0\r\ntraceparent: 00-x\r\nNats-Msg-Id:a\r\nX: y\r\n\r\n", "a"),
        (b"NATS/1.0\r\nX-Nats-Msg-Id: a\r\n\r\n", ""),
        (None, ""),
    ],
)
@pytest.mark.anyio
async def test_a_message_id_is_read_as_the_headers_tell_it(header: Any, msg_id: str) -> None:
    client: Any = None
    message = FastMsg(client, "s", "", b"", header)
    assert msg_id_of(message) == msg_id == (message.headers or {}).get("Nats-Msg-Id", "")
