"""Turns: which priority class of a job the next free slot goes to. ``docs/policies.md``: why.

The highest class that waits goes first. With each start of a class the next lower one that waits
earns a share of a start (the floor); whole starts earned go before everything else. So while a
class waits it gets at least that share of the starts of the one above it, and never starves.

Pure functions. Classes are numbers, 0 the highest; ``waiting`` says of each whether anything waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NAME = "priority-with-floor"
VERSION = 1
WHOLE = 1 - 1e-9  # ten tenths are one


@dataclass(frozen=True, slots=True)
class Turns:
    """What each class has earned, in starts. ``floor``: earned with a start of the next higher."""

    floor: float
    earned: tuple[float, ...]


def first(classes: int, floor: float) -> Turns:
    """Nobody has earned anything."""
    return Turns(floor, (0.0,) * classes)


def choose(turns: Turns, waiting: Sequence[bool]) -> int | None:
    """Who starts next; None: nothing waits."""
    highest = None
    for each, waits in enumerate(waiting):
        if waits:
            if turns.earned[each] >= WHOLE:
                return each
            if highest is None:
                highest = each
    return highest


def started(turns: Turns, each: int, waiting: Sequence[bool]) -> Turns:
    """After a start of ``each``, while the others ``waiting`` waited.

    What is earned is for who waits: a class that does not begins anew.
    """
    earned = [value if waits else 0.0 for value, waits in zip(turns.earned, waiting, strict=True)]
    earned[each] = max(0.0, earned[each] - WHOLE)
    lower = next((n for n in range(each + 1, len(earned)) if waiting[n]), None)
    if lower is not None:
        earned[lower] += turns.floor
    return Turns(turns.floor, tuple(earned))


def not_started(turns: Turns, each: int, count: int) -> Turns:
    """After so many starts of ``each`` that did not come about: there was nothing any more."""
    earned = list(turns.earned)
    for lower in range(each + 1, len(earned)):
        if earned[lower]:
            earned[lower] = max(0.0, earned[lower] - count * turns.floor)
            break
    return Turns(turns.floor, tuple(earned))
