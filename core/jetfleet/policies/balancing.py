"""Balancing: from which backlog on a slower class of workers pulls. ``docs/policies.md``: why.

A pure function of measured speeds and the arrival rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, sqrt

NAME = "overflow"
VERSION = 1
ALIKE = 1.2  # classes whose speeds differ by less are taken for equally fast: it may be noise


@dataclass(frozen=True, slots=True)
class WorkerClass:
    """Workers of about one speed for a job. ``rate``: runs a second of one; ``count``: of them.

    With several slots a worker, rate and count are of slots.
    """

    name: str
    rate: float
    count: int


@dataclass(frozen=True, slots=True)
class Threshold:
    """``min_pending`` of the class's pull requests; None: it pulls whenever it is free."""

    worker_class: str
    min_pending: int | None
    reason: str


def thresholds(
    classes: Sequence[WorkerClass], rate: float, *, alike: float = ALIKE
) -> tuple[Threshold, ...]:
    """The threshold of each class, fastest first; ``rate``: arrivals a second.

    Classes without workers count for nothing. Raises ValueError for a speed that is not positive.
    """
    for each in classes:
        if not each.rate > 0 or each.count < 0:
            raise ValueError(
                f"class {each.name} has {each.count} workers of {each.rate:g} runs/s; a class"
                " needs a positive speed: leave out workers whose speed is not known"
            )
    found: list[Threshold] = []
    faster = group = 0.0  # rate of all faster classes; of those alike to this one
    head: float | None = None  # speed of the fastest of these
    for each in sorted(classes, key=lambda c: (-c.rate, c.name)):
        if head is None or head > each.rate * alike:
            faster, group, head = faster + group, 0.0, each.rate
        group += each.rate * each.count
        found.append(_threshold(each, faster, rate))
    return tuple(found)


def _threshold(each: WorkerClass, faster: float, rate: float) -> Threshold:
    if faster <= 0:
        return Threshold(each.name, None, f"{each.rate:.3g} runs/s: none are faster")
    catches_up = ceil((faster - rate) / each.rate - 1e-9)
    fallback = floor(sqrt(faster / each.rate) + 0.5)
    pending = max(catches_up, fallback, 1)
    return Threshold(
        each.name,
        pending,
        f"{each.rate:.3g} runs/s against {faster:.3g} of faster workers at {rate:.3g} arrivals/s:"
        f" waits for {pending} pending",
    )
