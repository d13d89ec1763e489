"""Specs: what people may declare, and what they are told when they may not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from given import job, model
from jetfleet.specs import JobSpec, ModelSpec


def test_a_model_says_in_exactly_one_way_what_runs():
    with pytest.raises(ValidationError, match="exactly one of function, command and image"):
        ModelSpec(name="m")
    with pytest.raises(ValidationError, match="got \\['function', 'command'\\]"):
        ModelSpec(name="m", function="a.py:f", command=("serve",), contract="openai")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"runtime": "docker", "function": "a.py:f"}, "runtime docker needs an image"),
        ({"image": "x"}, "an image needs runtime docker"),
        ({"command": ("serve",)}, "needs function: file.py:function, not a command"),
        ({"contract": "openai", "function": "a.py:f"}, "needs a command or an image"),
    ],
)
def test_a_model_whose_parts_do_not_fit_together_is_refused(fields, told):
    with pytest.raises(ValidationError, match=told):
        ModelSpec(name="m", **fields)


@pytest.mark.parametrize("bad", ["a.py", "a:f", "a.py:", "a.py:1f", "a.py:f()", ":f", "a.py:f\n"])
def test_a_function_must_look_like_file_and_name(bad):
    with pytest.raises(ValidationError, match=r"file\.py:function"):
        ModelSpec(name="m", function=bad)


@pytest.mark.parametrize(
    "bad",
    ["", "A", "a b", "a.b", "a\n", "a\r\nb", "*", ">", "-a", "_a", "a__b", "a_", "é", "a" * 64],
)
def test_names_that_could_not_stand_in_a_subject_are_refused(bad):
    with pytest.raises(ValidationError):
        model(bad)
    with pytest.raises(ValidationError):
        job(bad)
    with pytest.raises(ValidationError):
        job(priority_class=bad)
    with pytest.raises(ValidationError):
        job(priority_classes=("normal", bad))
    with pytest.raises(ValidationError):
        job(workers=(bad,))


@pytest.mark.parametrize("good", ["a", "0", "a-b", "a_b", "gpt-4o-mini", "a" * 63])
def test_usual_names_are_taken(good):
    assert job(good).name == good


@pytest.mark.parametrize("bad", ["", " ", ".1", "1 0", "1\n", "1/2", "v" * 64])
def test_versions_that_could_not_be_written_are_refused(bad):
    with pytest.raises(ValidationError):
        model(version=bad)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas 3 is above max_replicas 2"),
        ({"min_replicas": 1, "max_replicas": 2, "desired_replicas": 3}, "outside"),
        ({"timeout_s": 0}, "greater than 0"),
        ({"queue_ttl_s": 86_401}, "less than or equal to 86400"),
        ({"concurrency": 0}, "greater than or equal to 1"),
        ({"retry_limit": -1}, "greater than or equal to 0"),
        ({"priority_classes": ("normal", "normal")}, "has a class twice"),
        ({"priority_classes": ("high", "low")}, "'normal', of invocations that name none, is not"),
        ({"priority_floor": 0}, "greater than or equal to 0.001"),
        ({"ack_wait_s": 0.5}, "greater than or equal to 1"),
        ({"queue_cap": 0}, "greater than or equal to 1"),
        ({"replica": 1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_out_of_bounds_are_refused_with_the_bound(fields, told):
    with pytest.raises(ValidationError, match=told):
        JobSpec(name="j", model=model(), **fields)


def test_the_wanted_replicas_are_the_desired_or_else_the_least():
    assert JobSpec(name="j", model=model(), min_replicas=2, max_replicas=5).replicas == 2
    assert JobSpec(name="j", model=model(), max_replicas=5, desired_replicas=4).replicas == 4


def test_a_queue_ttl_is_always_shorter_than_the_log_keeps_its_payloads():
    from jetfleet.streams import SECOND, invocations, payloads

    longest = JobSpec(name="j", model=model(), queue_ttl_s=86_400, timeout_s=86_400)
    lives = (longest.queue_ttl_s + longest.timeout_s) * SECOND
    assert lives <= payloads()["max_age"] <= invocations()["max_age"]


def test_specs_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        job().name = "other"


def test_a_model_is_referred_to_by_name_and_version():
    assert model("m", version="2").ref == "m:2"


def test_a_fixed_number_of_replicas_is_declared_once_and_within_bounds():
    of = JobSpec(name="echo", model=ModelSpec(name="echo", function="a.py:f")).model_dump()

    def declared(**more: Any) -> int:
        return JobSpec.model_validate({**of, "min_replicas": 1, "max_replicas": 3, **more}).replicas

    assert declared() == 1
    assert declared(scaling={"policy": "static", "replicas": 2}) == 2
    assert declared(desired_replicas=3, scaling={"policy": "static", "replicas": 2}) == 3
    assert declared(scaling={"policy": "lag"}) == 1
    with pytest.raises(ValidationError, match=r"scaling\.replicas 4 is outside"):
        declared(scaling={"policy": "static", "replicas": 4})
    with pytest.raises(ValidationError, match="finite"):
        declared(scaling={"policy": "slo", "wait_s": float("inf")})
    with pytest.raises(ValidationError, match="finite"):
        ModelSpec(name="m", function="a.py:f", startup_timeout_s=float("inf"))
    with pytest.raises(ValidationError, match="scaling lag decides it"):
        declared(desired_replicas=2, scaling={"policy": "lag"})


@pytest.mark.parametrize(
    "image", ["python", "team/chat:3", "127.0.0.1:5000/chat", f"a.b/c@sha256:{'0' * 64}"]
)
def test_usual_names_of_images_are_taken(image):
    assert ModelSpec(name="m", runtime="docker", image=image, contract="cog").image == image


@pytest.mark.parametrize("image", ["", "NOT A REF!!", "-x", "a b", "a@sha256:123"])
def test_what_names_no_image_is_refused(image):
    with pytest.raises(ValidationError, match="image"):
        ModelSpec(name="m", runtime="docker", image=image, contract="cog")


def test_a_job_that_declares_no_classes_has_the_one_of_before():
    assert job().classes == ("normal",)
    assert job(priority_class="urgent").classes == ("urgent",)
    several = job(priority_classes=["high", "normal", "low"])
    assert (several.classes, several.priority_class) == (("high", "normal", "low"), "normal")
