"""Where a job's replicas may run, and what is liked better. ``docs/policies.md`` has the rules.

Values that people declare. The policy that reads them is ``jetfleet.policies.placement``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class PlacementSpec(BaseModel):
    """What a job asks of the workers that run it."""

    # YAML has .inf and .nan, JSON has not: an event could not carry them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trusted: bool = Field(False, description="only on trusted workers")
    labels: dict[str, str] = Field(
        default_factory=dict, description="only on workers that have all of these labels"
    )
    max_price_per_hour: float | None = Field(
        None, ge=0, description="only on workers that cost no more; None: whatever it costs"
    )
    apart: Literal["workers", "owners"] | None = Field(
        None, description="never two replicas on one worker, or on workers of one owner"
    )
    prefer: Literal["spread", "pack"] = Field(
        "spread", description="rather where most is free, or where least is, so that others empty"
    )
    stay: bool = Field(False, description="never move a replica because a better worker is there")
    priority: int = Field(
        0, ge=-1_000_000, le=1_000_000,
        description="how important it is: higher is placed first, and may take the place of lower",
    )  # fmt: skip
    preempt: Literal["lower", "never"] = Field(
        "lower", description="whose place it may take where there is no room; never: nobody's"
    )
