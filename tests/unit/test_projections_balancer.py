"""What the conductor makes of a consumer's counters, and what it tells which worker when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from given import at, balanced, created, fleet, job, joined, lost, registry, serving
from jetfleet.clock import Clock
from jetfleet.events import JobLoad, WorkerHeartbeat
from jetfleet.fleet import evolve_fleet
from jetfleet.speeds import Sample, Speeds
from jetfleet.stamp import Stamp
from jetfleet_projections import balancer
from jetfleet_projections.balancer import Balancer, Flow

pytestmark = pytest.mark.anyio
KEY = ("default", "echo")
KIND = ("default", "echo:1", "")


def flow(*looks: tuple[float, int, int]) -> Flow:
    """Of (when, delivered, pending)."""
    found = Flow()
    for when, delivered, pending in looks:
        found.told(delivered, pending, when)
    return found


# -- counting


def test_what_arrives_is_what_is_delivered_and_what_waits_more():
    assert flow((0, 100, 5), (2, 180, 25)).rate() == 50
    assert flow((0, 100, 50), (2, 120, 0)).rate() == 0  # cancelled in the queue


def test_a_rate_needs_some_time_and_forgets_what_is_long_ago():
    assert flow((0, 0, 0), (0.5, 30, 0)).rate() is None
    assert flow((0, 0, 0), (10, 1000, 0), (12, 1100, 0)).rate() == 50


def test_a_consumer_that_was_made_anew_is_counted_anew():
    assert flow((0, 100, 0), (2, 10, 0)).rate() is None
    assert flow((0, 100, 0), (2, 10, 0), (3, 40, 0)).rate() == 30


def test_work_that_waits_while_nothing_is_delivered_is_stuck():
    assert not flow((0, 9, 0), (9, 9, 0)).stuck(0.1, 9)  # nothing waits
    assert not flow((0, 9, 2), (9, 10, 2)).stuck(0.1, 9)  # it moves
    assert not flow((0, 9, 2), (2, 9, 2)).stuck(0.1, 2)  # not long yet
    assert not flow((0, 9, 2), (9, 9, 2)).stuck(10.0, 9)  # runs take longer
    still = flow((0, 9, 2), (3, 9, 2))
    assert still.stuck(0.1, 3)
    still.told(11, 0, 4)
    assert still.stuck(0.1, 4), "those who should have taken it are not trusted again at once"
    assert not still.stuck(0.1, 3 + balancer.FREE_S)


# -- deciding, with the log in between


class Story:
    """A job served by three workers, one balancer, and time as the test says."""

    def __init__(self, **settings: Any) -> None:
        self.now = 1000.0
        self.counts = (0, 0)
        clock = Clock(now=lambda: at(self.now), monotonic=lambda: self.now)
        spec = job("echo", replicas=3).model_copy(update=settings)
        self.registry = registry(created(spec))
        names = ("fast", "middle", "slow")
        self.fleet = fleet(
            *(joined(name) for name in names),
            *(event for name in names for event in serving(f"r-{name}", name, spec)),
        )
        self.seconds = {"fast": 0.005, "middle": 0.02, "slow": 0.1}
        self.runs = 100
        self.asked = 0
        self.balancer = Balancer(self, 1, Stamp("conductor/1", clock))  # type: ignore[arg-type]

    async def api(self, verb: str) -> dict[str, Any]:
        assert verb.startswith("CONSUMER.INFO.Q0.default__echo__")
        self.asked += 1
        delivered, pending = self.counts
        return {"delivered": {"consumer_seq": delivered}, "num_pending": pending}

    @property
    def speeds(self) -> Speeds:
        return Speeds({name: {KIND: Sample(s, self.runs)} for name, s in self.seconds.items()})

    async def goes_on(self, seconds: int, rate: int = 60, pending: int = 0) -> list[Any]:
        """The decisions taken meanwhile; the log gives each back."""
        found = []
        for _ in range(seconds):
            self.now += 1
            self.counts = (self.counts[0] + rate, pending)
            due = await self.balancer.look(self.registry, self.fleet, self.speeds)
            for event in self.balancer.decide(due, self.registry, self.fleet):
                self.balancer.heard(event)
                found.append(event)
        return found

    def told(self, worker: str, reports: int | None = None) -> list[Any]:
        """What a worker hears when it beats and reports this."""
        load = JobLoad(
            job="echo", tenant="default", replicas_ready=1, slots=1, running=0, finished=1,
            busy_s=1, min_pending=reports,
        )  # fmt: skip
        data = WorkerHeartbeat.Data(worker=worker, session="s1", jobs=(load,))
        return [term["min_pending"] for term in self.balancer.nudge(data, 2.0)]


def thresholds(event: Any) -> dict[str, int | None]:
    return {name: level.min_pending for level in event.data.levels for name in level.workers}


async def test_slower_workers_get_thresholds_that_stay_while_nothing_changes():
    story = Story()
    (event,) = await story.goes_on(60)
    assert thresholds(event) == {"fast": None, "middle": 2, "slow": 14}
    assert event.data.rate == 60
    assert event.data.why.policy == "overflow"
    assert event.data.why.reason.startswith(
        "middle: 45.5 runs/s against 143 of faster workers at 60"
    )


async def test_they_follow_the_rate_but_not_at_every_look():
    story = Story()
    await story.goes_on(10)
    events = await story.goes_on(10, rate=200)
    assert len(events) <= 2
    assert thresholds(events[-1]) == {"fast": None, "middle": 2, "slow": 4}
    hasty = [event for n in range(40) for event in await story.goes_on(1, rate=60 + n % 2 * 200)]
    assert len(hasty) <= 40 / balancer.HOLD_S


async def test_a_faster_worker_that_is_lost_frees_the_slower_at_once():
    story = Story()
    await story.goes_on(6)
    story.fleet = evolve_fleet(story.fleet, lost("fast"), 90)
    (event,) = await story.goes_on(1)
    assert thresholds(event) == {"middle": None, "slow": 2}
    assert (story.told("middle", 2), story.told("slow", 14)) == ([None], [2])
    story.fleet = evolve_fleet(story.fleet, lost("middle"), 91)
    (event,) = await story.goes_on(1)
    assert thresholds(event) == {"slow": None}
    assert await story.goes_on(20) == []
    asked = story.asked
    await story.goes_on(20)
    assert story.asked == asked, "nobody asks about a job of one speed"


async def test_work_that_nobody_takes_frees_the_slower():
    story = Story()
    await story.goes_on(6)
    (event,) = await story.goes_on(4, rate=0, pending=4)
    assert set(thresholds(event).values()) == {None}
    assert "nobody takes what waits" in event.data.why.reason


async def test_workers_of_unknown_or_of_one_speed_are_not_asked_about():
    story = Story()
    story.runs = 3
    assert await story.goes_on(10) == []
    story.runs, story.seconds = 100, dict.fromkeys(story.seconds, 0.1)
    assert await story.goes_on(10) == []
    assert story.asked == 0


async def test_a_job_may_decline_and_is_freed_when_it_does_so_later():
    declined = Story(balancing=False)
    assert await declined.goes_on(10) == []
    story = Story()
    await story.goes_on(6)
    (state,) = story.registry.jobs.values()
    off = replace(state, spec=state.spec.model_copy(update={"balancing": False}))
    story.registry = replace(story.registry, jobs={KEY: off})
    (event,) = await story.goes_on(6)
    assert event.data.levels == ()
    assert story.told("slow", 19) == [None]


async def test_what_a_deleted_job_had_is_forgotten():
    story = Story()
    await story.goes_on(6)
    story.registry = replace(story.registry, jobs={})
    await story.goes_on(2)
    assert (story.balancer.standing, story.balancer.flows) == ({}, {})
    assert story.told("slow", 19) == [None]


# -- telling


async def test_every_heartbeat_renews_what_holds_and_ends_what_does_not():
    story = Story()
    story.balancer.heard(balanced("echo", {"fast": None, "slow": 19}))
    assert story.told("slow") == [19]  # it came new, or missed it
    assert story.told("slow", 19) == [19]
    assert story.told("fast") == []
    assert story.told("fast", 4) == [None]
    assert story.told("unknown") == []


async def test_news_go_to_every_worker_of_the_decision_for_some_of_its_heartbeats():
    story = Story()
    event = balanced("echo", {"fast": None, "slow": 19})
    news = dict(story.balancer.news(event, story.fleet))
    assert news["slow"] == {
        "tenant": "default", "job": "echo", "min_pending": 19, "for_s": balancer.LEASE_S,
    }  # fmt: skip
    assert news["fast"]["min_pending"] is None
    slow = replace(story.fleet.workers["slow"], heartbeat_s=60.0)
    rare = replace(story.fleet, workers={**story.fleet.workers, "slow": slow})
    assert dict(story.balancer.news(event, rare))["slow"]["for_s"] == 300


async def test_another_conductor_goes_on_from_the_log():
    story = Story()
    (event,) = await story.goes_on(6)
    other = Story()
    other.now, other.counts = story.now, story.counts
    other.balancer.heard(event)
    assert other.told("slow") == [14]
    told, other.seconds = other.seconds, {}
    assert await other.goes_on(3) == [], "nobody has beaten yet: what the log knows holds"
    other.seconds = told
    assert await other.goes_on(20) == []
