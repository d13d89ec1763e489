"""Placement: what holds over any history of a fleet (hypothesis)."""

from __future__ import annotations

from dataclasses import replace

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
    took,
    updated,
    world,
)  # fmt: skip
from jetfleet.events import Event
from jetfleet.fleet import ReplicaState, WorkerState
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies.placement import (
    RESERVED_MIB,
    Assign,
    Observation,
    Release,
    place,
    serves,
)
from jetfleet.specs import JobSpec

# -- properties over made-up fleets

_JOBS = ("a", "b", "c")
_WORKERS = ("w1", "w2", "w3")
_WISHES = st.builds(
    PlacementSpec,
    trusted=st.sampled_from([False, False, True]),
    labels=st.sampled_from([{}, {}, {"zone": "eu"}]),
    max_price_per_hour=st.sampled_from([None, None, 2.0]),
    apart=st.sampled_from([None, None, "workers", "owners"]),
    prefer=st.sampled_from(["spread", "pack"]),
    priority=st.sampled_from([0, 0, 5, 10]),
    preempt=st.sampled_from(["lower", "lower", "never"]),
)
_SPECS = st.builds(
    lambda name, replicas, version, memory, gpu_memory, capability, workers, wishes: job(
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
        placement=wishes,
    ),
    st.sampled_from(_JOBS),
    st.integers(0, 4),
    st.sampled_from(["1", "2"]),
    st.sampled_from([100, 500, 1000]),
    st.sampled_from([0, 0, 3000, 5000]),
    st.sampled_from([None, 8.0]),
    st.sampled_from([(), (), (), ("w1",), ("w2", "w3")]),
    _WISHES,
)
_FACTS = st.fixed_dictionaries(
    {
        "owner": st.sampled_from(["", "ann", "bob"]),
        "trusted": st.booleans(),
        "labels": st.sampled_from([{}, {"zone": "eu"}, {"zone": "us"}]),
        "price_per_hour": st.sampled_from([0.0, 1.0, 3.0]),
    }
)
_JOINS = st.builds(
    lambda name, session, memory, gpus, facts: joined(
        name, session=session, memory_mib=memory, gpus=gpus, **facts
    ),
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
    _FACTS,
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


# -- filters


def _objects(spec: JobSpec, worker: WorkerState) -> bool:
    """Whether the job's wishes leave this worker out."""
    wish = spec.placement
    most = wish.max_price_per_hour
    return (
        worker.status != "joined"
        or (spec.assignment == "manual" and worker.name not in spec.workers)
        or (wish.trusted and not worker.trusted)
        or not wish.labels.items() <= worker.labels.items()
        or (most is not None and worker.price_per_hour > most)
    )


def _shared(spec: JobSpec, worker: WorkerState) -> str | None:
    """What replicas that are kept apart do not share."""
    return {"workers": worker.name, "owners": worker.owner}.get(spec.placement.apart or "")


@generated(histories(), st.integers(0, 200))
def test_no_replica_is_placed_on_a_worker_that_fails_a_filter(seen, seconds):
    workers = seen.fleet.workers
    decisions = place(seen, at(seconds))
    gone = {d.replica.id for d in decisions if isinstance(d, Release)}

    def stays(replica: ReplicaState, spec: JobSpec) -> bool:
        worker = workers[replica.worker]
        return (
            replica.id not in gone
            and replica.status != "releasing"
            and serves(replica.spec, spec)
            and not _objects(spec, worker)
        )

    for spec in {d.spec.name: d.spec for d in decisions if isinstance(d, Assign)}.values():
        chosen = [workers[d.worker] for d in decisions if isinstance(d, Assign) and d.spec == spec]
        assert not any(_objects(spec, worker) for worker in chosen)
        if spec.placement.apart is not None:
            there = [
                workers[r.worker]
                for r in seen.fleet.replicas.values()
                if r.job == spec.name and stays(r, spec)
            ]
            taken = {_shared(spec, worker) for worker in there}
            new = [_shared(spec, worker) for worker in chosen]
            assert len(new) == len(set(new))
            assert not taken & set(new)


@generated(histories(), st.integers(0, 200))
def test_on_a_worker_that_is_not_trusted_nothing_is_left_that_asks_for_trust(seen, seconds):
    left = obeyed(seen, place(seen, at(seconds))).fleet
    for replica in left.replicas.values():
        job_ = seen.registry.jobs.get(replica.key)
        worker = left.workers[replica.worker]
        if job_ and job_.spec.placement.trusted and worker.status == "joined":
            assert worker.trusted or replica.status == "releasing"


# -- scores


_NAMES = [f"w{n}" for n in range(6)]
_FLEETS = st.lists(
    st.tuples(_FACTS, st.sampled_from([1500, 4000]), st.sampled_from([(), (gpu(8000, 9.0),)])),
    min_size=1, max_size=5,
).map(
    lambda machines: [
        joined(name, memory_mib=memory, gpus=gpus, **facts)
        for name, (facts, memory, gpus) in zip(_NAMES, machines, strict=False)
    ]
)  # fmt: skip


def _placed(spec: JobSpec, workers: list[Event]) -> int:
    return len(place(world([created(spec)], workers), at(0)))


@generated(_SPECS, _FLEETS, _JOINS)
def test_one_worker_more_never_makes_a_job_unplaceable(spec, workers, more):
    alone = spec.model_copy(update={"assignment": "auto", "workers": ()})
    another = more.model_copy(update={"data": more.data.model_copy(update={"worker": "extra"})})
    assert _placed(alone, workers) <= _placed(alone, [*workers, another])


@generated(
    _SPECS, _FLEETS, _FACTS, st.sampled_from([("a", "b"), ("b", "a")]), st.floats(0, 5),
    st.floats(0.1, 5),
)  # fmt: skip
def test_of_two_workers_that_differ_in_price_alone_the_cheaper_ranks_higher(
    spec, workers, facts, names, price, more
):
    cheap, dear = names
    same = {**facts, "memory_mib": 4000, "gpus": (gpu(8000, 9.0),)}
    pair = [
        joined(cheap, **{**same, "price_per_hour": price}),
        joined(dear, **{**same, "price_per_hour": price + more}),
    ]
    open_ = spec.model_copy(update={"assignment": "auto", "workers": ()})
    decisions = place(world([created(open_)], [*workers, *pair]), at(0))
    if decisions:
        first = decisions[0]
        assert isinstance(first, Assign)
        assert first.worker != dear
        order = [c.worker for c in first.candidates if c.score is not None]
        if dear in order:
            assert order.index(cheap) < order.index(dear)


@generated(_SPECS, _FLEETS, st.lists(st.floats(0.01, 10), min_size=6, max_size=6))
def test_the_chosen_worker_has_the_best_score_that_is_published(spec, workers, seconds):
    heard = [
        took(name, taken, of=spec.model.ref) for name, taken in zip(_NAMES, seconds, strict=True)
    ]
    for decision in place(world([created(spec)], workers, heard), at(0)):
        assert isinstance(decision, Assign)
        scores = {c.worker: c.score for c in decision.candidates if c.score is not None}
        assert scores[decision.worker] == max(scores.values())
        assert all(0 <= score <= 1 for score in scores.values())
        assert len(decision.candidates) == len(workers)  # a small fleet is told of as a whole


@generated(histories(), st.integers(0, 200))
def test_the_order_in_which_workers_came_does_not_matter(seen, seconds):
    other = replace(
        seen,
        fleet=replace(
            seen.fleet,
            workers=dict(reversed(seen.fleet.workers.items())),
            replicas=dict(reversed(seen.fleet.replicas.items())),
        ),
    )
    one, two = place(seen, at(seconds)), place(other, at(seconds))
    assert [d for d in one if isinstance(d, Assign)] == [d for d in two if isinstance(d, Assign)]
    assert {d.replica.id for d in one if isinstance(d, Release)} == {
        d.replica.id for d in two if isinstance(d, Release)
    }
