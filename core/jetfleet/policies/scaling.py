"""Scaling: how many replicas a job should have, and why. ``docs/policies.md`` has the formulas.

Pure functions of an observation and parameters. The number decided is of all replicas that serve or
will: booting ones count. Fewer means draining, never killing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import ceil, floor

from jetfleet.policies.estimates import Rate, arrival_rate, peakedness, service_time
from jetfleet.policies.observation import JobObservation, Past
from jetfleet.policies.queueing import replicas_needed
from jetfleet.scaling_specs import KpaScaling, LagScaling, ScalingSpec, SloScaling, StaticScaling

VERSIONS = {"static": 1, "lag": 1, "kpa": 1, "slo": 2}


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """How many replicas, and why. ``wanted`` and ``surge`` are for the next decisions' history."""

    policy: str
    version: int
    desired: int
    reason: str
    wanted: int  # before holding and bounds
    inputs: Mapping[str, float] = field(default_factory=dict)
    surge: bool = False


def scale(observation: JobObservation, spec: ScalingSpec) -> ScalingDecision:
    """Decide by the policy that the parameters name."""
    match spec:
        case StaticScaling():
            return static(observation, spec)
        case LagScaling():
            return lag(observation, spec)
        case KpaScaling():
            return kpa(observation, spec)
        case SloScaling():
            return slo(observation, spec)


def memory_s(spec: ScalingSpec, cold_start_s: float | None) -> float:
    """How far back, in seconds, the history goes that a policy needs."""
    match spec:
        case StaticScaling():
            return 0.0
        case LagScaling():
            return spec.down_window_s
        case KpaScaling():
            return max(spec.stable_window_s, spec.down_delay_s)
        case SloScaling():
            start_s = spec.assumed_cold_start_s if cold_start_s is None else cold_start_s
            return spec.hold_cold_starts * start_s


def remember(
    history: tuple[Past, ...], decision: ScalingDecision, now: datetime, for_s: float
) -> tuple[Past, ...]:
    """The history with one decision more, and without what is older than ``for_s`` seconds.

    The newest of the older ones stays: it shows that the history goes back far enough.
    """
    since = now - timedelta(seconds=for_s)
    recent = tuple(p for p in history if p.at > since)
    older = history[: len(history) - len(recent)][-1:]
    return (*older, *recent, Past(now, decision.wanted, decision.desired, decision.surge))


def static(observation: JobObservation, parameters: StaticScaling) -> ScalingDecision:
    """The number declared."""
    declared = parameters.replicas
    wanted = observation.min_replicas if declared is None else declared
    words = "min_replicas" if declared is None else "the number declared"
    return _bounded(observation, "static", wanted, wanted, why=[f"{wanted} is {words}"], inputs={})


def lag(observation: JobObservation, parameters: LagScaling) -> ScalingDecision:
    """KEDA's rule: queued and running over a threshold per replica, held down as HPA holds."""
    threshold = parameters.threshold or observation.slots
    work, there = observation.unfinished, observation.capacity
    wanted = ceil(work / threshold)
    why = [f"{work} queued or running at {threshold:g} a replica need {wanted}"]
    if there and abs(work / (threshold * there) - 1) <= parameters.tolerance:
        wanted = there
        why.append(f"the {there} there are within {parameters.tolerance:.0%} of that")
    held = _held(observation, wanted, parameters.down_window_s, why)
    return _bounded(observation, "lag", wanted, held, why=why, inputs={"threshold": threshold})


