"""Preemption: what holds for any fleet that is full (hypothesis)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given as generated
from hypothesis import strategies as st
from test_placement_properties import histories

from given import at, created, fleet, gpu, job, joined, model, obeyed, ready, stopped, world
from jetfleet.fleet import ReplicaState
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies.placement import RESERVED_MIB, Observation, Release, place
from jetfleet.specs import JobSpec, Resources

_WISHES = st.fixed_dictionaries(
    {
        "labels": st.sampled_from([{}, {}, {"zone": "eu"}]),
        "apart": st.sampled_from([None, None, "workers"]),
    }
)


def _jobs(priorities: Sequence[int], replicas: int) -> st.SearchStrategy[list[JobSpec]]:
    one = st.tuples(
        st.sampled_from(priorities), st.integers(1, replicas),
        st.sampled_from([300, 500, 800, 1500]), st.sampled_from([0, 0, 3000, 5000]), _WISHES,
    )  # fmt: skip
    return st.lists(one, min_size=1, max_size=5).map(
        lambda many: [
            job(
                f"j{n}",
                replicas=count,
                of=model(f"j{n}", memory_mib=memory, gpu_memory_mib=gpu_memory),
                placement=PlacementSpec(priority=priority, **wishes),
            )
            for n, (priority, count, memory, gpu_memory, wishes) in enumerate(many)
        ]
    )


_WORKERS = st.lists(
    st.tuples(
        st.sampled_from([1000, 2000, 3000]),
        st.sampled_from([(), (gpu(8000, uuid="A"), gpu(8000, index=1, uuid="B"))]),
        st.sampled_from([{}, {"zone": "eu"}]),
    ),
    min_size=1, max_size=4,
).map(
    lambda many: [
        joined(f"w{n}", memory_mib=RESERVED_MIB + memory, gpus=gpus, labels=labels)
        for n, (memory, gpus, labels) in enumerate(many)
    ]
)  # fmt: skip


def settled(seen: Observation, seconds: float) -> Observation:
    """What was assigned serves, what was let go has stopped."""
    said = [
        stopped(r.id, r.worker, r.job, seconds)
        if r.status == "releasing"
        else ready(r.id, r.worker, r.job, seconds)
        for r in seen.fleet.replicas.values()
        if r.status != "ready"
    ]
    return replace(seen, fleet=fleet(*said, onto=seen.fleet))


def lived(jobs: Sequence[JobSpec], workers: Sequence[object]) -> Observation:
    """These jobs alone on these workers, until they are placed."""
    seen = world([created(spec) for spec in jobs], workers)
    return settled(obeyed(seen, place(seen, at(0))), 0)


def priority_of(seen: Observation, replica: ReplicaState) -> int:
    return seen.registry.jobs[replica.key].spec.placement.priority


def asked_to_go(seen: Observation, seconds: float) -> list[Release]:
    found = [d for d in place(seen, at(seconds)) if isinstance(d, Release)]
    return [d for d in found if d.room_for is not None]


def fits(seen: Observation, need: Resources, worker: str, without: Sequence[str]) -> bool:
    """Whether a worker has room when these replicas and those that leave are gone."""
    stay = [
        r for r in seen.fleet.replicas.values()
        if r.worker == worker and r.status != "releasing" and r.id not in without
    ]  # fmt: skip
    machine = seen.fleet.workers[worker].machine
    used = sum(r.spec.model.resources.memory_mib for r in stay)
    if used + need.memory_mib > machine.memory_mib - RESERVED_MIB:
        return False
    return not need.gpu_memory_mib or any(
        need.gpu_memory_mib
        <= (each.memory_mib or 0)
        - sum(r.spec.model.resources.gpu_memory_mib for r in stay if each.id in r.gpus)
        for each in machine.gpus
    )


def suits(seen: Observation, spec: JobSpec, worker: str) -> bool:
    labels = seen.fleet.workers[worker].labels
    return spec.placement.labels.items() <= labels.items()


@generated(histories(), st.integers(0, 200))
def test_only_strictly_less_important_replicas_are_asked_to_go(seen, seconds):
    for decision in asked_to_go(seen, seconds):
        asked = decision.room_for
        higher = seen.registry.jobs[asked.tenant, asked.job].spec.placement
        assert higher.preempt != "never"
        assert priority_of(seen, decision.replica) < asked.priority == higher.priority


_NEW = _jobs([5], 1).map(lambda jobs: jobs[0].model_copy(update={"name": "new"}))


@generated(_jobs([0, 3, 5, 10], 3), _WORKERS, _NEW)
def test_as_few_go_as_make_room_on_one_worker_and_only_where_that_is_needed(jobs, workers, new):
    seen = lived(jobs, workers)
    content = [spec for spec in jobs if _has_all(seen, spec)]
    seen = replace(seen, registry=world(map(created, [*content, new]), []).registry)
    decisions = place(seen, at(0))
    gone = [d for d in decisions if isinstance(d, Release) and d.room_for is not None]
    need = new.model.resources
    lower = {
        worker: [
            r.id for r in seen.fleet.replicas.values()
            if r.worker == worker and r.key in seen.registry.jobs and priority_of(seen, r) < 5
        ]
        for worker in seen.fleet.workers
        if suits(seen, new, worker)
    }  # fmt: skip
    waits = any(fits(seen, need, worker, _orphans(seen)) for worker in lower)
    possible = any(fits(seen, need, w, [*_orphans(seen), *ids]) for w, ids in lower.items())
    assert bool(gone) == (possible and not waits)
    if not gone:
        return
    (worker,) = {d.replica.worker for d in gone}
    ids = [*_orphans(seen), *(d.replica.id for d in gone)]
    assert worker in lower
    assert fits(seen, need, worker, ids)
    for each in gone:
        assert not fits(seen, need, worker, [i for i in ids if i != each.replica.id])
    if len(gone) > 1:
        assert not any(
            fits(seen, need, w, [*_orphans(seen), one]) for w, them in lower.items() for one in them
        )


def _has_all(seen: Observation, spec: JobSpec) -> bool:
    """Whether a job lacks nothing: one that does would ask for room itself."""
    there = [r for r in seen.fleet.replicas.values() if r.job == spec.name]
    return len(there) == spec.replicas


def _orphans(seen: Observation) -> list[str]:
    """Replicas of jobs that are not there: they go in the same round."""
    return [r.id for r in seen.fleet.replicas.values() if r.key not in seen.registry.jobs]


@generated(_jobs([0, 5, 10], 3), _jobs([5, 10, 20], 3), _WORKERS)
def test_it_comes_to_rest_with_nobody_put_back_and_forth(jobs, more, workers):
    more = [spec.model_copy(update={"name": f"more-{spec.name}"}) for spec in more]
    seen = lived(jobs, workers)
    seen = replace(seen, registry=world(map(created, [*jobs, *more]), []).registry)
    asked, total = 0, sum(spec.replicas for spec in jobs)
    for round_ in range(1, 40):
        now = round_ * 700  # longer than every back-off
        decisions = place(seen, at(now))
        if not decisions:
            break
        asked += sum(isinstance(d, Release) and d.room_for is not None for d in decisions)
        seen = settled(obeyed(seen, decisions, now), now)
    else:
        raise AssertionError("it goes on")
    assert asked <= total
    _nobody_could_still_take_a_place(seen, now)


def _nobody_could_still_take_a_place(seen: Observation, now: float) -> None:
    for state in seen.registry.jobs.values():
        spec = state.spec
        if _has_all(seen, spec) or spec.placement.apart is not None:
            continue
        for worker in seen.fleet.workers:
            ids = [
                r.id for r in seen.fleet.replicas.values()
                if r.worker == worker and priority_of(seen, r) < spec.placement.priority
            ]  # fmt: skip
            if suits(seen, spec, worker):
                assert not fits(seen, spec.model.resources, worker, ids), (spec.name, worker, now)
