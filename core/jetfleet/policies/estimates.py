"""What scaling policies infer from counts: rate and trend, burstiness, length of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from operator import mul, sub

from jetfleet.policies.observation import JobObservation

_ENOUGH = 8  # counts from which their spread says something


@dataclass(frozen=True, slots=True)
class Rate:
    """Arrivals a second. ``recent``: the most of any window that counts; ``ahead``: with trend."""

    slow: float
    recent: float
    ahead: float
    error: float  # standard error of ``slow``


def arrival_rate(
    observation: JobObservation,
    *,
    fast_s: float,
    slow_s: float,
    ahead_s: float,
    significance: float,
    peakedness: float = 1.0,
) -> Rate:
    """The rate that replicas started now will meet in ``ahead_s`` seconds.

    The slow window's rate, or that of a shorter window (of ``fast_s`` or more) where it is above
    the time before it by ``significance`` standard errors; counts are taken for ``peakedness``
    times as noisy as Poisson's. Such a window also shows a trend, which is extended by ``ahead_s``,
    to at most twice the rate. One that does not stand out is noise, which Erlang-C accounts for.
    """
    windows = sorted((w for w in observation.windows if w.seconds > 0), key=lambda w: w.seconds)
    usable = [w for w in windows if fast_s <= w.seconds <= slow_s]
    if not usable:  # the longest of those too short, or else the shortest of those too long
        usable = [w for w in windows if w.seconds < fast_s][-1:] or windows[:1]
    if not usable:
        return Rate(0.0, 0.0, 0.0, 0.0)
    whole = usable[-1]
    slow = whole.arrivals / whole.seconds
    recent, trend = slow, 0.0
    for short in usable:
        rest_s = whole.seconds - short.seconds
        if rest_s <= 0:
            continue
        fast = short.arrivals / short.seconds
        before = max(0, whole.arrivals - short.arrivals) / rest_s
        noise = sqrt(peakedness * (fast / short.seconds + before / rest_s))
        if fast - before > significance * noise:
            trend = max(trend, (fast - before) / (whole.seconds / 2))
            recent = max(recent, fast)
    ahead = recent + min(trend * ahead_s, recent)
    return Rate(slow, recent, ahead, sqrt(peakedness * slow / whole.seconds))


def index_of_dispersion(counts: Sequence[int]) -> float:
    """Variance over mean of arrivals in successive buckets of equal length; 1 for Poisson.

    From squared differences of neighbours (von Neumann), so that a step or a ramp of the rate does
    not pass for burstiness. 1 where it is not above what Poisson counts show by chance (two
    standard errors), or where there are fewer than eight. ``peakedness`` asks for buckets about as
    long as a run.
    """
    mean = sum(counts) / len(counts) if counts else 0.0
    if len(counts) < _ENOUGH or not mean:
        return 1.0
    steps = list(map(sub, counts[1:], counts))
    index = sum(map(mul, steps, steps)) / (2 * len(steps)) / mean
    return index if index > 1 + 2 * sqrt(3 / len(steps)) else 1.0


def peakedness(dispersion: float, most: float = 8.0) -> float:
    """How much burstier than Poisson, for servers with exponential service: 1 (not) to ``most``."""
    return min(max(0.5 + 0.5 * dispersion, 1.0), most)


def service_time(observation: JobObservation) -> float | None:
    """Mean seconds of a run on the replicas the job has; before it has any, over past runs.

    Replicas of different speed add up as rates, so their mean is harmonic. None: never measured.
    ``fsum``: whoever adds up the same in another order decides the same.
    """
    known = [s for s in observation.services.values() if s.mean_s > 0 and s.runs > 0]
    replicas = sum(s.replicas for s in known)
    if replicas:
        return replicas / fsum(s.replicas / s.mean_s for s in known)
    runs = sum(s.runs for s in known)
    return fsum(s.mean_s * s.runs for s in known) / runs if runs else None
