"""Placement of jobs whose number of replicas is decided: as many as that, and who goes first."""

from __future__ import annotations

import pytest

from given import (
    assigned,
    created,
    decide,
    job,
    joined,
    ready,
    scaled,
    serving,
)
from jetfleet.scaling_specs import LagScaling, ScalingSpec, SloScaling, StaticScaling
from jetfleet.specs import JobSpec

ECHO = job("echo")


def adaptive(
    scaling: ScalingSpec | None = None, least: int = 0, most: int = 4, **more: object
) -> JobSpec:
    spec = job("echo").model_dump() | {"min_replicas": least, "max_replicas": most, **more}
    return JobSpec.model_validate({**spec, "scaling": scaling or LagScaling()})


def test_a_job_that_is_scaled_gets_what_was_decided_within_its_bounds():
    declared = [created(adaptive(least=1, most=3))]
    for number, given_ in ((2, 2), (0, 1), (9, 3)):
        assert len(decide(declared, [joined("w1"), scaled("echo", number)])) == given_


def test_before_anything_was_decided_what_is_there_stays():
    spec = adaptive()
    assert decide([created(spec)], [joined("w1")]) == []
    happened = [joined("w1"), serving("r1", "w1", spec)]
    assert decide([created(spec)], happened) == []


def test_a_number_decided_says_nothing_to_a_job_of_a_fixed_size():
    fixed = JobSpec(
        name="echo", model=ECHO.model, min_replicas=0, max_replicas=4,
        scaling=StaticScaling(replicas=2),
    )  # fmt: skip
    assert len(decide([created(fixed)], [joined("w1"), scaled("echo", 4)])) == 2


@pytest.mark.parametrize(
    ("policy", "gone"), [(LagScaling(), "release r3"), (SloScaling(lease_s=100), "release r2")]
)
def test_with_a_lease_the_young_are_kept_and_the_older_go(policy, gone):
    spec = adaptive(policy)
    happened = [
        joined("w1"),
        *(
            event
            for name, seconds in (("r1", 0), ("r2", 10), ("r3", 60))
            for event in (assigned(name, "w1", spec, seconds=seconds), ready(name, "w1"))
        ),
        scaled("echo", 2),
    ]
    assert decide([created(spec)], happened, seconds=130) == [gone]