def kpa(observation: JobObservation, parameters: KpaScaling) -> ScalingDecision:
    """Knative's rule. A surge (wanted by the panic window at least twice the ready) starts a panic,
    which ends a stable window after the last surge and allows no decrease."""
    target = parameters.target_utilization * observation.slots
    stable = _concurrency(observation, parameters.stable_window_s)
    panic = _concurrency(observation, parameters.panic_window_s)
    ready = max(1, observation.ready)
    most, least = ceil(parameters.max_up * ready), floor(ready / parameters.max_down)
    by_panic = ceil(panic / target)
    surge = by_panic / ready >= parameters.panic_threshold
    needed = ceil(stable / target)
    wanted = min(max(needed, least), most)
    why = [f"{stable:.3g} at once over {parameters.stable_window_s:g} s need {needed}"]
    if wanted != needed:
        why.append(f"{wanted} is the furthest step from {ready} ready")
    started = _last_surge(observation)
    lasting = timedelta(seconds=parameters.stable_window_s)
    if surge or (started is not None and started >= observation.now - lasting):
        before = _panicking_at(observation, parameters)
        wanted = max(wanted, min(max(by_panic, least), most), before)
        why.append(
            f"panic: {panic:.3g} at once over {parameters.panic_window_s:g} s against {ready} ready"
        )
    held = _held(observation, wanted, parameters.down_delay_s, why)
    inputs = {"stable": stable, "panic": panic, "target": target}
    return _bounded(observation, "kpa", wanted, held, why=why, inputs=inputs, surge=surge)


def _concurrency(observation: JobObservation, seconds: float) -> float:
    window = observation.nearest(seconds)
    if window is None or window.concurrency is None:
        return float(observation.unfinished)
    return window.concurrency


def _last_surge(observation: JobObservation) -> datetime | None:
    return max((p.at for p in observation.history if p.surge), default=None)


def _panicking_at(observation: JobObservation, parameters: KpaScaling) -> int:
    """What was wanted last, if that was in the same panic: it only grows in one."""
    if not observation.history:
        return 0
    last = observation.history[-1]
    since = last.at - timedelta(seconds=parameters.stable_window_s)
    return last.wanted if any(p.surge and p.at >= since for p in observation.history) else 0


@dataclass(frozen=True, slots=True)
class _Load:
    """What ``slo`` takes the load to be. Seconds."""

    rate: Rate
    service_s: float
    start_s: float
    peaks: float
    assumed: bool  # ``service_s`` was never measured


def slo(observation: JobObservation, parameters: SloScaling) -> ScalingDecision:
    """As many as keep waits under the objective (Erlang-C), or as drain the backlog."""
    load = _load(observation, parameters)
    steady = _for_rate(observation, parameters, load, load.rate.ahead)
    draining, backlog = _to_drain(observation, parameters, load)
    wanted = max(steady, draining)
    inputs = {
        "rate": load.rate.ahead,
        "rate_slow": load.rate.slow,
        "rate_recent": load.rate.recent,
        "service_s": load.service_s,
        "cold_start_s": load.start_s,
        "peakedness": load.peaks,
        "backlog": backlog,
        "for_rate": steady,
        "for_backlog": draining,
    }
    if observation.drained_for_s >= parameters.zero_after_s:
        why = [f"nothing queued, running or arrived for {observation.drained_for_s:g} s"]
        return _bounded(observation, "slo", 0, 0, why=why, inputs=inputs)
    guess = " (assumed)" if load.assumed else ""
    why = [
        f"{load.rate.ahead:.3g}/s of {load.service_s:.3g} s runs{guess} need {steady} for"
        f" {1 - parameters.late_share:.0%} of waits under {parameters.wait_s:g} s"
    ]
    if draining > steady:
        why.append(
            f"{observation.queued} queued, {backlog:.3g} when more could be ready, need {draining}"
        )
    kept = _kept(observation, parameters, load, wanted, why)
    return _bounded(observation, "slo", wanted, kept, why=why, inputs=inputs)


def _load(observation: JobObservation, parameters: SloScaling) -> _Load:
    service_s, start_s = service_time(observation), observation.cold_start_s
    ahead_s = parameters.assumed_cold_start_s if start_s is None else start_s
    peaks = peakedness(observation.dispersion, parameters.max_peakedness)
    rate = arrival_rate(
        observation,
        fast_s=parameters.fast_window_s,
        slow_s=parameters.slow_window_s,
        ahead_s=ahead_s,
        significance=parameters.significance,
        peakedness=peaks,
    )
    assumed = service_s is None
    return _Load(rate, service_s or parameters.assumed_service_s, ahead_s, peaks, assumed)


