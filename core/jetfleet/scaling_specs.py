"""How a job may be scaled: the parameters of each policy. ``docs/policies.md`` has the formulas.

Values that people declare. The policies that read them are in ``jetfleet.policies.scaling``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# The conductor computes with what anybody declares: no number is so large or so small that this
# overflows or takes long, and arrivals are remembered for a day at most.
DAY_S = 86_400.0
LEAST = 1e-3  # of what is divided by
MOST_ERRORS = 100.0  # standard errors: nothing stands out by more


class _Parameters(BaseModel):
    # YAML has .inf and .nan, JSON has not: an event could not carry them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StaticScaling(_Parameters):
    """A fixed number of replicas."""

    policy: Literal["static"] = "static"
    replicas: int | None = Field(None, ge=0, description="how many; None: min_replicas")


class LagScaling(_Parameters):
    """KEDA's rule for JetStream: unfinished work over a threshold per replica."""

    policy: Literal["lag"] = "lag"
    threshold: float | None = Field(
        None, ge=LEAST, description="unfinished invocations a replica; None: its slots"
    )
    tolerance: float = Field(
        0.1, ge=0, lt=1, description="share by which work may differ from what is there unanswered"
    )
    down_window_s: float = Field(
        300.0, ge=0, le=DAY_S, description="down only to the most wanted over this long, seconds"
    )


class KpaScaling(_Parameters):
    """Knative's rule: mean concurrency over a target, over a stable and a panic window."""

    policy: Literal["kpa"] = "kpa"
    target_utilization: float = Field(0.7, ge=LEAST, le=1, description="of a replica's slots")
    stable_window_s: float = Field(60.0, ge=6, le=3600, description="seconds")
    panic_window_s: float = Field(6.0, ge=1, le=3600, description="seconds")
    panic_threshold: float = Field(
        2.0, gt=1, description="wanted over ready replicas at which it panics"
    )
    max_up: float = Field(
        1000.0, gt=1, le=1e6, description="at most this many times the ready, a decision"
    )
    max_down: float = Field(2.0, gt=1, description="at least the ready over this, a decision")
    down_delay_s: float = Field(
        0.0, ge=0, le=DAY_S, description="down only to the most wanted over this long, seconds"
    )


class SloScaling(_Parameters):
    """As many replicas as keep all but a share of the waits under an objective."""

    policy: Literal["slo"] = "slo"
    wait_s: float = Field(10.0, ge=0, description="objective: longest wait for a start, seconds")
    late_share: float = Field(0.05, gt=0, lt=1, description="share of waits that may be longer")
    fast_window_s: float = Field(
        10.0,
        ge=1,
        le=DAY_S,
        description="shortest window whose rate counts, where it stands out, seconds",
    )
    slow_window_s: float = Field(
        300.0, ge=1, le=DAY_S, description="the memory of the rate, seconds"
    )
    significance: float = Field(
        4.0,
        ge=0,
        le=MOST_ERRORS,
        description="standard errors by which a shorter window must stand out",
    )
    down_significance: float = Field(
        4.0,
        ge=0,
        le=MOST_ERRORS,
        description="standard errors added to the rate before replicas are let go",
    )
    down_tolerance: float = Field(
        0.05, ge=0, lt=1, description="a smaller share of the replicas is not let go"
    )
    max_peakedness: float = Field(8.0, ge=1, le=1000, description="burstiness is taken for no more")
    patience: float = Field(
        0.5, ge=0, le=1,
        description="a queue that what is there ends within this share of wait_s is no backlog",
    )  # fmt: skip
    hold_cold_starts: float = Field(
        3.0, ge=0, le=24, description="down only to the most wanted over this many cold starts"
    )
    lease_s: float = Field(
        300.0,
        ge=0,
        le=DAY_S,
        description="a replica younger than this is kept: the price of its start",
    )
    zero_after_s: float = Field(
        300.0,
        ge=1,
        le=DAY_S,
        description="nothing queued, running or arrived for this long: min_replicas",
    )
    assumed_service_s: float = Field(
        1.0, ge=LEAST, le=DAY_S, description="length of a run until one was measured, seconds"
    )
    assumed_cold_start_s: float = Field(
        45.0, ge=0, le=3600, description="from assigned to ready until it was measured, seconds"
    )


ScalingSpec = Annotated[
    StaticScaling | LagScaling | KpaScaling | SloScaling, Field(discriminator="policy")
]
