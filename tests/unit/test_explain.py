"""Explanations: given what the log, the queue and heartbeats tell, then this is the cause."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import given
import jetfleet
from given import (
    assigned,
    created,
    deleted,
    failed,
    gpu,
    job,
    joined,
    left,
    lost,
    model,
    ready,
    scaled,
    serving,
    started,
    stopped,
)  # fmt: skip
from jetfleet.cause_codes import CODES
from jetfleet.causes import NOTHING_TO_PULL, READY
from jetfleet.commands.explain import lines
from jetfleet.events import ReplicaFailed, ReplicaPreparing
from jetfleet.explain import SHOWN, document
from jetfleet.scaling_specs import LagScaling
from told import ID, Told, beats, queue

ECHO = job("echo")
ZERO = job("echo", replicas=0).model_copy(update={"max_replicas": 2, "scaling": LagScaling()})


def preparing(replica: str, worker: str, stage: str) -> ReplicaPreparing:
    event = given.preparing(replica, worker)
    return event.model_copy(update={"data": event.data.model_copy(update={"stage": stage})})


def failing(replica: str, worker: str, reason: str, seconds: float) -> ReplicaFailed:
    event = failed(replica, worker, seconds=seconds)
    return event.model_copy(update={"data": event.data.model_copy(update={"reason": reason})})


# -- the ten situations: what a queued invocation waits for


def test_no_worker_has_joined():
    found = Told().then(0, created(ECHO)).queued(1).why_invocation(4)
    assert found.cause.code == "no_worker"
    assert found.cause.text == "no worker has joined; `jetfleet agent` starts one"
    assert [(w.code, w.length.total_seconds()) for w in found.waits] == [("no_worker", 3)]


def test_workers_that_went_are_named():
    told = Told().then(0, created(ECHO), joined("w1"), joined("w2")).queued(1)
    found = told.then(2, left("w1"), lost("w2")).why_invocation(10)
    assert found.cause.code == "no_worker"
    assert found.cause.text.startswith("no worker is at work")
    assert found.cause.details == (
        "w1: left, 8.0 s ago", "w2: was lost, silent for 9.0 s, 8.0 s ago",
    )  # fmt: skip


def test_no_worker_fits_and_each_says_why():
    big = job("echo", of=model(memory_mib=9000, gpu_memory_mib=40_000))
    told = Told().then(
        0, created(big), joined("w1"), joined("w2", memory_mib=64_000),
        joined("w3", memory_mib=64_000, gpus=(gpu(24_000),)),
    ).queued(1)  # fmt: skip
    cause = told.why_invocation(4).cause
    assert cause.code == "no_fit"
    assert cause.text == (
        "none of 3 workers can take it; its model needs memory_mib 9000, gpu_memory_mib 40000"
    )
    assert cause.details[0] == "w1: 3584 MiB free, 9000 needed"
    assert all("no GPU with 40000 MiB free" in line for line in cause.details[1:])


def test_a_worker_is_full_with_what_it_runs():
    other = job("other", memory_mib=3000)
    told = Told().then(0, created(other), created(job("echo", memory_mib=1000)), joined("w1"))
    told.then(0, serving("r1", "w1", other)).queued(1)
    cause = told.why_invocation(4).cause
    assert cause.code == "no_fit"
    assert cause.details == ("w1: 584 MiB free, 1000 needed",)


def test_the_workers_it_is_assigned_to_are_not_there():
    spec = job("echo", assignment="manual", workers=("w7", "w8"))
    told = Told().then(0, created(spec), joined("w1"), joined("w7")).then(3, left("w7")).queued(4)
    cause = told.why_invocation(8).cause
    assert cause.code == "workers_away"
    assert "w7 (left, 5.0 s ago), w8 (never joined)" in cause.text


def test_of_a_manual_job_only_the_workers_that_it_is_assigned_to_are_told():
    spec = job("echo", assignment="manual", workers=("w1", "w8"), memory_mib=9000)
    told = Told().then(0, created(spec), joined("w1"), joined("w2", memory_mib=64_000)).queued(1)
    cause = told.why_invocation(4).cause
    assert cause.code == "no_fit"
    assert cause.text.startswith("the only worker at work that it is assigned to cannot take it")
    assert cause.details == ("w1: 3584 MiB free, 9000 needed", "w8: never joined")


def test_a_replica_is_being_prepared_since_when_and_what_it_does():
    told = Told().then(0, created(ECHO), joined("w1")).queued(1)
    told.then(2, assigned("r1", "w1", ECHO, 2))
    assert told.why_invocation(3).cause.code == "assigned"
    told.then(4, preparing("r1", "w1", "starting")).then(6, preparing("r1", "w1", "pulling, 35%"))
    found = told.why_invocation(12)
    assert found.cause.code == "preparing"
    assert found.cause.sentence(found.at) == (
        "a replica is being prepared on w1 (pulling, 35%) (for 10.0 s)"
    )
    assert [w.code for w in found.waits] == ["deciding", "assigned", "preparing"]
    (decision,) = (e for e in found.timeline if e.type.endswith("replica.assigned"))
    assert decision.why is not None and decision.why.reason == "the test says so"


def test_after_failures_it_pauses_and_the_failure_is_named():
    told = Told().then(0, created(ECHO), joined("w1")).queued(0)
    for n in (1, 2, 3):
        told.then(n, assigned(f"r{n}", "w1", ECHO, n))
        told.then(n, failing(f"r{n}", "w1", "Traceback\nImportError: no module torch\n", n))
    cause = told.why_invocation(4).cause
    assert cause.code == "backing_off"
    assert cause.text.startswith("its model does not start: ImportError: no module torch")
    assert "w1: 3 failures there, waiting 4 s after the last" in cause.text
    again = told.then(8, assigned("r9", "w1", ECHO, 8), preparing("r9", "w1", "starting"))
    assert "the last one there failed: ImportError" in again.why_invocation(9).cause.text


def test_its_place_in_the_queue_and_the_slots_that_are_busy():
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO)).queued(1)
    cause = told.why_invocation(4, queue(12, before=3, running=1), beats("w1", 3, echo=1)).cause
    assert cause.code == "in_queue"
    assert cause.text == "it is 3 of 11 in the queue of echo; 1 of 1 slots are busy on w1"
    long = queue(90_000, before=40_000, counted=False, holds=None, running=1)
    assert "over 39999 are before it" in told.why_invocation(4, long).cause.text
    assert told.why_invocation(4, queue()).cause.code == "next"


def test_a_job_at_zero_is_woken_by_its_first_invocation():
    told = Told().then(0, created(ZERO), joined("w1"), scaled("echo", 0)).queued(10)
    assert told.why_invocation(11, queue()).cause.code == "waking"
    asleep = told.why_invocation(20, queue()).cause
    assert asleep.code == "no_conductor"
    assert "nobody scales it up" in asleep.text
    told.then(12, scaled("echo", 1), assigned("r1", "w1", ZERO, 12))
    found = told.why_invocation(13, queue())
    assert found.cause.code == "assigned"
    assert "the job scales to 1 replica" in [e.text for e in found.timeline]


def test_a_job_that_wants_no_replicas_says_so():
    told = Told().then(0, created(job("echo", replicas=0)), joined("w1")).queued(1)
    cause = told.why_invocation(4, queue()).cause
    assert cause.code == "no_replicas_wanted"


@pytest.mark.parametrize(("seconds", "code"), [(3, "deciding"), (9, "no_conductor")])
def test_a_worker_with_room_and_nobody_who_decides(seconds, code):
    told = Told().then(0, created(ECHO), joined("w1")).queued(1)
    assert told.why_invocation(seconds).cause.code == code


def test_room_that_has_just_come_is_no_sign_of_a_missing_conductor():
    other = job("other", memory_mib=3000)
    told = Told().then(0, created(other), created(job("echo", memory_mib=1000)), joined("w1"))
    told.then(0, serving("r1", "w1", other)).queued(1).then(60, stopped("r1", "w1", "other"))
    assert told.why_invocation(61).cause.code == "deciding"
    assert told.why_invocation(66).cause.code == "no_conductor"


def test_a_broker_that_has_just_begun_keeps_no_heartbeats_and_that_is_no_missing_conductor():
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO)).queued(1)
    cause = told.why_invocation(900, queue(), {}).cause
    assert cause.code == "worker_silent"
    assert "no heartbeat of w1 is kept" in cause.text


@pytest.mark.parametrize(("seconds", "code"), [(12, "worker_silent"), (60, "no_conductor")])
def test_nothing_is_heard_from_the_only_worker(seconds, code):
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO)).queued(1)
    cause = told.why_invocation(seconds, queue(), beats("w1", 5)).cause
    assert cause.code == code
    assert "nothing is heard from w1" in cause.text
    started_too = told.invocation(3, started(ID, "w1")).why_invocation(12, None, beats("w1", 5))
    assert started_too.cause.text.startswith("attempt 1 runs on w1, as far as is known")


def test_a_model_that_ended_is_being_started_again():
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO)).queued(1)
    cause = told.why_invocation(4, queue(), beats("w1", 3, echo=-1)).cause
    assert cause.code == "restarting"


def test_the_queue_does_not_have_it():
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO)).queued(1)
    behind = told.why_invocation(4, queue(holds=False, position=0)).cause
    assert (behind.code, "up to 0, and this is at 1" in behind.text) == ("not_in_queue", True)
    assert "a crash" in told.why_invocation(4, queue(holds=False)).cause.text
    assert told.why_invocation(4, queue(consumer=False)).cause == NOTHING_TO_PULL
    assert told.why_invocation(900, queue(consumer=False), {}).cause == NOTHING_TO_PULL
    assert told.why_job(4, queue(consumer=False, running=None)).cause.code == "no_conductor"
    pulled = queue(handed_out=True, running=1)
    assert told.why_invocation(4, pulled).cause.code == "taken"
    assert told.why_invocation(4).cause.code == "in_queue"


def test_its_job_was_deleted():
    told = Told().then(0, created(ECHO)).queued(1).then(2, deleted("echo"))
    assert told.why_invocation(3).cause.code == "job_deleted"


# -- afterwards


def test_what_was_waited_for_is_told_when_it_is_over():
    told = Told().then(0, created(ECHO)).queued(1)
    told.then(5, joined("w1")).then(6, assigned("r1", "w1", ECHO, 6))
    told.then(6.5, preparing("r1", "w1", "starting")).then(9, ready("r1", "w1", seconds=9))
    told.invocation(12, started(ID, "w1", run_s=1.0))
    told.invocation(15, given.completed(ID, "hello", run_s=4.0, attempt=1, replica="r1"))
    found = told.why_invocation(100)
    assert (found.cause.code, found.state) == ("completed", "completed")
    assert found.cause.text == "completed on w1 in 4.0 s, after a wait of 10.0 s"
    assert [(w.code, w.length.total_seconds()) for w in found.waits] == [
        ("no_worker", 4), ("deciding", 1), ("assigned", 0.5), ("preparing", 2.5), ("in_queue", 2),
    ]  # fmt: skip
    assert (
        "waited 10.0 s: no worker was at work 4.0 s; a worker was to be chosen 1.0 s"
        in "\n".join(lines(found))
    )
    assert [e.text for e in found.timeline][-2:] == [
        "attempt 1 runs on w1", "completed on w1 in 4.0 s",
    ]  # fmt: skip


# -- what is believed, and how it is shown


def test_what_a_worker_says_of_another_or_decides_itself_is_not_believed():
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO)).queued(1)
    for event in (left("w1"), assigned("r9", "w2", ECHO), failed("r1", "w2")):
        told.then(2, event)
        verb = event.type.rpartition(".")[2]
        told.records[-1] = replace(told.records[-1], subject=f"jf.fleet.w2.{verb}")
    found = told.why_invocation(3, queue(3, before=2, running=1))
    assert found.cause.code == "in_queue"
    assert not [e for e in found.timeline if "w2" in e.text or "left" in e.text]


def test_an_explanation_is_a_document_and_lines():
    told = Told().then(0, created(ECHO)).queued(1).then(2, joined("w1"))
    told.then(3, assigned("r1", "w1", ECHO, 3))
    found = told.why_invocation(4)
    written = json.loads(json.dumps(document(found), default=str))
    assert written["invocation"] == ID
    assert (written["code"], written["state"]) == ("assigned", "queued")
    assert [wait["code"] for wait in written["waits"]] == ["no_worker", "deciding", "assigned"]
    assert written["timeline"][-1]["why"]["policy"] == "test"
    text = lines(found)
    assert text[:2] == [
        f"{ID}  queued",
        "  w1 was chosen for a replica and has not begun (for 1.0 s)",
    ]
    assert any(
        line.endswith("the test says so  (test 1, saw REGISTRY 0, FLEET 0)") for line in text
    )


def test_a_long_timeline_keeps_its_beginning_and_its_end():
    told = Told().then(0, created(ECHO), joined("w1"))
    for n in range(100):
        told.then(n, assigned(f"r{n}", "w1", ECHO), failing(f"r{n}", "w1", "no", n))
    timeline = told.why_job(200).timeline
    assert len(timeline) == SHOWN
    assert timeline[0].text == "the job was created"
    assert "failed" in timeline[-1].text


def test_what_the_conductor_sets_aside_is_not_believed_here_either():
    told = Told().then(0, created(ECHO), joined("w1"), serving("r1", "w1", ECHO)).queued(1)
    for event, subject in (
        (deleted("echo"), "jf.reg.default.job.other.deleted"),
        (assigned("r9", "w2", ECHO), "jf.ctl.default.echo.released.w2"),
    ):
        told.then(2, event)
        told.records[-1] = replace(told.records[-1], subject=subject)
    found = told.why_invocation(3, queue(3, before=2, running=1))
    assert found.cause.code == "in_queue"
    assert not [each for each in found.timeline if each.at > given.at(1)]


def test_every_cause_is_told_afterwards_and_documented():
    package = Path(jetfleet.__file__).parent
    named = {
        code
        for module in ("causes", "explain", "explain_fleet")
        for code in re.findall(r'Cause\(\s*"(\w+)"', (package / f"{module}.py").read_text())
    }
    assert {"in_queue", "no_fit", "idle"} <= named  # it finds them
    assert named - {READY.code} <= CODES.keys()
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == CODES.keys()
