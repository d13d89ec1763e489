"""What pulls of several classes ask for: never more than free slots, the right class first."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from nats.aio.msg import Msg

from jetfleet_agent import class_pulls
from jetfleet_agent.class_pulls import ClassPulls
from waiting import until

pytestmark = pytest.mark.anyio
CLASSES = ("high", "normal", "low")


class FakeSubscription:
    def __init__(self, subject: str, callback: Any) -> None:
        self.subject, self.callback = subject, callback
        self.ended = ""

    async def drain(self) -> None:
        self.ended = "drained"

    async def stop(self) -> None:
        self.ended = "stopped"


class FakeBroker:
    """Keeps what was asked for; tests say what it answers."""

    user = "w1"

    def __init__(self) -> None:
        self.on_reconnect: list[Any] = []
        self.inboxes: dict[str, FakeSubscription] = {}
        self.bells: dict[str, str] = {}  # of each class: the inbox of the one that is out
        self.asked: list[tuple[str, dict[str, Any], str]] = []

    async def subscribe(self, subject: str, callback: Any) -> FakeSubscription:
        return self.inboxes.setdefault(subject, FakeSubscription(subject, callback))

    def send(self, subject: str, body: bytes, reply: str) -> None:
        kind, request = subject.rpartition(".")[2], json.loads(body)
        assert request.pop("group") == "w"
        if "max_bytes" in request:
            assert kind not in self.bells
            self.bells[kind] = reply
        else:
            self.asked.append((kind, request, reply))

    def status(self, inbox: str, status: str, description: str = "") -> None:
        told = {"Status": status, "Description": description}
        self.inboxes[inbox].callback(Msg(None, headers=told))

    async def ring(self, *classes: str) -> None:
        """Something is there."""
        for each in classes:
            self.status(self.bells.pop(each), "409", "Message Size Exceeds MaxBytes")
        await turn()

    async def answer(self, more: int, *, messages: int = 1) -> None:
        """Messages for the last request, of which ``more`` wait then."""
        for left in range(messages - 1, -1, -1):
            reply = f"$JS.ACK.Q0.{self.asked[-1][0]}.1.2.3.4.{more + left}"
            self.inboxes[self.asked[-1][2]].callback(Msg(None, reply=reply, data=b""))
        await turn()

    async def refuse(self, status: str = "404") -> None:
        self.status(self.asked[-1][2], status)
        await turn()

    @property
    def last(self) -> tuple[str, int]:
        return self.asked[-1][0], self.asked[-1][1]["batch"]


@pytest.fixture
async def broker() -> FakeBroker:
    return FakeBroker()


class Slots:
    def __init__(self) -> None:
        self.free = 1
        self.taken: list[Msg] = []

    def take(self, message: Msg) -> None:
        self.taken.append(message)
        self.free -= 1


@pytest.fixture
async def slots() -> Slots:
    return Slots()


@pytest.fixture
async def pull(broker, slots):
    opened = ClassPulls(broker, "Q0", CLASSES, 0.1, lambda: slots.free, slots.take)
    await opened.open()
    yield opened
    await opened.close()


async def freed(pull, slots):
    slots.free += 1
    pull.top_up()
    await turn()


async def test_where_nothing_waits_every_class_has_a_bell_and_nothing_is_asked_for(pull, broker):
    assert set(broker.bells) == set(CLASSES)
    assert broker.asked == []


async def test_a_class_whose_bell_rang_is_asked_for_the_free_slots(pull, broker, slots):
    slots.free = 3
    await broker.ring("low")
    assert broker.asked[0][:2] == ("low", {"batch": 3, "no_wait": True})


async def test_one_free_slot_asks_one_class_alone_the_highest(pull, broker):
    await broker.ring("low", "high", "normal")
    assert broker.last == ("high", 1)
    assert len(broker.asked) == 1


async def test_what_waits_is_remembered_while_no_slot_is_free(pull, broker, slots):
    await broker.ring("high")
    await broker.answer(more=0)
    await broker.ring("low")
    await broker.ring("normal")
    assert len(broker.asked) == 1
    await freed(pull, slots)
    assert broker.last == ("normal", 1)


async def test_a_slot_that_frees_while_the_highest_is_asked_waits_for_its_answer(
    pull, broker, slots
):
    await broker.ring("high", "low")
    await freed(pull, slots)
    assert len(broker.asked) == 1
    await broker.answer(more=5)
    assert broker.last == ("high", 1)


async def test_a_class_that_has_no_more_gets_a_bell_and_the_next_one_its_turn(pull, broker, slots):
    slots.free = 4
    await broker.ring("high", "low")
    assert broker.last == ("high", 4)
    await broker.answer(more=0)
    assert "high" not in broker.bells  # three more may come
    await broker.refuse()
    assert "high" in broker.bells
    assert broker.last == ("low", 3)


async def test_after_ten_starts_the_lower_class_has_one(pull, broker, slots):
    await broker.ring("high", "low")
    for _ in range(11):
        await broker.answer(more=50)
        await freed(pull, slots)
    assert [kind for kind, *_ in broker.asked] == [*["high"] * 10, "low", "high"]


async def test_what_another_worker_took_costs_one_answer(pull, broker):
    await broker.ring("high")
    await broker.refuse()
    assert set(broker.bells) == set(CLASSES)
    assert pull.asked == 0


async def test_where_others_wait_for_a_backlog_it_waits_among_them(pull, broker):
    """Workers without a limit pull from the same queue as one that has one."""
    await broker.ring("high")
    broker.status(broker.asked[-1][2], "408", "Requests Pending")
    assert broker.asked[-1][:2] == ("high", {"batch": 1, "expires": 100_000_000})
    await broker.answer(more=0)
    assert len(broker.asked) == 2
    assert set(broker.bells) == set(CLASSES)


async def test_a_bell_that_nobody_rang_is_hung_again(pull, broker):
    broker.status(broker.bells.pop("low"), "408", "Request Timeout")
    assert "low" in broker.bells


async def test_what_cannot_be_pulled_yet_is_tried_again_a_little_later(pull, broker, monkeypatch):
    monkeypatch.setattr(class_pulls, "RETRY_S", 0)
    broker.status(broker.bells.pop("low"), "503")
    assert "low" not in broker.bells
    await until(lambda: "low" in broker.bells, "its bell is out")


async def test_after_a_reconnect_it_knows_nothing_and_hangs_all_bells(pull, broker):
    await broker.ring("high", "low")
    broker.bells.clear()
    await pull.again()
    assert set(broker.bells) == set(CLASSES)
    assert pull.asked == 0


async def test_one_that_waits_for_a_backlog_looks_at_each_class_and_again_a_little_later(
    pull, broker, monkeypatch
):
    monkeypatch.setattr(class_pulls, "RETRY_S", 0.01)
    await pull.only_from(4)
    await broker.ring("high", "low")
    (kind, request, _) = broker.asked[0]
    assert (kind, request["min_pending"], request["no_wait"]) == ("high", 4, True)
    await broker.refuse()
    assert broker.last == ("low", 1)
    await broker.refuse()
    assert set(broker.bells) == {"normal"}  # the others' would ring at once
    await until(lambda: set(broker.bells) == set(CLASSES), "the bells are out again")
    await broker.ring("high")
    assert broker.last == ("high", 1)


async def test_one_that_waited_long_for_a_backlog_asks_once_for_whatever_there_is(
    pull, broker, slots
):
    slots.free = 2
    await pull.only_from(4)
    pull._took -= class_pulls.PROBE_S
    await broker.ring("low")
    assert broker.asked[0][:2] == ("low", {"batch": 1, "no_wait": True})


async def test_one_that_withdrew_asks_no_more(pull, broker, slots):
    await pull.withdraw()
    assert {each.ended for each in broker.inboxes.values()} == {"drained"}
    await broker.ring("high")
    assert broker.asked == []


async def turn() -> None:
    """Let what was scheduled for this turn of the loop run."""
    for _ in range(3):
        await asyncio.sleep(0)
