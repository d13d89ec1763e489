"""Placement: what holds over any history of a fleet (hypothesis)."""

from __future__ import annotations

from hypothesis import given as generated
from hypothesis import strategies as st

from given import (
    at,
    created,
    deleted,
    draining,
    failed,
    fleet,
    gpu,
    job,
    joined,
    left,
    lost,
    model,
    obeyed,
    ready,
    registry,
    stopped,
    updated,
)  # fmt: skip
from jetfleet.policies.placement import RESERVED_MIB, Assign, Observation, Release, place

# -- properties over made-up fleets

_JOBS = ("a", "b", "c")
_WORKERS = ("w1", "w2", "w3")
_SPECS = st.builds(
    lambda name, replicas, version, memory, gpu_memory, capability, workers: job(
        name,
        replicas=replicas,
        of=model(
            name,
            version=version,
            memory_mib=memory,
            gpu_memory_mib=gpu_memory,
            gpu_capability=capability,
        ),
        assignment="manual" if workers else "auto",
        workers=workers,
    ),
    st.sampled_from(_JOBS),
    st.integers(0, 4),
    st.sampled_from(["1", "2"]),
    st.sampled_from([100, 500, 1000]),
    st.sampled_from([0, 0, 3000, 5000]),
    st.sampled_from([None, 8.0]),
    st.sampled_from([(), (), (), ("w1",), ("w2", "w3")]),
)
_JOINS = st.builds(
    lambda name, session, memory, gpus: joined(name, session=session, memory_mib=memory, gpus=gpus),
    st.sampled_from(_WORKERS),
    st.sampled_from(["s1", "s2"]),
    st.sampled_from([600, 1500, 2500, 4000]),
    st.sampled_from(
        [
            (),
            (gpu(8000, 7.0),),
            (gpu(8000, 9.0), gpu(6000, 9.0, index=1)),
            (gpu(8000, 9.0, uuid="GPU-a"), gpu(8000, 9.0, index=1, uuid="GPU-b")),
            (gpu(8000, 9.0, uuid="GPU-b"),),  # the first one fell off the bus
        ]
    ),
)


@st.composite
def histories(draw: st.DrawFn) -> Observation:
    """A fleet after some rounds of deciding, obeying, failing, joining and changing minds."""
    seen = Observation(registry(), fleet())
    for _ in range(draw(st.integers(1, 8))):
        seen = _declared(draw, seen)
        seen = obeyed(seen, place(seen, at(0)), seconds=draw(st.integers(0, 100)))
        seen = _happened(draw, seen)
    return seen


def _declared(draw: st.DrawFn, seen: Observation) -> Observation:
    spec = draw(_SPECS)
    event = draw(st.sampled_from([created(spec), updated(spec), deleted(spec.name)]))
    joining = draw(_JOINS)
    running = [r.id for r in seen.fleet.replicas.values() if r.worker == joining.data.worker]
    kept = tuple(replica for replica in running if draw(st.booleans()))
    data = joining.data.model_copy(update={"replicas": kept})
    joining = joining.model_copy(update={"data": data})
    return Observation(registry(event, onto=seen.registry), fleet(joining, onto=seen.fleet))


def _happened(draw: st.DrawFn, seen: Observation) -> Observation:
    state = seen.fleet
    for replica in list(state.replicas.values()):
        say = draw(st.sampled_from([None, None, ready, failed, stopped]))
        if say is not None:
            state = fleet(say(replica.id, replica.worker, replica.job), onto=state)
    gone = draw(st.sampled_from([None, None, draining, left, lost]))
    if gone is not None:
        state = fleet(gone(draw(st.sampled_from(_WORKERS))), onto=state)
    return Observation(seen.registry, state)


def _overfull(seen: Observation) -> list[str]:
    """Workers whose replicas need more than they have."""
    found = []
    for worker in seen.fleet.workers.values():
        needs = [
            r.spec.model.resources for r in seen.fleet.replicas.values() if r.worker == worker.name
        ]
        memory = sum(need.memory_mib for need in needs)
        if needs and memory > worker.machine.memory_mib - RESERVED_MIB:
            found.append(worker.name)
    return found


def _overfull_gpus(seen: Observation) -> list[tuple[str, str]]:
    """GPUs whose replicas, by what was decided, need more than each has."""
    return [
        (worker.name, each.id)
        for worker in seen.fleet.workers.values()
        for each in worker.machine.gpus
        if (each.memory_mib or 0)
        < sum(
            r.spec.model.resources.gpu_memory_mib
            for r in seen.fleet.replicas.values()
            if r.worker == worker.name and each.id in r.gpus
        )
    ]


@generated(histories(), st.integers(0, 200))
def test_no_worker_ever_gets_more_than_it_has_room_for(seen, seconds):
    before = set(_overfull(seen))  # a machine may come back smaller than it was
    for round_ in range(4):
        decisions = place(seen, at(seconds + round_))
        taken = {d.worker for d in decisions if isinstance(d, Assign)}
        seen = obeyed(seen, decisions)
        assert not set(_overfull(seen)) & taken
        assert set(_overfull(seen)) <= before


@generated(histories(), st.integers(0, 200))
def test_no_gpu_ever_gets_more_than_it_has_room_for(seen, seconds):
    before = set(_overfull_gpus(seen))  # a worker may come back with another, smaller GPU
    for round_ in range(4):
        decisions = [d for d in place(seen, at(seconds + round_)) if isinstance(d, Assign)]
        machines = {name: worker.machine for name, worker in seen.fleet.workers.items()}
        for assign in decisions:
            names = {gpu.id for gpu in machines[assign.worker].gpus}
            assert len(assign.gpus) == (assign.spec.model.resources.gpu_memory_mib > 0)
            assert set(assign.gpus) <= names
        taken = {(d.worker, gpu) for d in decisions for gpu in d.gpus}
        seen = obeyed(seen, place(seen, at(seconds + round_)))
        assert not set(_overfull_gpus(seen)) & taken
        assert set(_overfull_gpus(seen)) <= before


@generated(histories(), st.integers(0, 200))
def test_no_job_gets_more_replicas_of_its_present_spec_than_it_wants(seen, seconds):
    seen = obeyed(seen, place(seen, at(seconds)))
    for key, wanted in seen.registry.jobs.items():
        current = [
            r
            for r in seen.fleet.replicas.values()
            if r.key == key
            and r.status != "releasing"
            and r.spec == wanted.spec
            and seen.fleet.workers[r.worker].status == "joined"
        ]
        assert len(current) <= wanted.spec.replicas


@generated(histories(), st.integers(0, 200))
def test_the_same_observation_gives_the_same_decisions(seen, seconds):
    assert place(seen, at(seconds)) == place(seen, at(seconds))


@generated(histories(), st.integers(0, 200))
def test_once_its_decisions_are_in_the_log_it_decides_nothing_more(seen, seconds):
    decisions = place(seen, at(seconds))
    assert place(obeyed(seen, decisions, seconds), at(seconds)) == ()


@generated(histories(), st.integers(0, 200))
def test_only_what_serves_or_was_asked_to_serve_is_released_and_only_once(seen, seconds):
    gone = [d.replica for d in place(seen, at(seconds)) if isinstance(d, Release)]
    assert len({r.id for r in gone}) == len(gone)
    joined = {name: worker.joined_seq for name, worker in seen.fleet.workers.items()}
    assert all(r.status != "releasing" or r.released_seq < joined[r.worker] for r in gone)