def _for_rate(
    observation: JobObservation, parameters: SloScaling, load: _Load, per_s: float
) -> int:
    return replicas_needed(
        per_s * load.service_s,
        load.service_s,
        parameters.wait_s,
        parameters.late_share,
        peakedness=load.peaks,
        slots=observation.slots,
    )


def _to_drain(
    observation: JobObservation, parameters: SloScaling, load: _Load
) -> tuple[int, float]:
    """Replicas that end, in time, the backlog there will be after a cold start; and that backlog.

    None are needed for it while nothing is queued. What the replicas that serve or boot end within
    a part of the objective is no backlog: a busy fleet has such a queue every few minutes, and each
    would cost starts that serve nobody.
    """
    served = observation.capacity * observation.slots / load.service_s
    backlog = max(0.0, observation.queued + (load.rate.ahead - served) * load.start_s)
    if not observation.queued:
        return 0, backlog
    within_s = max(parameters.wait_s, load.service_s)
    late = max(0.0, backlog - served * parameters.wait_s * parameters.patience)
    slots = load.rate.ahead * load.service_s + late * load.service_s / within_s
    return ceil(slots / observation.slots - 1e-9), backlog


def _kept(
    observation: JobObservation,
    parameters: SloScaling,
    load: _Load,
    wanted: int,
    why: list[str],
) -> int:
    """What is kept where fewer are wanted: see "Down" in ``docs/policies.md``."""
    kept = _held(observation, wanted, parameters.hold_cold_starts * load.start_s, why)
    there = observation.history[-1].desired if observation.history else observation.capacity
    if kept < there:
        highest = load.rate.ahead + parameters.down_significance * load.rate.error
        surely = _for_rate(observation, parameters, load, highest)
        if there - kept <= parameters.down_tolerance * there:
            surely = there
        if min(there, surely) > kept:
            kept = min(there, surely)
            why.append(f"{kept} are kept: fewer are not surely enough, or hardly fewer")
    young = observation.young(parameters.lease_s)
    if young > kept:
        kept = young
        why.append(f"{young} are kept: started less than {parameters.lease_s:g} s ago")
    return kept


def _held(observation: JobObservation, wanted: int, for_s: float, why: list[str]) -> int:
    """The most wanted over the last ``for_s`` seconds.

    Where the history does not go back that far, no fewer than there are: a conductor that has just
    started lets nothing go on what it has not seen.
    """
    if for_s <= 0 or observation.drained_for_s >= for_s:
        return wanted
    since = observation.now - timedelta(seconds=for_s)
    held = max((p.wanted for p in observation.history if p.at >= since), default=0)
    if not observation.history or observation.history[0].at > since:
        held = max(held, observation.capacity)
    if held <= wanted:
        return wanted
    why.append(f"held at {held} until fewer were wanted for {for_s:.3g} s")
    return held


def _bounded(
    observation: JobObservation,
    policy: str,
    wanted: int,
    held: int,
    *,
    why: list[str],
    inputs: Mapping[str, float],
    surge: bool = False,
) -> ScalingDecision:
    """At least one while there is work (but for ``static``), within the bounds of the job."""
    desired = held
    if policy != "static" and observation.unfinished and desired < 1:
        desired = 1
        why.append("one, as there is work")
    if desired < observation.min_replicas:
        desired = observation.min_replicas
        why.append(f"min_replicas is {desired}")
    if desired > observation.max_replicas:
        desired = observation.max_replicas
        why.append(f"max_replicas is {desired}")
    seen = {
        "queued": observation.queued,
        "oldest_wait_s": observation.oldest_wait_s,
        "in_flight": observation.in_flight,
        "ready": observation.ready,
        "booting": observation.capacity - observation.ready,
        "draining": observation.draining,
        **inputs,
    }
    reason = "; ".join(why)
    return ScalingDecision(policy, VERSIONS[policy], desired, reason, wanted, seen, surge)
