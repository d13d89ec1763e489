"""Trials: given what people declared and what the fleet said, a new model is tried first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as generated
from hypothesis import strategies as st

import given
from given import (
    assigned,
    at,
    created,
    decide,
    deleted,
    failed,
    job,
    joined,
    left,
    lost,
    model,
    obeyed,
    ready,
    released,
    scaled,
    stopped,
    updated,
    world,
)  # fmt: skip
from given_trials import concluded, on_trial, passed, tried
from jetfleet.agreement import disagreement
from jetfleet.catalog import JobState
from jetfleet.fleet import FleetState
from jetfleet.placement_specs import PlacementSpec
from jetfleet.policies import trials
from jetfleet.policies.placement import Assign, Observation, Release, consider, place
from jetfleet.policies.placement_filters import UNTRUSTED
from jetfleet.scaling_specs import LagScaling
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet.trials import Trial
from told import Told

KEY = ("default", "echo", "echo:1")


def v(version: str, **more: Any) -> ModelSpec:
    return model(version=version, example_input={"text": "hello"}, **more)


def echo(version: str = "1", *, replicas: int = 2, **settings: Any) -> JobSpec:
    """A job on a model with an example."""
    return job("echo", replicas=replicas, of=v(version), **settings)


FLEET = (joined("good", trusted=True), joined("general"))


# -- before the fleet sees it


def test_a_new_model_is_tried_once_on_a_trusted_worker_and_nowhere_else():
    assert decide([created(echo())], FLEET) == ["try echo on good"]


def test_nothing_more_is_placed_while_it_is_tried():
    happened = (*FLEET, on_trial("r1", "good", echo()))
    assert decide([created(echo())], happened) == []


def test_what_passed_serves_where_it_is_and_the_rest_is_placed():
    happened = (*FLEET, passed("r1", "good", echo()))
    assert decide([created(echo())], happened) == ["echo on general"]


def test_what_failed_is_let_go_and_placed_nowhere():
    happened = (*FLEET, on_trial("r1", "good", echo()), tried("r1", "good", why_not="KeyError"))
    assert decide([created(echo())], happened) == ["release r1"]
    assert decide([created(echo())], (*happened, failed("r1", "good"))) == []
    seen = world([created(echo())], (*happened, failed("r1", "good")))
    said = {c.worker: c.rejected for c in consider(seen, ("default", "echo"), at(900))}
    assert set(said.values()) == {"its example input failed on good"}


def test_without_a_trusted_worker_it_waits():
    assert decide([created(echo())], (joined("general"),)) == []
    seen = world([created(echo())], (joined("general"),))
    assert [c.rejected for c in consider(seen, ("default", "echo"), at(0))] == [UNTRUSTED]


@pytest.mark.parametrize(
    "spec",
    [echo(trial=False), job("echo", replicas=2)],
    ids=["the job opts out", "the model has no example"],
)
def test_what_is_not_to_be_tried_goes_anywhere_at_once(spec):
    assert decide([created(spec)], FLEET) == ["echo on general", "echo on good"]


def test_a_job_that_wants_no_replica_tries_nothing():
    zero = echo(replicas=0).model_copy(update={"max_replicas": 2, "scaling": LagScaling()})
    assert decide([created(zero)], FLEET) == []
    assert decide([created(zero)], (*FLEET, scaled("echo", 2))) == ["try echo on good"]
    tried_for_nothing = (*FLEET, on_trial("r1", "good", zero), scaled("echo", 0))
    assert decide([created(zero)], tried_for_nothing) == ["release r1"]


def test_a_trial_is_where_the_job_may_be():
    here = echo(assignment="manual", workers=("general",))
    assert decide([created(here)], FLEET) == []
    europe = echo(placement=PlacementSpec(labels={"zone": "eu"}))
    there = joined("eu", trusted=True, labels={"zone": "eu"})
    assert decide([created(europe)], (*FLEET, there)) == ["try echo on eu"]


def test_a_worker_that_is_trusted_no_more_loses_its_trial():
    again = joined("good", session="s2", replicas=("r1",))
    happened = (*FLEET, on_trial("r1", "good", echo()), again, joined("better", trusted=True))
    assert decide([created(echo())], happened) == ["release r1", "try echo on better"]


# -- tried again


def test_a_trial_that_was_lost_is_repeated_after_a_pause():
    happened = (*FLEET, on_trial("r1", "good", echo()), lost("good"), FLEET[0])
    assert decide([created(echo())], happened, 0.5) == []
    assert decide([created(echo())], happened, 1) == ["try echo on good"]
    again = (*happened, on_trial("r2", "good", echo()), left("good"), FLEET[0])
    assert decide([created(echo())], again, 1) == []
    assert decide([created(echo())], again, 2) == ["try echo on good"]


def test_a_model_that_does_not_start_is_tried_again_and_goes_nowhere_else():
    happened = (*FLEET, on_trial("r1", "good", echo()), failed("r1", "good", seconds=10))
    assert decide([created(echo())], happened, 10.5) == []
    assert decide([created(echo())], happened, 11) == ["try echo on good"]


def test_a_job_made_anew_is_tried_anew():
    happened = (*FLEET, on_trial("r1", "good", echo()), tried("r1", "good", why_not="KeyError"))
    gone = (*happened, failed("r1", "good"))
    declared = [created(echo()), deleted("echo"), created(echo())]
    later = [given.registered(v(str(n))) for n in range(20)]  # the trial was of event 9
    assert decide([*later, *declared], gone, 5) == ["try echo on good"]


# -- whose word counts


def fold(*happened: Any) -> FleetState:
    return given.fleet(*happened)


def test_the_word_of_a_worker_that_is_not_trusted_is_not_obeyed():
    stray = assigned("r1", "general", echo(), trial=True, registry_seq=9)
    for said in (tried("r1", "general"), tried("r1", "general", why_not="no")):
        assert fold(*FLEET, stray, said).trials == {}


def test_a_replica_that_was_not_assigned_as_a_trial_says_nothing_of_it():
    asked = assigned("r1", "good", echo(), registry_seq=9)
    assert fold(*FLEET, asked, tried("r1", "good", why_not="no")).trials == {}


def test_nobody_speaks_for_the_replica_of_another():
    state = fold(*FLEET, on_trial("r1", "good", echo()), tried("r1", "general"))
    assert state.trials == {}
    assert fold(*FLEET, tried("r9", "good")).trials == {}


def test_the_first_answer_counts():
    state = fold(
        *FLEET, on_trial("r1", "good", echo()), tried("r1", "good", why_not="KeyError"),
        tried("r1", "good"),
    )  # fmt: skip
    assert state.trials[KEY] == Trial("failed", "KeyError", "good", "r1", 9)


def test_what_ended_is_told_once():
    happened = (*FLEET, on_trial("r1", "good", echo()), tried("r1", "good", why_not="KeyError"))
    seen = world([created(echo())], happened)
    [ended] = trials.conclusions(seen.registry, seen.fleet)
    assert (ended.key, ended.trial.reason, ended.keeps) == (KEY, "KeyError", "")
    told = fold(*happened, concluded("echo", "echo:1", "failed"))
    assert not list(trials.conclusions(seen.registry, told))
    assert told.trials == seen.fleet.trials


def test_the_conductor_tells_below_its_own_subject():
    event = concluded("echo", "echo:1")
    assert disagreement("FLEET", "jf.ctl.tried.default.echo", event) == ""
    assert disagreement("FLEET", "jf.fleet.general.tried", event)
    assert disagreement("FLEET", "jf.fleet.w1.tried", tried("r1", "w1")) == ""


# -- a new version of a job that serves

OLD, NEW = echo("1"), echo("2")
SERVES = (
    *FLEET, passed("r1", "good", OLD), assigned("r2", "general", OLD, registry_seq=9),
    ready("r2", "general"),
)  # fmt: skip


def test_the_older_version_serves_until_the_newer_has_passed():
    declared = [created(OLD), updated(NEW)]
    assert decide(declared, SERVES) == ["try echo on good"]
    tries = (*SERVES, on_trial("r3", "good", NEW))
    assert decide(declared, tries) == []
    through = (*tries, tried("r3", "good"), ready("r3", "good"))
    assert decide(declared, through) == ["echo on general"]
    rolled = (*through, assigned("r4", "general", NEW, registry_seq=9), ready("r4", "general"))
    assert decide(declared, rolled) == ["release r1", "release r2"]


def test_the_older_version_serves_on_when_the_newer_fails():
    declared = [created(OLD), updated(NEW)]
    no = (*SERVES, on_trial("r3", "good", NEW), tried("r3", "good", why_not="KeyError"))
    gone = (*no, failed("r3", "good"))
    assert decide(declared, gone) == []
    seen = world(declared, gone)
    keeps = {each.key[2]: each.keeps for each in trials.conclusions(seen.registry, seen.fleet)}
    assert keeps == {"echo:1": "", "echo:2": "echo:1"}


def test_the_older_version_is_placed_again_where_a_worker_was_lost():
    declared = [created(OLD), updated(NEW)]
    no = (*SERVES, on_trial("r3", "good", NEW), tried("r3", "good", why_not="KeyError"))
    happened = (*no, failed("r3", "good"), lost("general"), joined("other"))
    seen = world(declared, happened)
    [assign] = place(seen, at(60))
    assert isinstance(assign, Assign)
    assert (assign.worker, assign.spec.model.ref, assign.trial) == ("other", "echo:1", False)


def test_a_version_that_is_wanted_no_more_is_not_tried_on():
    third = echo("3")
    declared = [created(OLD), updated(NEW), updated(third)]
    happened = (*SERVES, on_trial("r3", "good", NEW))
    assert decide(declared, happened) == ["release r3", "try echo on good"]


def test_where_only_the_older_version_is_in_the_way_one_of_it_makes_room_once():
    small = job("echo", replicas=1, of=v("1", memory_mib=3000))
    big = job("echo", replicas=1, of=v("2", memory_mib=3000))
    declared = [created(small), updated(big)]
    full = (joined("good", trusted=True), passed("r1", "good", small))
    assert decide(declared, full) == ["release r1"]
    assert decide(declared, (*full, released("r1", "good"))) == []
    empty = (*full, released("r1", "good"), stopped("r1", "good"))
    assert decide(declared, empty) == ["try echo on good"]
    # It does not start: the older one comes back, and stays.
    back = (*empty, on_trial("r2", "good", big), failed("r2", "good"))
    assert decide(declared, back, 0.5) == ["echo on good"]
    served = (*back, assigned("r3", "good", small, registry_seq=9), ready("r3", "good"))
    assert decide(declared, served, 60) == []


def test_a_model_that_serves_already_is_not_tried_afterwards():
    """As those that were placed before there were trials, or while the job opted out."""
    open_to_all = echo(trial=False)
    happened = (*FLEET, assigned("r1", "general", open_to_all, registry_seq=9))
    assert decide([created(open_to_all), updated(echo())], happened) == ["echo on good"]


def test_opting_out_after_a_failure_lets_it_through():
    happened = (
        *FLEET, on_trial("r1", "good", echo()), tried("r1", "good", why_not="no"),
        failed("r1", "good"),
    )  # fmt: skip
    declared = [created(echo()), updated(echo(trial=False))]
    assert decide(declared, happened) == ["echo on general", "echo on good"]


# -- the cause is told


def told(*happened: Any, version: str = "1") -> Told:
    return Told().then(0, created(echo(version)), *happened).queued(1)


def test_an_invocation_is_told_that_no_trusted_worker_is_there():
    cause = told(joined("general")).why_invocation(4).cause
    assert cause.code == "no_trusted_worker"
    assert cause.text == (
        "no trusted worker is at work to try echo:1 first: start one with"
        " `jetfleet agent --trusted`, or set trial: false on the job"
    )
    assert cause.details == (f"general: {UNTRUSTED}",)


def test_an_invocation_is_told_why_the_trial_failed():
    story = told(
        *FLEET, on_trial("r1", "good", echo()), tried("r1", "good", why_not="KeyError: text"),
        failed("r1", "good"),
    )  # fmt: skip
    cause = story.why_invocation(4).cause
    assert cause.code == "trial_failed"
    assert "echo:1 failed its trial on good: KeyError: text; register a new version" in cause.text
    assert story.why_job(4).cause.code == "trial_failed"
    lines = [entry.text for entry in story.why_job(4).timeline]
    assert "the example input of echo on good failed: KeyError: text" in lines


def test_a_job_is_told_what_serves_on():
    story = told(*SERVES).then(
        2, updated(NEW), on_trial("r3", "good", NEW), tried("r3", "good", why_not="KeyError"),
        failed("r3", "good"),
    )  # fmt: skip
    found = story.why_job(9).cause
    assert found.code == "idle"
    assert any("echo:2 failed its trial" in d and "echo:1 serves on" in d for d in found.details)


# -- over any history

VERSIONS = ("1", "2", "3")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("declare"), st.sampled_from(VERSIONS), st.integers(0, 3)),
        st.tuples(st.sampled_from(["pass", "fail", "break", "ready"]), st.integers(0, 9)),
        st.tuples(st.sampled_from(["lose", "come"]), st.sampled_from("abcd")),
        st.just(("delete",)),
    ),
    max_size=25,
)
TRUSTED = {"a", "b"}  # and c, d are general


@generated(STEPS)
def test_no_general_worker_ever_gets_a_model_whose_example_has_not_passed(steps):
    seen = Observation(
        given.registry(created(echo())),
        fold(*(joined(w, trusted=w in TRUSTED, memory_mib=1300) for w in "abcd")),
    )
    for seconds, step in enumerate(steps):
        seen = _after(seen, step)
        decisions = place(seen, at(seconds * 10))
        for decision in decisions:
            if isinstance(decision, Release):
                continue
            ref, worker = decision.spec.model.ref, seen.fleet.workers[decision.worker]
            verified = _state(seen, ref) == "verified"
            assert verified or (decision.trial and worker.trusted)
            assert _state(seen, ref) != "failed"
        seen = obeyed(seen, decisions, seconds * 10)
        on_trial_now = [r for r in seen.fleet.replicas.values() if _tries(seen, r)]
        assert len(on_trial_now) <= 1
        assert not [d for d in place(seen, at(seconds * 10)) if isinstance(d, Assign)]


def _state(seen: Observation, ref: str) -> str:
    state: JobState | None = seen.registry.jobs.get(("default", "echo"))
    if state is None:
        return "no job"
    spec = state.spec.model_copy(update={"model": v(ref.partition(":")[2])})
    as_if = JobState("default", spec, True, state.created_seq, 0, state.created_at)
    return trials.standing(seen.fleet, as_if).status


def _tries(seen: Observation, replica: Any) -> bool:
    """Whether it is a trial of the job's present model, and goes on."""
    state = seen.registry.jobs.get(("default", "echo"))
    model_now = None if state is None else state.spec.model.ref
    there = replica.status in ("assigned", "preparing") and replica.trial
    return there and replica.spec.model.ref == model_now and _state(seen, model_now) != "verified"


def _after(seen: Observation, step: Any) -> Observation:
    kind, *what = step
    registry, state = seen.registry, seen.fleet
    present = ("default", "echo") in registry.jobs
    if kind == "declare":
        spec = echo(what[0], replicas=what[1])
        registry = given.registry(updated(spec) if present else created(spec), onto=registry)
    elif kind == "delete" and present:
        registry = given.registry(deleted("echo"), onto=registry)
    elif kind == "lose":
        state = given.fleet(lost(what[0]), onto=state)
    elif kind == "come":
        again = joined(what[0], trusted=what[0] in TRUSTED, memory_mib=1300)
        state = given.fleet(again, onto=state)
    elif kind in ("pass", "fail", "break", "ready") and state.replicas:
        replica = sorted(state.replicas.values(), key=lambda r: r.id)[what[0] % len(state.replicas)]
        who = (replica.id, replica.worker)
        said = {
            "pass": [tried(*who), ready(*who)], "fail": [tried(*who, why_not="no"), failed(*who)],
            "break": [failed(*who)], "ready": [ready(*who)],
        }[kind]  # fmt: skip
        state = given.fleet(*said, onto=state)
    return Observation(registry, state)
