"""Who gets a free slot of a shared worker: seconds are shared out, not calls."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetfleet.policies.fairness import QUANTUM_S, Claim, Ledger, share, spent

A, B, C = ("t", "a"), ("t", "b"), ("t", "c")


def simulate(jobs, seconds, slots=1, seed=1, estimate=None):
    """Run seconds by job. ``jobs``: by key the weight and what says how long a run takes; all of
    them have work all the time. ``estimate``: of a run; None: its true mean is not known."""
    rng, ledger, now = random.Random(seed), Ledger(), 0.0
    used, running, ends = dict.fromkeys(jobs, 0.0), dict.fromkeys(jobs, 0), []
    while now < seconds:
        run_s = estimate or QUANTUM_S
        claims = [
            Claim(key, 10**6, True, weight, running[key] * run_s, run_s)
            for key, (weight, _) in jobs.items()
        ]
        ledger, granted = share(ledger, claims, slots - len(ends))
        assert sum(granted.values()) == slots - len(ends)
        for key, count in granted.items():
            for _ in range(count):
                took = jobs[key][1](rng)
                heapq.heappush(ends, (now + took, key, took))
                running[key] += 1
        now, key, took = heapq.heappop(ends)
        ledger, used[key], running[key] = (
            spent(ledger, {key: took}), used[key] + took, running[key] - 1
        )  # fmt: skip
    return used


def fixed(run_s):
    return lambda _: run_s


def test_jobs_of_short_and_of_long_runs_get_the_same_seconds():
    used = simulate({A: (1, fixed(0.01)), B: (1, fixed(0.1))}, 20)
    assert used[A] == pytest.approx(used[B], rel=0.02)


def test_a_weight_is_a_part_of_the_seconds():
    used = simulate({A: (3, fixed(0.01)), B: (1, fixed(0.1))}, 20)
    assert used[A] == pytest.approx(3 * used[B], rel=0.03)


def test_who_is_alone_gets_every_slot():
    assert share(Ledger(), [Claim(A, 9)], 4)[1] == {A: 4}
    assert share(Ledger({A: -1000.0}), [Claim(A, 2), Claim(B, 0, busy=False)], 4)[1] == {A: 2}


def test_who_wants_nothing_gets_nothing():
    assert share(Ledger(), [Claim(A, 0), Claim(B, 0, busy=False)], 4)[1] == {}


def test_slots_that_are_free_at_once_go_to_both():
    assert share(Ledger(), [Claim(A, 9), Claim(B, 9)], 4)[1] == {A: 2, B: 2}


def test_who_idled_saved_nothing():
    ledger = Ledger()
    for _ in range(100):
        ledger, granted = share(ledger, [Claim(A, 9, run_s=0.1), Claim(B, 0, busy=False)], 1)
        assert granted == {A: 1}
        ledger = spent(ledger, {A: 0.1})
    order = []
    for _ in range(8):
        ledger, granted = share(ledger, [Claim(A, 9), Claim(B, 9)], 1)
        (key,) = granted
        order.append(key)
        ledger = spent(ledger, {key: 0.1})
    assert 3 <= order.count(B) <= 5


def test_one_that_asks_again_only_when_it_has_its_answer_gets_no_more_than_its_seconds():
    """Each time it waits it would be first, if its long runs were forgotten meanwhile."""
    ledger, used = Ledger(), {A: 0.0, B: 0.0}
    took = {A: 0.01, B: 0.1}
    last = None
    for _ in range(500):
        wants_b = 0 if last == B else 1
        claims = [Claim(A, 9), Claim(B, wants_b, busy=bool(wants_b))]
        ledger, granted = share(ledger, claims, 1)
        (last,) = granted
        used[last] += took[last]
        ledger = spent(ledger, {last: took[last]})
    assert used[A] / 3 < used[B] < 1.1 * used[A]


def test_a_job_that_is_gone_is_forgotten():
    ledger, _ = share(Ledger({A: -5.0, B: -1.0}), [Claim(B, 1)], 1)
    assert A not in ledger.balances


TIMES = st.floats(0.05, 1.0)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.5, 1.0, 3.0]), TIMES, TIMES), min_size=2, max_size=4),
    st.integers(1, 4),
    st.integers(0, 2**16),
)
def test_seconds_are_shared_by_weight_whatever_the_runs_take(jobs, slots, seed):
    def between(low, high):
        return lambda rng: rng.uniform(min(low, high), max(low, high))

    known = {("t", str(n)): (weight, between(*run)) for n, (weight, *run) in enumerate(jobs)}
    longest = max(max(run) for _, *run in jobs)
    used = simulate(known, 40 * longest, slots, seed)
    by_weight = [used[key] / weight for key, (weight, _) in known.items()]
    least = min(weight for weight, *_ in jobs)
    # A job may be ahead by its runs at work, a quantum, and what the others' estimates miss.
    bound = 2 * QUANTUM_S + 2 * slots * (longest + QUANTUM_S) / least
    if slots < len(known) or slots == 1:  # else one cannot use more than there is
        assert max(by_weight) - min(by_weight) <= bound


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(-50, 50)), min_size=1, max_size=6),
    st.integers(0, 12),
)
def test_no_slot_is_left_free_while_anybody_wants_one(jobs, free):
    claims = [Claim(("t", str(n)), wanted, wanted > 0) for n, (wanted, _) in enumerate(jobs)]
    balances = {("t", str(n)): balance for n, (_, balance) in enumerate(jobs)}
    _, granted = share(Ledger(balances), claims, free)
    assert sum(granted.values()) == min(free, sum(wanted for wanted, _ in jobs))
    assert all(granted.get(c.key, 0) <= c.wanted for c in claims)


@settings(max_examples=30, deadline=None)
@given(st.lists(TIMES, min_size=2, max_size=5), st.integers(0, 2**16))
def test_nobody_starves(means, seed):
    jobs = {("t", str(n)): (1.0, fixed(mean)) for n, mean in enumerate(means)}
    rounds = len(means) * (2 * QUANTUM_S + 2 * max(means))
    used = simulate(jobs, 2 * rounds, seed=seed)
    assert all(used.values())
