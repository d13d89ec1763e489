"""Fairness: which job a free slot of a shared worker goes to. ``docs/policies.md``: why.

Deficit round robin (Shreedhar and Varghese, 1995) in seconds of run time. In its turn a job is
served while its balance is above zero, then the next one is. When no balance is, each job gets a
quantum times its weight, as many rounds of it at once as the first of them needs. How long a run
takes is known when it has ended: until then it is charged as an estimate, so balances go below
zero by the runs at work, and no further. A job that has nothing to do keeps its debt, which rounds
repay, and saves nothing.

Pure functions; all seconds are of run time, not of a clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor

NAME = "deficit-round-robin"
VERSION = 1
QUANTUM_S = 0.1
Key = tuple[str, str]  # tenant and job


@dataclass(frozen=True, slots=True)
class Claim:
    """A job on the worker.

    Args:
        wanted: slots that it could use now.
        busy: it has something to do: waiting, asked for, or running.
        running_s: estimate of what its runs at work will have taken.
    """

    key: Key
    wanted: int
    busy: bool = True
    weight: float = 1.0
    running_s: float = 0.0
    run_s: float = QUANTUM_S  # estimate of one run more


@dataclass(frozen=True, slots=True)
class Ledger:
    """``balances``: seconds that a job may run, by job; ``turn``: whose turn it is."""

    balances: Mapping[Key, float] = field(default_factory=dict)
    turn: Key | None = None


def spent(ledger: Ledger, seconds: Mapping[Key, float]) -> Ledger:
    """After runs that ended."""
    balances = dict(ledger.balances)
    for key, each in seconds.items():
        balances[key] = balances.get(key, 0.0) - each
    return Ledger(balances, ledger.turn)


def share(
    ledger: Ledger, claims: Sequence[Claim], free: int, *, quantum_s: float = QUANTUM_S
) -> tuple[Ledger, dict[Key, int]]:
    """How many of the free slots each job gets now; all of them while anybody wants one.

    Jobs without a claim are forgotten.
    """
    granted: dict[Key, int] = {}
    order = sorted(claims, key=lambda claim: claim.key)
    balances = {
        claim.key: balance if claim.busy else min(balance, 0.0)
        for claim in order
        for balance in (ledger.balances.get(claim.key, 0.0),)
    }
    turn = ledger.turn
    for _ in range(free):
        eager = [c for c in order if c.wanted > granted.get(c.key, 0)]
        if not eager:
            break
        left = {
            c.key: balances[c.key] - c.running_s - granted.get(c.key, 0) * c.run_s for c in eager
        }
        if all(each <= 0 for each in left.values()):
            rounds = min(floor(-left[c.key] / (quantum_s * c.weight)) + 1 for c in eager)
            for c in order:
                more = balances[c.key] + rounds * quantum_s * c.weight
                eager_one = c.key in left
                balances[c.key] = more if eager_one else max(balances[c.key], min(more, 0.0))
                if eager_one:
                    left[c.key] += rounds * quantum_s * c.weight
        turn = _next(turn, [key for key, each in left.items() if each > 0])
        granted[turn] = granted.get(turn, 0) + 1
    return Ledger(balances, turn), granted


def _next(turn: Key | None, able: Sequence[Key]) -> Key:
    """Whose turn it is among those that may run: the same job's, or the next one's in order."""
    return next((key for key in able if turn is None or key >= turn), able[0])
