"""Capacity: what holds whatever is missing, offered and on its way (hypothesis)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import product

from hypothesis import given as generated
from hypothesis import settings
from hypothesis import strategies as st

from capacity_made import GIB, happened, lacks, offered, requested, said
from given import assigned, at, job, joined, lost
from jetfleet.events import CapacityAccepted, CapacityRefused, Event, WorkerShape
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies import placement
from jetfleet.policies.capacity import (
    ANSWER_S,
    Ask,
    CapacityObservation,
    Ceilings,
    decide,
)
from jetfleet.policies.capacity_fit import Missing, pack

ANSWERED = timedelta(seconds=ANSWER_S)


@st.composite
def shapes(draw) -> WorkerShape:
    gpus = draw(st.integers(0, 3))
    return WorkerShape(
        memory_mib=draw(st.integers(1 * GIB, 16 * GIB)),
        gpus=gpus,
        gpu_memory_mib=draw(st.integers(1, 20)) if gpus else 0,
        owner=draw(st.sampled_from(["", "ada"])),
        trusted=draw(st.booleans()),
        price_per_hour=draw(st.sampled_from([0.0, 0.1, 1.5, 7.0])),
    )


JOBS = [
    lacks(
        f"j{n}", 1, memory_mib, gpu_memory_mib=gpu_mib,
        placement=PlacementSpec(apart=apart, trusted=trusted),
    )
    for n, (memory_mib, gpu_mib, apart, trusted) in enumerate(
        product((64, 700, 3000, 5 * GIB), (0, 1, 9), (None, "workers", "owners"), (False, True))
    )
]  # fmt: skip


@st.composite
def lacking(draw) -> tuple[Missing, ...]:
    tenants = st.sampled_from(["acme", "rival"])
    return tuple(
        replace(each, tenant=draw(tenants), replicas=draw(st.integers(1, 6)))
        for each in draw(st.lists(st.sampled_from(JOBS), max_size=6, unique_by=lambda m: m.key))
    )


@st.composite
def observations(draw) -> CapacityObservation:
    events: list[Event | tuple[float, Event]] = []
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=4)):
        shape = draw(shapes())
        events.append(offered(name, shape, draw(st.integers(0, 8))))
        for n in range(draw(st.integers(0, 3))):
            worker = f"{name}-{n}"
            events.append(requested(worker, provider=name, shape=shape))
            events += draw(
                st.sampled_from(
                    [
                        [],
                        [said(CapacityAccepted, worker, provider=name)],
                        [said(CapacityRefused, worker, provider=name, reason="no")],
                        [joined(worker)],
                        [joined(worker), assigned(f"r{worker}", worker, job())],
                        [joined(worker), lost(worker)],
                    ]
                )
            )
    ceilings = Ceilings(
        draw(st.none() | st.integers(0, 9)),
        draw(st.none() | st.floats(0, 20)),
        draw(st.none() | st.integers(0, 5)),
        draw(st.none() | st.floats(0, 10)),
    )
    now = at(draw(st.sampled_from([0, 1, 20, 40, 99, 101, 300])))
    return CapacityObservation(now, draw(lacking()), happened(*events), ceilings)


def totals(seen: CapacityObservation) -> dict[tuple[str, str], tuple[int, float]]:
    """Workers and money by ceiling, with all that is asked for now."""
    found: dict[tuple[str, str], tuple[int, float]] = {}

    def add(key: tuple[str, str], count: int, price: float) -> None:
        n, money = found.get(key, (0, 0.0))
        found[key] = (n + count, money + count * price)

    for worker in seen.capacity.workers.values():
        if worker.status != "asked" or seen.now < worker.expires_at:
            for key in (("all", ""), ("tenant", worker.tenant), ("offer", worker.provider)):
                add(key, 1, worker.shape.price_per_hour)
    for each in decide(seen):
        if isinstance(each, Ask):
            price, provider = each.offer.shape.price_per_hour, each.offer.provider
            for key in (("all", ""), ("tenant", each.tenant), ("offer", provider)):
                add(key, each.count, price)
    return found


@settings(max_examples=100, deadline=None)
@generated(observations())
def test_never_above_a_ceiling(seen):
    before = totals(replace(seen, missing=()))  # what is there may be above a ceiling set later
    limits = seen.ceilings
    for key, (count, money) in totals(seen).items():
        had, paid = before.get(key, (0, 0.0))
        kind, name = key
        if kind == "offer":
            assert count == had or count <= seen.capacity.offers[name].most
            continue
        most = limits.workers if kind == "all" else limits.tenant_workers
        dearest = limits.per_hour if kind == "all" else limits.tenant_per_hour
        assert most is None or count == had or count <= most
        assert dearest is None or money == paid or money <= dearest + 1e-6


@settings(max_examples=100, deadline=None)
@generated(observations())
def test_the_same_observation_gives_the_same_decision_and_each_has_a_reason(seen):
    first = decide(seen)
    assert first == decide(seen)
    assert all(each.reason for each in first)


def asked(seen: CapacityObservation) -> int:
    return sum(each.count for each in decide(seen) if isinstance(each, Ask))


@settings(max_examples=100, deadline=None)
@generated(observations(), st.data())
def test_where_more_is_missing_never_fewer_workers_are_asked_for(seen, data):
    seen = replace(seen, ceilings=Ceilings(workers=seen.ceilings.workers))
    if not seen.missing:
        return
    n = data.draw(st.integers(0, len(seen.missing) - 1))
    more = [*seen.missing]
    more[n] = replace(more[n], replicas=more[n].replicas + data.draw(st.integers(1, 3)))
    assert asked(replace(seen, missing=tuple(more))) >= asked(seen)
    fewer = replace(seen, missing=seen.missing[:n] + seen.missing[n + 1 :])
    assert asked(fewer) <= asked(seen)


@settings(max_examples=100, deadline=None)
@generated(observations())
def test_no_more_than_what_is_missing_with_those_on_their_way(seen):
    for each in decide(seen):
        if isinstance(each, Ask):
            assert each.count <= sum(m.replicas for m in each.needs)
            coming = [
                w for w in seen.capacity.of(each.offer.provider)
                if w.coming and w.tenant == each.tenant and seen.now < w.expires_at
                and not (w.status == "asked" and seen.now - w.asked_at >= ANSWERED)
            ]  # fmt: skip
            assert each.count + len(coming) <= sum(m.replicas for m in each.needs)


@settings(max_examples=100, deadline=None)
@generated(shapes(), lacking(), st.integers(0, 20))
def test_packing_loses_no_replica_and_stays_within_its_workers(shape, missing, most):
    fit = [m for m in missing if _fits(shape, m)]
    count, beyond = pack(shape, fit, most)
    assert count <= most
    assert all(0 < rest.replicas <= m.replicas for m in fit if (rest := beyond.get(m.key)))
    everything, left_over = pack(shape, fit, 10_000)
    assert all(m.spec.placement.apart == "owners" for m in left_over.values())
    assert count == min(most, everything) or set(beyond) == set(left_over)


def _fits(shape: WorkerShape, missing: Missing) -> bool:
    need = missing.spec.model.resources
    return (
        need.memory_mib <= shape.memory_mib - placement.RESERVED_MIB
        and need.gpu_memory_mib <= shape.gpu_memory_mib
    )
