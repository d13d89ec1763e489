"""The speed table: what heartbeats told, combined."""

from __future__ import annotations

import pytest

from given import envelope
from jetfleet import speeds
from jetfleet.events import JobLoad, WorkerHeartbeat
from jetfleet.speeds import Speeds, evolve_speeds
from jetfleet_projections.observing import services_of


def load(
    model: str = "echo:1", gpu: str = "", service_s: float | None = 1.0, runs: int = 1, **more: str
) -> JobLoad:
    return JobLoad(
        job=more.get("job", "echo"), tenant=more.get("tenant", "default"), replicas_ready=1,
        slots=1, running=0, finished=runs, busy_s=1, model=model, gpu=gpu, service_s=service_s,
    )  # fmt: skip


def after(*beats: tuple[str, list[JobLoad]]) -> Speeds:
    state = Speeds()
    for worker, jobs in beats:
        data = WorkerHeartbeat.Data(worker=worker, session="s1", jobs=tuple(jobs))
        state = evolve_speeds(state, WorkerHeartbeat(**envelope(), data=data))
    return state


def mean_s(
    told: Speeds, gpu: str = "", model: str = "echo:1", tenant: str = "default"
) -> float | None:
    """Of a run of a model on a type of GPU, as scaling sees it."""
    service = services_of(told.by_model().get((tenant, model), {})).get(gpu)
    return None if service is None else service.mean_s


def test_what_no_one_told_is_not_known():
    assert mean_s(Speeds()) is None
    told = after(("w1", [load(service_s=None, runs=0)]))
    assert told == Speeds()


def test_the_last_word_of_a_worker_counts():
    told = after(("w1", [load(service_s=1.0)]), ("w1", [load(service_s=0.5, runs=2)]))
    assert mean_s(told) == 0.5


def test_workers_are_combined_by_how_many_runs_each_stands_for():
    told = after(("w1", [load(service_s=1.0, runs=30)]), ("w2", [load(service_s=2.0, runs=10)]))
    assert mean_s(told) == pytest.approx(1.25)


def test_two_jobs_of_one_model_on_one_worker_are_combined():
    jobs = [load(service_s=1.0, runs=3), load(service_s=3.0, runs=1, job="other")]
    assert mean_s(after(("w1", jobs))) == pytest.approx(1.5)


def test_numbers_that_cannot_be_are_taken_for_the_most_there_may_be():
    told = after(("w1", [load(service_s=1e308, runs=10**400)]), ("w2", [load(service_s=1.0)]))
    assert told.of_worker("w1", "default", "echo:1") == (speeds.LONGEST_S, speeds.MOST_RUNS)
    assert mean_s(told) <= speeds.LONGEST_S


def test_types_of_gpu_models_and_tenants_are_kept_apart():
    told = after(
        ("w1", [load(gpu="H100", service_s=1.0)]),
        ("w2", [load(gpu="T4", service_s=9.0)]),
        ("w3", [load(tenant="acme", gpu="T4", service_s=5.0)]),
    )
    assert mean_s(told, "H100") == 1.0
    assert mean_s(told, "T4") == 9.0
    assert mean_s(told, "T4", tenant="acme") == 5.0
    assert mean_s(told, "T4", "echo:2") is None
    assert told.by_model().keys() == {("default", "echo:1"), ("acme", "echo:1")}


def test_what_a_worker_told_of_a_job_that_it_serves_no_more_is_kept():
    told = after(("w1", [load(service_s=2.0)]), ("w1", [load("other:1")]), ("w1", []))
    assert mean_s(told) == 2.0


def test_the_table_is_bounded_by_forgetting_who_told_nothing_for_longest(monkeypatch):
    monkeypatch.setattr(speeds, "MOST_WORKERS", 2)
    told = after(("w1", [load()]), ("w2", [load()]), ("w1", [load()]), ("w3", [load()]))
    assert set(told.workers) == {"w1", "w3"}


def test_what_a_worker_may_claim_is_bounded_too(monkeypatch):
    monkeypatch.setattr(speeds, "MOST_KINDS", 2)
    told = after(("w1", [load("a:1"), load("b:1")]), ("w1", [load("a:1")]), ("w1", [load("c:1")]))
    assert [model for _, model, _ in told.workers["w1"]] == ["a:1", "c:1"]
    told = after(("w1", [load("a:1"), load("b:1"), load("c:1")]))
    assert len(told.workers["w1"]) == 2


def test_folding_changes_no_state_that_was_there():
    before = after(("w1", [load(service_s=1.0)]))
    after_more = evolve_speeds(
        before,
        WorkerHeartbeat(
            **envelope(),
            data=WorkerHeartbeat.Data(
                worker="w1", session="s1", jobs=(load(service_s=3.0, runs=2),)
            ),
        ),
    )
    assert mean_s(before) == 1.0
    assert mean_s(after_more) == 3.0


def test_a_worker_is_asked_for_its_own_speed_on_whatever_gpus():
    told = after(
        ("w1", [load(gpu="H100", service_s=1.0, runs=3), load(gpu="T4", service_s=5.0, runs=1)]),
        ("w2", [load(service_s=9.0)]),
    )
    assert told.of_worker("w1", "default", "echo:1") == (2.0, 4)
    assert told.of_worker("w1", "acme", "echo:1") == (None, 0)
    assert told.of_worker("w3", "default", "echo:1") == (None, 0)
