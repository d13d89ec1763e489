"""What the conductor counts of a job, and which number it puts in the log."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from math import inf, nextafter

import pytest

from given import (
    assigned,
    at,
    created,
    deleted,
    envelope,
    fleet,
    job,
    joined,
    ready,
    registry,
    serving,
)
from jetfleet.clock import Clock
from jetfleet.errors import ApiError
from jetfleet.events import ReplicaReady
from jetfleet.fleet import FleetState
from jetfleet.policies.observation import JobObservation, Window
from jetfleet.policies.placement import Observation, place
from jetfleet.policies.scaling import ScalingDecision
from jetfleet.scaling_specs import KpaScaling, LagScaling, SloScaling
from jetfleet.speeds import Speeds
from jetfleet.stamp import Stamp
from jetfleet_projections.observing import JobWatch, Watcher, lengths
from jetfleet_projections.scaler import LONGEST_START_S, MOST_LOOKED_AT, Scaler, settle


def watch(*arrivals: float, since: float = 0.0) -> JobWatch:
    watched = JobWatch(since)
    for when in arrivals:
        watched.arrived(when)
    return watched


# -- counting


def test_a_window_has_what_came_in_it_and_is_no_longer_than_what_was_observed():
    watched = watch(0.1, 50.1, 50.2, 58.1)
    found = watched.windows((10, 30, 300), now=60.0)
    assert found == (Window(10, 3), Window(30, 3), Window(60, 4))


def test_what_is_older_than_the_longest_window_is_forgotten():
    watched = watch(*(n + 0.1 for n in range(1000)))
    assert watched.windows((10, 300), now=1000.0)[-1].arrivals == 300
    assert len(watched._totals) <= 2 * 300 + 1


def test_the_first_arrival_after_a_start_is_no_high_rate():
    (window,) = watch(100.5, since=100.0).windows((300,), now=101.0)
    assert window == Window(10, 1)
    (silent,) = watch(since=100.0).windows((300,), now=101.0)
    assert silent == Window(1, 0)


def test_concurrency_is_the_mean_over_time():
    watched = JobWatch(0.0)
    for when, depth in ((0.0, 0), (10.0, 4), (15.0, 8)):
        watched.told(depth, 0, when)
    (ten, twenty) = watched.windows((10, 20), now=20.0)
    assert ten.concurrency == pytest.approx(6)
    assert twenty.concurrency == pytest.approx(3)
    assert JobWatch(0.0).windows((10,), now=20.0)[0].concurrency is None


def test_arrivals_in_steps_count_each_once():
    watched = watch(*(n / 10 for n in range(1, 200)))
    counts = watched.counts(300, 2.0, now=20.0)
    assert len(counts) == 10
    assert sum(counts) == 199


def test_without_replicas_an_invocation_counts_before_its_queue_has_it():
    watched = watch(99.9)
    watched.told(0, 0, 100.0)
    assert watched.queued == 1
    watched.told(0, 0, 101.0)
    assert watched.queued == 0
    watched.asleep = False
    watched.arrived(101.9)
    watched.told(0, 0, 102.0)
    assert watched.queued == 0


def test_each_policy_gets_the_windows_of_its_own_parameters():
    assert 77 in lengths(LagScaling(down_window_s=77))
    assert {7, 70} <= set(lengths(KpaScaling(panic_window_s=7, stable_window_s=70)))
    assert {5, 500, 50} <= set(
        lengths(SloScaling(fast_window_s=5, slow_window_s=500, zero_after_s=50))
    )


# -- settling


def decided(desired: int, wanted: int) -> ScalingDecision:
    return ScalingDecision("lag", 1, desired, "", wanted)


@pytest.mark.parametrize(
    ("before", "desired", "wanted", "settled"),
    [
        (None, 3, 0, 3),  # nothing was decided yet
        (3, 1, 1, 1),  # fewer
        (1, 3, 3, 3),  # more, for the work there is
        (1, 3, 0, 1),  # more, for what is remembered alone
        (1, 5, 3, 3),
        (0, 1, 0, 0),
    ],
)
def test_what_is_remembered_keeps_replicas_and_adds_none(before, desired, wanted, settled):
    seen = JobObservation(at(0), 0, 9)
    assert settle(seen, decided(desired, wanted), before) == settled


def test_bounds_hold_whatever_was_decided_before():
    assert settle(JobObservation(at(0), 2, 9), decided(2, 0), 1) == 2
    assert settle(JobObservation(at(0), 0, 3), decided(3, 9), 5) == 3
    assert settle(JobObservation(at(0), 0, 9, queued=1), decided(1, 0), 0) == 1


# -- deciding, with the log in between

QUICK = LagScaling(down_window_s=10)
ECHO = job("echo", replicas=0).model_copy(update={"max_replicas": 9, "scaling": QUICK})
KEY = ("default", "echo")


class Deciding:
    """A scaler of one job, whose clock and queue the test moves."""

    def __init__(self, name: str) -> None:
        self.seconds = 0.0
        clock = Clock(now=lambda: at(self.seconds), monotonic=lambda: self.seconds)
        watcher = Watcher(None, 1, clock.monotonic, lambda: None)
        watcher.watches[KEY] = JobWatch(0.0)
        self.scaler = Scaler(watcher, Stamp(f"conductor/{name}", clock))

    def decide(self, state: FleetState, unfinished: int, seconds: float, *declared):
        self.seconds = seconds
        known = registry(*(declared or [created(ECHO)]))
        self.scaler.watcher.watches[KEY].told(unfinished, 0, seconds)
        jobs = list(known.jobs.values())
        return list(self.scaler.decide(jobs, known, state, Speeds()))


def test_a_number_goes_into_the_log_when_it_changes_and_only_then():
    one, state = Deciding("one"), fleet(joined("w1"))
    found = []
    for seconds in range(40):
        if busy := 5 <= seconds < 10:
            one.scaler.watcher.watches[KEY].arrived(seconds)
        for event in one.decide(state, 3 if busy else 0, seconds):
            state = fleet(event, onto=state)
            found.append((seconds, event.data.before, event.data.desired))
    assert found == [(0, None, 0), (5, 0, 3), (20, 3, 0)]


def test_what_another_raised_is_kept_for_as_long_as_the_policy_looks_back():
    one, other = Deciding("one"), Deciding("other")
    state = fleet(joined("w1"), one.decide(fleet(), 0, 0))
    for seconds in range(1, 30):
        assert other.decide(state, 0, seconds) == []
    (raised,) = one.decide(state, 4, 30)  # it has seen what the other has not
    other.scaler.heard(raised, state)
    state = fleet(raised, onto=state)
    changes = [seconds for seconds in range(31, 60) if other.decide(state, 0, seconds)]
    assert changes[0] == 42  # and it leaves 2 s to the one that decided last


def test_one_that_comes_new_lets_nothing_go_that_it_may_only_not_have_seen():
    one = Deciding("one")
    state = fleet(joined("w1"), one.decide(fleet(), 3, 100))
    state = fleet(*(serving(f"r{n}", "w1", ECHO) for n in range(3)), onto=state)
    new = Deciding("new")
    new.scaler.watcher.watches[KEY].since = 100.0
    new.scaler.watcher.watches[KEY].asleep = False
    assert next(seconds for seconds in range(100, 130) if new.decide(state, 0, seconds)) == 110


def test_the_one_that_decided_last_goes_on_and_another_takes_over_when_it_does_not():
    one, other = Deciding("one"), Deciding("other")
    (first,) = one.decide(fleet(), 0, 0)
    for each in (one, other):
        each.scaler.heard(first, fleet())
    state = fleet(joined("w1"), first)
    assert next(second for second in range(1, 6) if other.decide(state, 2, second)) == 3
    assert one.decide(state, 2, 1)


def test_a_job_made_anew_inherits_no_history():
    one = Deciding("one")
    state = fleet(joined("w1"), one.decide(fleet(), 5, 0))
    again = (created(ECHO), deleted("echo"), created(ECHO))
    (event,) = one.decide(state, 0, 1, *again)
    assert (event.data.before, event.data.desired) == (None, 0)


@pytest.mark.parametrize("policy", [QUICK, KpaScaling(stable_window_s=10), SloScaling(lease_s=0)])
def test_conductors_that_see_and_begin_differently_do_not_undo_each_other(policy):
    """Two make no more turns from rising to falling than one alone, chance left aside."""
    alone, together = (
        sum(turns(policy, seed, starts) for seed in range(5)) for starts in ((0,), (0, 60))
    )
    assert together <= 1.25 * alone


def turns(policy, seed: int, starts: tuple[int, ...]) -> int:
    chance, eyes, spec = (
        random.Random(seed),
        random.Random(seed),
        ECHO.model_copy(update={"scaling": policy}),
    )
    everyone = [(start, Deciding(f"c{start}")) for start in starts]
    for start, each in everyone:
        each.scaler.watcher.watches[KEY].since = float(start)
    state, numbers = fleet(joined("w1", memory_mib=60_000)), []
    for step in range(400):
        seconds = step / 2
        load = 4 if 20 <= seconds < 50 or 90 <= seconds < 120 else 0
        depth = max(0, load + chance.choice((-1, 0, 0, 1))) if load else 0
        here = [each for start, each in everyone if seconds >= start]
        eyes.shuffle(here)
        for each in here:
            watched = each.scaler.watcher.watches[KEY]
            if load:
                watched.arrived(seconds)
            seen = max(0, depth - eyes.choice((0, 0, 1)))  # each asks at a moment of its own
            for event in each.decide(state, seen, seconds, created(spec)):
                state = fleet(event, onto=state)
                numbers.append(event.data.desired)
                for _, other in everyone:
                    other.scaler.heard(event, state)
                fresh = [serving(f"r{step}-{n}", "w1", spec) for n in range(event.data.desired)]
                state = replace(state, replicas=fleet(joined("w1"), *fresh).replicas)
    ups = [b > a for a, b in pairwise(numbers) if a != b]
    return sum(a != b for a, b in pairwise(ups))


def extremes(spec: type[LagScaling | KpaScaling | SloScaling]):
    """These parameters with each number as small and as large as one may declare it."""
    for name, declared in spec.model_fields.items():
        bounds = {type(each).__name__.lower(): each for each in declared.metadata}
        if not bounds:
            continue
        least = bounds["ge"].ge if "ge" in bounds else nextafter(bounds["gt"].gt, inf)
        most = (
            bounds["le"].le
            if "le" in bounds
            else nextafter(getattr(bounds.get("lt"), "lt", inf), 0)
        )
        yield from (spec(**{name: number}) for number in (least, most))


@pytest.mark.parametrize(
    "policy",
    [policy for spec in (LagScaling, KpaScaling, SloScaling) for policy in extremes(spec)],
    ids=str,
)
def test_no_parameter_that_one_may_declare_stops_the_conductor(policy):
    spec = ECHO.model_copy(update={"scaling": policy})
    one, state = Deciding("one"), fleet(joined("w1"), serving("r1", "w1", spec))
    watched = one.scaler.watcher.watches[KEY]
    for seconds in range(400):
        for step in range(5):
            watched.arrived(seconds + step / 10)
        if seconds % 20 == 0:
            for event in one.decide(state, seconds % 60, seconds + 0.5, created(spec)):
                state = fleet(event, onto=state)
    seen = Observation(registry(created(spec)), state)
    assert len(place(seen, at(400))) <= 9  # which knows of leases, too
    assert 0 <= state.scaled[KEY][0] <= 9


def test_how_long_a_start_took_is_heard_of_the_worker_that_has_the_replica():
    one, state = Deciding("one"), fleet(joined("w1"), joined("w2"), assigned("r1", "w1", ECHO))
    slow = ready("r1", "w1").data.model_copy(update={"prepare_s": 1e300})
    for worker, replica, of in (("w1", "r1", "other"), ("w2", "r1", "echo"), ("w1", "r9", "echo")):
        told = slow.model_copy(update={"worker": worker, "replica": replica, "job": of})
        one.scaler.heard(ReplicaReady(**envelope(), data=told), state)
    assert one.scaler._starts == {KEY: [LONGEST_START_S]}


class Answering:
    """A connection to a broker of which every consumer is empty, but for those that are gone."""

    def __init__(self, *gone: str) -> None:
        self.asked: list[str] = []
        self.gone = gone

    async def api(self, subject: str) -> dict[str, int]:
        job = subject.split("__")[1]
        self.asked.append(job)
        if job in self.gone:
            raise ApiError(404, 10014, "consumer not found")
        return {"num_pending": 0, "num_ack_pending": 0}

    async def subscribe(self, *_):
        return None


@pytest.mark.anyio
async def test_of_very_many_jobs_those_are_looked_at_first_that_wait_longest():
    names = [f"j{n}" for n in range(MOST_LOOKED_AT + 60)]
    known = registry(*(created(job(name, scaling=QUICK)) for name in names))
    broker, now = Answering("j0"), 0.0
    scaler = Scaler(Watcher(broker, 1, lambda: now, lambda: None), Stamp("conductor/a", Clock()))
    due = await scaler.look(known)
    assert [each.spec.name for each in due] == names[1:MOST_LOOKED_AT]  # j0 did not answer
    now = 0.1
    rest = await scaler.look(known)
    assert [each.spec.name for each in rest] == names[MOST_LOOKED_AT:]
    assert await scaler.look(known) == []
    now = 0.55
    scaler.watcher._arrived(scaler.watcher.watches["default", names[-1]], None)
    again = await scaler.look(known)
    assert again[0].spec.name == names[-1]  # an invocation came for a job that slept
    assert broker.asked.count("j0") == 2
