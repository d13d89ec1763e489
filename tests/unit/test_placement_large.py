"""Placement in a large fleet: as when replicas are placed one by one, for little work each."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given as generated
from hypothesis import settings
from hypothesis import strategies as st

from given import at, created, fleet, gpu, job, joined, obeyed, registry, serving
from jetfleet.images import Images
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies import placement_scores, placement_search
from jetfleet.policies.placement import Observation, place
from jetfleet.specs import JobSpec, ModelSpec, Resources
from jetfleet.speeds import Sample, Speeds

IMAGE = "registry.example/shared:1"


def model(name: str, gpu_memory_mib: int = 0) -> ModelSpec:
    need = Resources(memory_mib=500, gpu_memory_mib=gpu_memory_mib)
    return ModelSpec(name=name, runtime="docker", contract="cog", image=IMAGE, resources=need)


def machines(count: int, chance: random.Random) -> list:
    """Of four owners; every other one has a GPU, some have two types of them."""
    return [
        joined(
            f"w{n:03}",
            memory_mib=chance.choice((4000, 8000)),
            owner=f"o{n % 4}",
            price_per_hour=chance.choice((0.0, 1.0)),
            gpus=tuple(
                gpu(8000, index=index, uuid=f"{n}-{index}").model_copy(update={"name": name})
                for index, name in enumerate(("T4", "H100")[: n % 3])
            ),
        )
        for n in range(count)
    ]


def world(specs: list[JobSpec], count: int, chance: random.Random) -> Observation:
    """Some of the workers ran the image, of some it is known how fast they are."""
    names = [f"w{n:03}" for n in range(count)]
    ran = {name: (IMAGE,) for name in names if chance.random() < 0.5}
    speeds = {
        name: {("default", spec.model.ref, ""): Sample(chance.choice((0.1, 0.2)), 9)}
        for spec in specs
        for name in names
        if chance.random() < 0.3
    }
    state = fleet(*machines(count, chance))
    return Observation(registry(*map(created, specs)), state, Speeds(speeds), Images(ran))


@settings(max_examples=25)
@generated(st.integers(0, 10**6), st.sampled_from(["spread", "pack"]), st.sampled_from([0, 3000]))
def test_many_replicas_of_a_job_go_where_they_would_go_one_by_one(seed, prefer, gpu_memory_mib):
    wish = PlacementSpec(prefer=prefer)
    spec = job("echo", replicas=30, of=model("m", gpu_memory_mib), placement=wish)
    seen = world([spec], 20, random.Random(seed))
    at_once, by_one = place(seen, at(0)), []
    for replicas in range(1, 31):
        few = spec.model_copy(update={"min_replicas": replicas, "max_replicas": replicas})
        seen = replace(seen, registry=registry(created(few)))
        decisions = place(seen, at(0))
        seen = obeyed(seen, decisions)
        by_one += decisions
    assert [each.worker for each in at_once] == [each.worker for each in by_one]
    assert [each.candidates[0] for each in at_once] == [each.candidates[0] for each in by_one]


@pytest.fixture()
def looks(monkeypatch) -> list[str]:
    """Names of workers, each time when one was weighed."""
    found: list[str] = []

    def standing(room, gpu, pack):
        found.append(room.worker.name)
        return weigh(room, gpu, pack)

    weigh = placement_scores.standing
    monkeypatch.setattr(placement_scores, "standing", standing)
    monkeypatch.setattr(placement_search, "standing", standing)
    return found


def test_replicas_of_many_jobs_of_one_image_need_no_look_at_every_worker_that_has_it(looks):
    specs = [job(f"j{n}", of=model(f"m{n}")) for n in range(100)]
    seen = replace(
        world([], 200, random.Random(1)),
        registry=registry(*map(created, specs)),
        images=Images({f"w{n:03}": (IMAGE,) for n in range(200)}),
    )
    assert len(place(seen, at(0))) == 100
    assert len(looks) < 200 + 100 * 10


def test_half_of_a_large_job_is_placed_anew_without_a_look_at_all_of_it_each_time(looks):
    spec = job("echo", replicas=200, of=model("m"))
    seen = world([spec], 200, random.Random(2))
    speeds = {f"w{n:03}": {("default", "m:1", ""): Sample(0.1 + n % 7, 9)} for n in range(200)}
    state = fleet(*(serving(f"r{n}", f"w{n:03}", spec) for n in range(100)), onto=seen.fleet)
    assert len(place(replace(seen, fleet=state, speeds=Speeds(speeds)), at(0))) == 100
    assert len(looks) < 2 * 200 + 100 * 10
