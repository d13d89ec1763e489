"""What the conductor sees of the jobs that are scaled by their work.

Arrivals are counted from the queued events themselves, which the broker hands to whoever listens;
what waits and runs is asked of the job's consumer. Jobs of a fixed size cost nothing of this.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from math import fsum
from operator import sub
from statistics import fmean
from typing import Any

from jetfleet import subjects
from jetfleet.catalog import JobKey, JobState
from jetfleet.connection import ApiError, Connection, Subscription
from jetfleet.fleet import FleetState, ReplicaState
from jetfleet.policies.estimates import index_of_dispersion
from jetfleet.policies.observation import WINDOWS_S, JobObservation, Past, Service, Window
from jetfleet.scaling_specs import KpaScaling, LagScaling, ScalingSpec, SloScaling
from jetfleet.speeds import Sample

BUCKET_S = 0.5  # arrivals are counted in steps of this
# One arrival in the first second of observing is no rate of one a second: before this much was
# observed, it counts as if nothing had come in the rest of it.
LEAST_S = 10.0
SETTLE_S = 0.5  # an invocation is in the queue of its job this long after it came, at the latest
AT_ONCE = 64  # questions about consumers that are open at the same time


@dataclass(slots=True, eq=False)
class JobWatch:
    """One job: arrivals and depth as they come. Times are monotonic seconds."""

    since: float
    queued: int = 0
    in_flight: int = 0
    asleep: bool = True  # no replica: the first invocation is what wakes the job
    asked_at: float = -1.0  # when its depth was last asked; negative: ask at once
    # Sums so far, not counts: what a window holds is the difference of two of them.
    _first: int = field(init=False)  # number of the oldest bucket that is remembered
    _totals: list[int] = field(default_factory=lambda: [0])  # before it, and after each bucket
    _told_at: list[float] = field(default_factory=list)
    _told: list[tuple[float, int]] = field(default_factory=list)  # depth x time until then; depth

    def __post_init__(self) -> None:
        self.begin(self.since)

    def begin(self, now: float) -> None:
        """Nothing of before is known any more, nor how much there is."""
        self.since, self.asked_at = now, -1.0
        self._first, self._totals = int(now / BUCKET_S), [0]
        self._told_at, self._told = [], []

    def arrived(self, now: float) -> None:
        self._reach(int(now / BUCKET_S) + 1)
        self._totals[-1] += 1

    def told(self, queued: int, in_flight: int, now: float) -> None:
        """What the consumer says; one without replicas hears of an event before its queue does."""
        if self.asleep and not queued:
            queued = self._arrivals(now - SETTLE_S)
        self.queued, self.in_flight, self.asked_at = queued, in_flight, now
        depth = queued + in_flight
        if not self._told or self._told[-1][1] != depth:
            self._told.append((self._area(now), depth))
            self._told_at.append(now)

    def windows(self, lengths_s: Iterable[float], now: float) -> tuple[Window, ...]:
        """Each as long as asked for, or as it was observed; what is older is forgotten."""
        observed = now - self.since
        lengths = sorted({min(length, observed) for length in lengths_s if length > 0})
        self._forget(now - (lengths[-1] if lengths else 0.0))
        found = [
            Window(length, self._arrivals(now - length), self._concurrency(now - length, now))
            for length in lengths
            if length > 0
        ]
        if found and found[-1].arrivals and observed < LEAST_S:
            found[-1] = replace(found[-1], seconds=LEAST_S)
        return tuple(found)

    def counts(self, for_s: float, step_s: float, now: float) -> list[int]:
        """Arrivals in successive steps of equal length, the latest first, as far as observed.

        A step is the whole number of buckets nearest to ``step_s``; the bucket that is being
        filled is left out.
        """
        width = max(1, round(step_s / BUCKET_S))
        steps = int(min(for_s, now - self.since) / (width * BUCKET_S))
        last = int(now / BUCKET_S)
        self._reach(last)
        ends = self._totals[last - self._first :: -width][: steps + 1]
        return list(map(sub, ends, ends[1:]))

    def _reach(self, bucket: int) -> None:
        """Have a total for everything before ``bucket``."""
        missing = bucket - self._first + 1 - len(self._totals)
        if missing > 0:
            self._totals += self._totals[-1:] * missing

    def _forget(self, start: float) -> None:
        """What no window that begins at ``start`` needs; the depth that held then stays."""
        gone = int(start / BUCKET_S) - self._first
        if gone > 0:
            self._reach(self._first + gone)
            del self._totals[:gone]
            self._first += gone
        told = max(0, bisect_right(self._told_at, start) - 1)
        del self._told_at[:told], self._told[:told]

    def _arrivals(self, start: float) -> int:
        """Since ``start``, with all of the bucket that it lies in."""
        before = max(0, int(start / BUCKET_S) - self._first)
        return self._totals[-1] - self._totals[min(before, len(self._totals) - 1)]

    def _area(self, at: float) -> float:
        """Depth summed over time up to ``at``; each depth holds until the next was told."""
        index = bisect_right(self._told_at, at)
        if not index:
            return 0.0
        area, depth = self._told[index - 1]
        return area + depth * (at - self._told_at[index - 1])

    def _concurrency(self, start: float, now: float) -> float | None:
        """The mean over time, from ``start`` or from when a depth was first known."""
        begin = max(start, self._told_at[0]) if self._told_at else now
        return (self._area(now) - self._area(begin)) / (now - begin) if now > begin else None


@dataclass(slots=True, eq=False)
class Watcher:
    """Watches jobs; ``follow`` says which, ``ask`` brings their depths up to date."""

    connection: Connection
    shards: int
    monotonic: Callable[[], float]
    wake: Callable[[], None]  # called when an invocation comes for a job that had nothing to do
    watches: dict[JobKey, JobWatch] = field(default_factory=dict)
    _heard: dict[JobKey, Subscription] = field(default_factory=dict)

    async def follow(self, keys: Iterable[JobKey]) -> None:
        """Begin with those that are new, and end with those that are gone."""
        wanted = set(keys)
        for key in self.watches.keys() - wanted:
            del self.watches[key]
            if (heard := self._heard.pop(key, None)) is not None:
                await heard.stop()
        for key in wanted - self._heard.keys():
            watch = self.watches[key] = JobWatch(self.monotonic())
            tenant, job = key
            subject = subjects.queued(
                subjects.shard_of(job, self.shards), tenant, job, subjects.ANY
            )
            self._heard[key] = await self.connection.subscribe(
                subject, partial(self._arrived, watch)
            )

    def _arrived(self, watch: JobWatch, _message: Any) -> None:
        watch.arrived(self.monotonic())
        if watch.asleep and not watch.queued:
            watch.asked_at = -1.0
            self.wake()

    def restarted(self) -> None:
        """What came meanwhile was not heard, or all at once: observing begins anew."""
        for watch in self.watches.values():
            watch.begin(self.monotonic())

    async def ask(self, jobs: Iterable[JobState]) -> list[JobState]:
        """Those of whose consumers the depth is known now."""
        jobs, known = list(jobs), list[JobState]()
        for job in jobs:  # one that is being made anew is looked at again after those that wait
            self.watches[job.tenant, job.spec.name].asked_at = self.monotonic()
        async for job, info in consumers(self.connection, self.shards, jobs):
            watch = self.watches[job.tenant, job.spec.name]
            watch.told(int(info["num_pending"]), int(info["num_ack_pending"]), self.monotonic())
            known.append(job)
        return known


async def consumers(
    connection: Connection, shards: int, jobs: Iterable[JobState]
) -> AsyncIterator[tuple[JobState, Mapping[str, Any]]]:
    """What the broker says of the consumers of jobs; none of one that is being made anew."""

    async def ask(job: JobState) -> Mapping[str, Any] | None:
        name = job.spec.name
        stream = subjects.queue_stream(subjects.shard_of(name, shards))
        consumer = subjects.job_consumer(job.tenant, name, job.spec.priority_class)
        try:
            return await connection.api(f"CONSUMER.INFO.{stream}.{consumer}")
        except ApiError:
            return None

    left = list(jobs)
    for start in range(0, len(left), AT_ONCE):
        part = left[start : start + AT_ONCE]
        for job, info in zip(part, await asyncio.gather(*map(ask, part)), strict=True):
            if info is not None:
                yield job, info


def observation(
    job: JobState,
    watch: JobWatch,
    *,
    fleet: FleetState,
    replicas: Iterable[ReplicaState],
    starts_s: Sequence[float],
    services: Mapping[str, Service],
    history: tuple[Past, ...],
    now: datetime,
    monotonic: float,
) -> JobObservation:
    """What the policies see. ``replicas``: all of the job; ``starts_s``: its last cold starts;
    ``services``: of its model, by type of GPU."""
    spec = job.spec
    joined = [r for r in replicas if _serves(fleet, r)]
    counts: list[int] = []
    if isinstance(spec.scaling, SloScaling):  # the one that asks how bursty arrivals are
        step_s = max([1.0, *(service.mean_s for service in services.values())])
        counts = watch.counts(max(WINDOWS_S), step_s, monotonic)
    return JobObservation(
        now=now,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        slots=spec.concurrency,
        queued=watch.queued,
        in_flight=watch.in_flight,
        windows=watch.windows(lengths(spec.scaling), monotonic),
        dispersion=index_of_dispersion(counts),
        ready_ages_s=tuple(_age(r, now) for r in joined if r.status == "ready"),
        booting_ages_s=tuple(_age(r, now) for r in joined if r.status in ("assigned", "preparing")),
        draining=sum(r.status == "releasing" for r in joined),
        services=services,
        cold_start_s=fmean(starts_s) if starts_s else None,
        history=history,
    )


def lengths(spec: ScalingSpec) -> tuple[float, ...]:
    """The windows that a policy with these parameters looks at, seconds."""
    match spec:
        case LagScaling():
            return (spec.down_window_s,)
        case KpaScaling():
            return (spec.panic_window_s, spec.stable_window_s, spec.down_delay_s)
        case SloScaling():
            hold_s = spec.hold_cold_starts * spec.assumed_cold_start_s
            own = (spec.fast_window_s, spec.slow_window_s, spec.zero_after_s, hold_s)
            return (*WINDOWS_S, *own)
        case _:
            return WINDOWS_S


def _serves(fleet: FleetState, replica: ReplicaState) -> bool:
    worker = fleet.workers.get(replica.worker)
    return worker is not None and worker.status == "joined"


def _age(replica: ReplicaState, now: datetime) -> float:
    return max(0.0, (now - replica.assigned_at).total_seconds())


def services_of(told: Mapping[str, Mapping[str, Sample]]) -> dict[str, Service]:
    """Lengths of runs of a model by type of GPU, weighted by how many each worker tells of."""
    found = {}
    for gpu, samples in told.items():
        runs = sum(sample.runs for sample in samples.values())
        busy_s = fsum(sample.service_s * sample.runs for sample in samples.values())
        found[gpu] = Service(busy_s / runs, runs)
    return found
