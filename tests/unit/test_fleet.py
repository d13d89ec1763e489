"""Folds: given these events, then this is the state; what a stale or lying worker says is not."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as generated
from hypothesis import strategies as st

from given import (
    EPOCH,
    assigned,
    at,
    created,
    deleted,
    disabled,
    draining,
    enabled,
    failed,
    fleet,
    job,
    joined,
    left,
    lost,
    model,
    preparing,
    queued,
    ready,
    registered,
    registry,
    released,
    scaled,
    serving,
    stopped,
    updated,
)
from jetfleet.catalog import evolve_registry
from jetfleet.fleet import FAILURES_KEPT, evolve_fleet
from made_events import events

ECHO = job("echo")
KEY = ("default", "echo")


def statuses(*happened):
    """Replica id to status, after these events."""
    return {r.id: r.status for r in fleet(*happened).replicas.values()}


# -- registry


def test_the_version_registered_last_is_the_newest():
    state = registry(registered(model(version="2")), registered(model(version="10")))
    assert state.model("default", "echo").version == "10"
    assert state.model("default", "echo", "2").version == "2"
    assert state.model("default", "echo", "3") is None
    assert state.model("other", "echo") is None


def test_a_version_registered_again_differently_keeps_its_first_meaning():
    first = model(memory_mib=100)
    state = registry(registered(first), registered(model(memory_mib=200)))
    assert state.model("default", "echo") == first


def test_a_job_is_created_enabled_and_remembers_where_in_the_log():
    state = registry(registered(model()), created(ECHO))
    found = state.jobs[KEY]
    assert (found.spec, found.enabled, found.created_seq, found.updated_seq) == (ECHO, True, 2, 2)
    assert found.created_at == EPOCH


def test_a_job_created_twice_keeps_its_first_spec():
    assert registry(created(ECHO), created(job("echo", replicas=5))).jobs[KEY].spec == ECHO


def test_an_update_replaces_the_spec_and_keeps_the_rest():
    changed = job("echo", replicas=3)
    found = registry(created(ECHO), disabled("echo"), updated(changed)).jobs[KEY]
    assert (found.spec, found.enabled, found.created_seq, found.updated_seq) == (
        changed, False, 1, 3,
    )  # fmt: skip


def test_a_job_disabled_and_enabled_accepts_again():
    assert not registry(created(ECHO), disabled("echo")).jobs[KEY].enabled
    assert registry(created(ECHO), disabled("echo"), enabled("echo")).jobs[KEY].enabled


@pytest.mark.parametrize(
    "event", [updated(ECHO), enabled("echo"), disabled("echo"), deleted("echo")]
)
def test_what_is_said_of_a_job_that_is_not_there_changes_nothing(event):
    assert registry(event).jobs == {}
    assert registry(created(ECHO), deleted("echo"), event).jobs == {}


def test_a_job_deleted_and_created_again_is_a_new_job():
    found = registry(created(ECHO), disabled("echo"), deleted("echo"), created(ECHO)).jobs[KEY]
    assert (found.enabled, found.created_seq) == (True, 4)


def test_jobs_of_one_tenant_are_not_touched_by_another():
    state = registry(created(ECHO), created(ECHO, tenant="rival"), deleted("echo"))
    assert list(state.jobs) == [("rival", "echo")]


def test_a_models_default_job_has_its_name_or_else_is_its_first():
    other = job("zeta")
    state = registry(created(other), created(job("alpha")))
    assert state.default_job("default", "echo").spec.name == "zeta"
    state = registry(created(ECHO), onto=state)
    assert state.default_job("default", "echo").spec.name == "echo"
    assert state.default_job("default", "nothing") is None


def test_a_job_that_only_has_the_name_of_a_model_is_not_its_default():
    state = registry(created(job("echo", of=model("vision"))))
    assert state.default_job("default", "echo") is None
    assert state.default_job("default", "vision").spec.name == "echo"


# -- workers


def test_a_worker_joins_drains_and_leaves():
    assert fleet(joined("w1")).workers["w1"].status == "joined"
    assert fleet(joined("w1"), draining("w1")).workers["w1"].status == "draining"
    assert fleet(joined("w1"), draining("w1"), left("w1")).workers["w1"].status == "left"
    assert fleet(joined("w1"), lost("w1")).workers["w1"].status == "lost"


@pytest.mark.parametrize("gone", [left, lost])
def test_replicas_go_with_their_worker(gone):
    happened = [joined("w1"), joined("w2"), serving("r1", "w1", ECHO), serving("r2", "w2", ECHO)]
    assert statuses(*happened, gone("w1")) == {"r2": "ready"}


def test_replicas_of_a_draining_worker_stay_until_it_has_left():
    happened = [joined("w1"), serving("r1", "w1", ECHO), draining("w1")]
    assert statuses(*happened) == {"r1": "ready"}
    assert statuses(*happened, left("w1")) == {}


@pytest.mark.parametrize("said", [draining, left, lost])
def test_what_is_said_of_an_earlier_session_changes_nothing(said):
    happened = [joined("w1"), joined("w1", session="s2"), serving("r1", "w1", ECHO)]
    state = fleet(*happened, said("w1", "s1"))
    assert state.workers["w1"].status == "joined"
    assert set(state.replicas) == {"r1"}


@pytest.mark.parametrize("said", [draining, left, lost])
def test_what_is_said_of_an_unknown_worker_changes_nothing(said):
    assert fleet(said("w1")).workers == {}


def test_a_worker_that_joins_again_has_only_the_replicas_that_it_names():
    happened = [joined("w1"), serving("r1", "w1", ECHO), serving("r2", "w1", ECHO)]
    assert statuses(*happened, joined("w1", session="s2")) == {}
    assert statuses(*happened, joined("w1", session="s2", replicas=("r2",))) == {"r2": "ready"}


def test_a_worker_cannot_claim_the_replicas_of_others_by_joining():
    happened = [joined("w1"), joined("w2"), serving("r1", "w1", ECHO)]
    state = fleet(*happened, joined("w2", session="s2", replicas=("r1", "unheard-of")))
    assert {r.id: r.worker for r in state.replicas.values()} == {"r1": "w1"}


# -- replicas


def test_a_replica_is_assigned_prepared_and_ready():
    happened = [joined("w1"), assigned("r1", "w1", ECHO, seconds=5)]
    assert statuses(*happened) == {"r1": "assigned"}
    assert statuses(*happened, preparing("r1", "w1")) == {"r1": "preparing"}
    found = fleet(*happened, ready("r1", "w1", seconds=9)).replicas["r1"]
    assert (found.status, found.assigned_at, found.ready_at) == ("ready", at(5), at(9))
    assert (found.spec, found.key, found.assigned_seq) == (ECHO, KEY, 2)


def test_a_released_replica_does_not_come_back():
    happened = [joined("w1"), assigned("r1", "w1", ECHO), released("r1", "w1")]
    assert statuses(*happened) == {"r1": "releasing"}
    assert statuses(*happened, preparing("r1", "w1"), ready("r1", "w1")) == {"r1": "releasing"}
    assert statuses(*happened, ready("r1", "w1"), stopped("r1", "w1")) == {}


@pytest.mark.parametrize("said", [preparing, ready, failed, stopped])
def test_a_worker_cannot_speak_for_the_replica_of_another(said):
    happened = [joined("w1"), joined("w2"), assigned("r1", "w1", ECHO)]
    state = fleet(*happened, said("r1", "w2"))
    assert {r.id: r.status for r in state.replicas.values()} == {"r1": "assigned"}
    assert state.failures == {}


@pytest.mark.parametrize("said", [preparing, ready, failed, stopped, released])
def test_what_is_said_of_an_unknown_replica_changes_nothing(said):
    state = fleet(joined("w1"), said("r1", "w1"))
    assert (state.replicas, state.failures) == ({}, {})


def test_failures_are_kept_for_their_job_and_worker_and_only_the_last_few():
    happened = [joined("w1"), assigned("other", "w1", job("other")), failed("other", "w1", "other")]
    for n in range(FAILURES_KEPT + 3):
        happened += [assigned(f"r{n}", "w1", ECHO), failed(f"r{n}", "w1", seconds=n)]
    times = fleet(*happened).failures[KEY, "w1"]
    assert len(times) == FAILURES_KEPT
    assert times[-1] == at(FAILURES_KEPT + 2)
    assert len(fleet(*happened).failures[("default", "other"), "w1"]) == 1


def test_a_failure_counts_for_the_job_of_the_replica_whatever_its_worker_says():
    happened = [joined("w1"), assigned("r1", "w1", ECHO), failed("r1", "w1", "other")]
    assert set(fleet(*happened).failures) == {(KEY, "w1")}


def test_failures_are_cleared_when_the_job_becomes_ready_there():
    happened = [
        joined("w1"),
        joined("w2"),
        assigned("r1", "w1", ECHO),
        failed("r1", "w1"),
        assigned("r2", "w2", ECHO),
        failed("r2", "w2"),
        serving("r3", "w1", ECHO),
    ]
    assert set(fleet(*happened).failures) == {(KEY, "w2")}


def test_a_ready_that_does_not_count_clears_no_failures():
    happened = [joined("w1"), assigned("r1", "w1", ECHO), failed("r1", "w1"), ready("r1", "w1")]
    assert set(fleet(*happened).failures) == {(KEY, "w1")}


# -- positions


def test_the_state_knows_its_position_and_that_of_the_last_decision():
    state = fleet(joined("w1"), assigned("r1", "w1", ECHO), ready("r1", "w1"))
    assert (state.seq, state.control_seq) == (3, 2)
    assert fleet(released("r1", "w1"), onto=state).control_seq == 4
    assert registry(created(ECHO), enabled("echo")).seq == 2


def test_a_job_has_the_number_that_was_decided_last():
    (declared,) = registry(created(ECHO)).jobs.values()
    assert fleet(joined("w1")).desired(declared) is None
    state = fleet(scaled("echo", 2), scaled("echo", 3))
    assert state.desired(declared) == 3
    assert state.control_seq == 2


def test_a_job_made_anew_has_no_number_of_the_one_that_was_deleted():
    state = registry(created(ECHO), deleted("echo"), created(ECHO))
    (again,) = state.jobs.values()
    assert fleet(scaled("echo", 3, registry_seq=2)).desired(again) is None
    assert fleet(scaled("echo", 3, registry_seq=3)).desired(again) == 3


def test_events_of_other_kinds_only_move_the_position():
    state = fleet(joined("w1"))
    after = evolve_fleet(state, queued("i1"), 7)
    assert (after.workers, after.seq, after.control_seq) == (state.workers, 7, 0)
    assert evolve_registry(registry(), queued("i1"), 7).jobs == {}


def test_a_fold_leaves_the_state_before_it_as_it_was():
    before = fleet(joined("w1"), assigned("r1", "w1", ECHO))
    fleet(failed("r1", "w1"), left("w1"), onto=before)
    assert before.replicas["r1"].status == "assigned"
    assert before.workers["w1"].status == "joined"


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@generated(st.lists(events(), max_size=8))
def test_any_history_folds_and_its_parts_fold_to_the_same(history):
    middle = len(history) // 2
    assert fleet(*history) == fleet(*history[middle:], onto=fleet(*history[:middle]))
    assert registry(*history) == registry(*history[middle:], onto=registry(*history[:middle]))
    state = fleet(*history)
    assert all(r.id == name for name, r in state.replicas.items())
