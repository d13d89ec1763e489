"""Balancing: from which backlog on a slower class of workers pulls. ``docs/policies.md``: why.

A pure function of measured speeds and the arrival rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, sqrt

NAME = "overflow"
VERSION = 1
ALIKE = 1.2  # classes whose speeds differ by less are taken for equally fast: it may be noise
LEAST_RUNS = 20  # of a worker before its speed is believed
MEMORY_RUNS = 100  # a moving average is not surer than the mean of so many
HOP_S = 0.002  # between two runs in a slot: the outcome's way out and the next message's way in
LEAST_S = 0.005  # shorter runs count as so long: there queue and machine decide, not the model


@dataclass(frozen=True, slots=True)
class WorkerClass:
    """Workers of about one speed for a job. ``rate``: runs a second of one; ``count``: of them.

    With several slots a worker, rate and count are of slots.
    """

    name: str
    rate: float
    count: int


@dataclass(frozen=True, slots=True)
class Serving:
    """A worker that serves a job; ``service_s``: the mean of so many ``runs``, None: not known."""

    worker: str
    slots: int
    service_s: float | None
    runs: int


@dataclass(frozen=True, slots=True)
class Level:
    """Workers that are equally fast for a job, and from which backlog on they pull."""

    workers: tuple[str, ...]
    slots: int  # of all of them
    service_s: float
    min_pending: int | None
    reason: str


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


def levels(serving: Iterable[Serving]) -> list[tuple[Serving, ...]]:
    """Workers of known speed, in groups of about one speed, fastest first.

    Two are told apart by as much as their runs can: for runs of a standard deviation like their
    mean, 3/sqrt(runs) is two standard errors of a ratio of means.
    """
    known = [s for s in serving if s.service_s and s.runs >= LEAST_RUNS and s.slots > 0]
    found: list[list[Serving]] = []
    for each in sorted(known, key=lambda s: (_run_s(s), s.worker)):
        if found and _alike(found[-1][0], each):
            found[-1].append(each)
        else:
            found.append([each])
    return [tuple(sorted(group, key=lambda s: s.worker)) for group in found]


def balance(serving: Iterable[Serving], rate: float, *, stuck: bool = False) -> tuple[Level, ...]:
    """From which backlog on each worker of known speed pulls, fastest first.

    ``rate``: arrivals a second. ``stuck``: work waits and nobody takes any, so nobody shall wait
    for the faster ones.
    """
    groups = levels(serving)
    classes = [
        WorkerClass(
            str(number),
            sum(s.slots / _run_s(s) for s in group) / sum(s.slots for s in group),
            sum(s.slots for s in group),
        )
        for number, group in enumerate(groups)
    ]
    found = thresholds(classes, rate, alike=1.0)  # they are apart already
    return tuple(
        Level(
            tuple(s.worker for s in group),
            each.count,
            1 / each.rate - HOP_S,
            None if stuck else threshold.min_pending,
            "nobody takes what waits: none leaves it to others" if stuck else threshold.reason,
        )
        for group, each, threshold in zip(groups, classes, found, strict=True)
    )


def wanted(found: Iterable[Level]) -> dict[str, int]:
    """The thresholds by worker; who is not named pulls whenever it is free."""
    return {
        worker: level.min_pending
        for level in found
        if level.min_pending is not None
        for worker in level.workers
    }


def differs(old: Mapping[str, int], new: Mapping[str, int], workers: Iterable[str]) -> bool:
    """Whether it is worth telling: one begins or ceases to wait, or for a quarter more or less."""
    return any(_differs(old.get(worker), new.get(worker)) for worker in workers)


def frees(old: Mapping[str, int], new: Mapping[str, int], workers: Iterable[str]) -> bool:
    """Whether one that waits for a backlog shall wait no more."""
    return any(worker in old and worker not in new for worker in workers)


def _differs(old: int | None, new: int | None) -> bool:
    if old is None or new is None:
        return old is not new
    return abs(new - old) > max(1, old / 4)


def _alike(fast: Serving, slow: Serving) -> bool:
    runs = min(fast.runs, slow.runs, MEMORY_RUNS)
    return _run_s(slow) < max(ALIKE, 1 + 3 / sqrt(runs)) * _run_s(fast)


def _run_s(serving: Serving) -> float:
    return max(serving.service_s or 0.0, LEAST_S) + HOP_S
