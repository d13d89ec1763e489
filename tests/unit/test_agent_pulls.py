"""What a standing pull asks for, and that it never counts more or fewer than are outstanding."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from nats.aio.msg import Msg

from jetfleet_agent import pulls
from jetfleet_agent.pulls import Pull

pytestmark = pytest.mark.anyio


class FakeSubscription:
    def __init__(self, subject: str, callback: Any) -> None:
        self.subject, self.callback = subject, callback
        self.drained = self.stopped = False

    async def drain(self) -> None:
        self.drained = True

    async def stop(self) -> None:
        self.stopped = True


class FakeConnection:
    """Keeps what was asked for, and hands in what tests let the broker say."""

    user = "w1"

    def __init__(self) -> None:
        self.on_reconnect: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        self.subscriptions: list[FakeSubscription] = []

    async def subscribe(self, subject: str, callback: Any) -> FakeSubscription:
        self.subscriptions.append(FakeSubscription(subject, callback))
        return self.subscriptions[-1]

    def send(self, subject: str, body: bytes, reply: str) -> None:
        self.asked.append({**json.loads(body), "reply": reply})

    def message(self, inbox: int = -1) -> None:
        self.subscriptions[inbox].callback(Msg(None, reply="$JS.ACK.x", data=b""))

    def status(self, status: str, inbox: int = -1, **headers: str) -> None:
        told = {"Status": status, **{k.replace("_", "-"): v for k, v in headers.items()}}
        self.subscriptions[inbox].callback(Msg(None, headers=told))


@pytest.fixture
async def connection() -> FakeConnection:
    return FakeConnection()


@pytest.fixture
async def pull(connection):
    """For two slots, both free, of which what is taken occupies one."""
    taken: list[Msg] = []
    opened = Pull(connection, "Q0", "c", lambda: 2 - len(taken), lambda: 2, taken.append)
    await opened.open()
    yield opened
    await opened.close()


async def test_it_asks_for_the_free_slots_without_a_backlog(pull, connection):
    (asked,) = connection.asked
    assert asked["batch"] == 2
    assert asked["group"] == "w"
    assert "min_pending" not in asked


async def test_a_higher_threshold_holds_from_the_next_request_on(pull, connection):
    await pull.only_from(7)
    assert len(connection.asked) == 1
    connection.status("408", Nats_Pending_Messages="2")
    await turn()
    assert connection.asked[1]["min_pending"] == 7
    await pull.only_from(9)
    await turn()
    assert len(connection.asked) == 2
    assert len(connection.subscriptions) == 1


async def waiting_for(pull, connection, threshold):
    await pull.only_from(threshold)
    connection.status("408", Nats_Pending_Messages="2")
    await turn()


@pytest.mark.parametrize("lower", [None, 3])
async def test_a_lower_threshold_holds_at_once_and_nothing_is_taken_back(pull, connection, lower):
    await waiting_for(pull, connection, 7)
    await pull.only_from(lower)
    await turn()
    assert connection.asked[2].get("min_pending") == lower
    assert connection.asked[2]["batch"] == 2
    assert connection.asked[2]["reply"] == connection.subscriptions[1].subject
    assert not connection.subscriptions[0].stopped
    await pull.only_from(lower)
    assert len(connection.subscriptions) == 2


async def test_where_nothing_waits_for_a_backlog_nothing_more_is_asked(pull, connection):
    await pull.only_from(7)
    await pull.only_from(None)
    await turn()
    assert len(connection.asked) == 1


async def test_what_still_comes_for_a_former_request_is_taken_and_not_counted(pull, connection):
    await waiting_for(pull, connection, 7)
    await pull.only_from(None)
    await turn()
    connection.message(inbox=0)
    connection.status("408", inbox=0, Nats_Pending_Messages="2")
    connection.status("409", inbox=0)
    assert pull._outstanding == 2
    assert pull.wanted() == 1
    connection.message()
    assert pull._outstanding == 1


async def test_one_that_withdraws_takes_back_what_it_asked_before_too(pull, connection):
    await waiting_for(pull, connection, 7)
    await pull.only_from(None)
    await pull.withdraw()
    assert [each.drained for each in connection.subscriptions] == [True, True]


async def test_one_that_withdraws_lets_a_busy_queue_answer_what_was_asked_for(pull, connection):
    connection.message()
    withdrawing = asyncio.create_task(pull.withdraw(patient=True))
    await turn()
    assert not connection.subscriptions[0].drained
    connection.message()
    await withdrawing
    assert connection.subscriptions[0].drained
    assert len(connection.asked) == 1


@pytest.mark.parametrize("answered", [0, 1])
async def test_one_that_withdraws_does_not_wait_for_answers_that_do_not_come(
    pull, connection, answered
):
    for _ in range(answered):
        connection.message()
    async with asyncio.timeout(pulls.PATIENCE_S):
        await pull.withdraw(patient=True)
    assert connection.subscriptions[0].drained


async def test_late_answers_to_what_was_given_up_do_not_make_it_ask_for_more(pull, connection):
    await pull.again()
    for _ in range(2):
        connection.status("408", Nats_Pending_Messages="2")
    assert pull._outstanding == 0
    await turn()
    assert pull._outstanding == 2
    assert connection.asked[-1]["batch"] == 2
    for _ in range(3):
        connection.message()
    assert pull._outstanding == 0


async def test_one_that_waits_for_a_backlog_asks_for_one_now_and_then(pull, connection):
    await waiting_for(pull, connection, 7)
    pull._probe(pull._took + pulls.PROBE_S - 1)
    assert len(connection.asked) == 2
    pull._probe(pull._took + pulls.PROBE_S)
    probe = connection.asked[2]
    assert (probe["batch"], "min_pending" in probe) == (1, False)
    assert "idle_heartbeat" not in probe
    connection.status("408", Nats_Pending_Messages="1")
    assert pull._outstanding == 2
    pull._probe(pull._took + 1)
    assert len(connection.asked) == 3


async def test_one_that_waits_for_nothing_needs_no_probe(pull, connection):
    pull._probe(pull._took + 10 * pulls.PROBE_S)
    assert len(connection.asked) == 1


async def test_one_that_was_closed_asks_for_nothing(connection):
    closed = Pull(connection, "Q0", "c", lambda: 1, lambda: 1, lambda _: None)
    await closed.open()
    await closed.close()
    await closed.only_from(3)
    assert len(connection.asked) == 1


async def turn() -> None:
    """Let what was scheduled for this turn of the loop run."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
