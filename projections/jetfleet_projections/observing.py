"""What the conductor sees of the jobs that are scaled by their work.

Arrivals are counted from the queued events themselves, which the broker hands to whoever listens;
what waits and runs is asked of the job's consumer. Jobs of a fixed size cost nothing of this.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from statistics import fmean
from typing import Any

from jetfleet import subjects
from jetfleet.connection import ApiError, Connection, Subscription
from jetfleet.fleet import FleetState, JobKey, JobState, ReplicaState
from jetfleet.policies.estimates import index_of_dispersion
from jetfleet.policies.observation import WINDOWS_S, JobObservation, Past, Service, Window
from jetfleet.scaling_specs import KpaScaling, LagScaling, ScalingSpec, SloScaling
from jetfleet.speeds import Speeds

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
    asked_at: float = -1.0  # when the depth was last known; negative: never
    _buckets: deque[tuple[int, int]] = field(default_factory=deque)  # number of the bucket, count
    _depths: deque[tuple[float, int]] = field(default_factory=deque)  # when, queued and in flight

    def begin(self, now: float) -> None:
        """Nothing of before is known any more, nor how much there is."""
        self.since, self.asked_at = now, -1.0
        self._buckets.clear()
        self._depths.clear()

    def arrived(self, now: float) -> None:
        bucket = int(now / BUCKET_S)
        if self._buckets and self._buckets[-1][0] == bucket:
            self._buckets[-1] = (bucket, self._buckets[-1][1] + 1)
        else:
            self._buckets.append((bucket, 1))

    def told(self, queued: int, in_flight: int, now: float) -> None:
        """What the consumer says; one without replicas hears of an event before its queue does."""
        if self.asleep and not queued:
            queued = self._arrivals(now - SETTLE_S)
        self.queued, self.in_flight, self.asked_at = queued, in_flight, now
        self._depths.append((now, queued + in_flight))

    def windows(self, lengths_s: Iterable[float], now: float) -> tuple[Window, ...]:
        """Each as long as asked for, or as it was observed; what is older is forgotten."""
        observed = now - self.since
        lengths = sorted({min(length, observed) for length in lengths_s if length > 0})
        longest = now - (lengths[-1] if lengths else 0.0)
        while self._buckets and (self._buckets[0][0] + 1) * BUCKET_S <= longest:
            self._buckets.popleft()
        while len(self._depths) > 1 and self._depths[1][0] <= longest:
            self._depths.popleft()
        found = [
            Window(length, self._arrivals(now - length), self._concurrency(now - length, now))
            for length in lengths
            if length > 0
        ]
        if found and found[-1].arrivals and observed < LEAST_S:
            found[-1] = replace(found[-1], seconds=LEAST_S)
        return tuple(found)

    def counts(self, for_s: float, step_s: float, now: float) -> list[int]:
        """Arrivals in successive steps of equal length, as far as they were observed."""
        steps = int(min(for_s, now - self.since) / step_s)
        found = [0] * steps
        for bucket, count in self._buckets:
            step = int((now - (bucket + 0.5) * BUCKET_S) / step_s)
            if 0 <= step < steps:
                found[step] += count
        return found

    def _arrivals(self, start: float) -> int:
        return sum(count for bucket, count in self._buckets if (bucket + 1) * BUCKET_S > start)

    def _concurrency(self, start: float, now: float) -> float | None:
        """The mean over time; each depth holds until the next was told."""
        known = [(max(at, start), depth) for at, depth in self._depths]
        if not known or now <= known[0][0]:
            return None
        ends = [*(at for at, _ in known[1:]), now]
        area = sum(depth * max(0.0, end - at) for (at, depth), end in zip(known, ends, strict=True))
        return area / (now - known[0][0])


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
        for start in range(0, len(jobs), AT_ONCE):
            part = jobs[start : start + AT_ONCE]
            answers = await asyncio.gather(*(self._depth(job) for job in part))
            known += [job for job, answered in zip(part, answers, strict=True) if answered]
        return known

    async def _depth(self, job: JobState) -> bool:
        name = job.spec.name
        stream = subjects.queue_stream(subjects.shard_of(name, self.shards))
        consumer = subjects.job_consumer(job.tenant, name, job.spec.priority_class)
        watch = self.watches[job.tenant, name]
        try:
            info = await self.connection.api(f"CONSUMER.INFO.{stream}.{consumer}")
        except ApiError:
            return False  # it is being made anew: look again
        watch.told(int(info["num_pending"]), int(info["num_ack_pending"]), self.monotonic())
        return True


def observation(
    job: JobState,
    watch: JobWatch,
    *,
    fleet: FleetState,
    replicas: Iterable[ReplicaState],
    starts_s: Sequence[float],
    speeds: Speeds,
    history: tuple[Past, ...],
    now: datetime,
    monotonic: float,
) -> JobObservation:
    """What the policies see. ``replicas``: all of the job; ``starts_s``: its last cold starts."""
    spec = job.spec
    joined = [r for r in replicas if _serves(fleet, r)]
    services = _services(speeds, job)
    step_s = max([1.0, *(service.mean_s for service in services.values())])
    return JobObservation(
        now=now,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        slots=spec.concurrency,
        queued=watch.queued,
        in_flight=watch.in_flight,
        windows=watch.windows(lengths(spec.scaling), monotonic),
        dispersion=index_of_dispersion(watch.counts(max(WINDOWS_S), step_s, monotonic)),
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
            return (*WINDOWS_S, spec.down_window_s)
        case KpaScaling():
            return (*WINDOWS_S, spec.panic_window_s, spec.stable_window_s, spec.down_delay_s)
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


def _services(speeds: Speeds, job: JobState) -> dict[str, Service]:
    """By type of GPU, weighted by how many runs were told."""
    found: dict[str, Service] = {}
    for samples in speeds.workers.values():
        for (tenant, model, gpu), sample in samples.items():
            if (tenant, model) != (job.tenant, job.spec.model.ref):
                continue
            known = found.get(gpu, Service(0.0, 0))
            runs = known.runs + sample.runs
            mean_s = (known.mean_s * known.runs + sample.service_s * sample.runs) / runs
            found[gpu] = Service(mean_s, runs)
    return found
