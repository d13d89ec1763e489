"""Explanations of capacity: what is asked of providers, what is not, and what became of it."""

from __future__ import annotations

from dataclasses import replace

import given
from capacity_made import offered, requested, said, withheld
from given import created, envelope, failed, job, joined, model, serving
from jetfleet.capacity import evolve_capacity
from jetfleet.commands.capacity import document
from jetfleet.events import (
    CapacityAccepted,
    CapacityRefused,
    CapacityReleased,
    CapacityStarted,
    CapacityStopped,
)
from jetfleet.story import Story
from told import Told

ECHO = job("echo", of=model(memory_mib=3000))
ASKED = requested("cloud-1")


def lacking() -> Told:
    return Told().then(0, created(ECHO), joined("w1", memory_mib=1000), offered()).queued(1)


def test_a_job_waits_for_the_worker_that_was_asked_for():
    told = lacking()
    assert told.why_invocation(2).cause.code == "no_fit"
    cause = told.then(3, ASKED).why_invocation(5).cause
    assert (cause.code, cause.since) == ("capacity_requested", given.at(3))
    assert cause.text == "a worker is asked of cloud: cloud-1 is not yet accepted"
    assert cause.details == ("w1: 488 MiB free, 3000 needed",)
    cause = told.then(6, said(CapacityAccepted, "cloud-1")).why_invocation(7).cause
    assert cause.text.endswith("cloud-1 is being started")
    cause = told.then(8, said(CapacityStarted, "cloud-1")).why_job(9).cause
    assert cause.text.endswith("cloud-1 is started, and about to join")
    assert told.then(10, joined("cloud-1")).why_invocation(11).cause.code == "deciding"


def test_workers_are_asked_for_where_none_is_at_work_too():
    told = Told().then(0, created(ECHO), offered(), ASKED).queued(1)
    assert told.why_invocation(2).cause.code == "capacity_requested"


def test_nobody_is_asked_and_each_provider_says_why():
    cause = lacking().then(3, withheld("cloud: it offers none now")).why_invocation(5).cause
    assert cause.code == "capacity_withheld"
    assert cause.text == "no provider can give it a worker: cloud: it offers none now"
    assert cause.details == ("w1: 488 MiB free, 3000 needed",)


def test_a_request_that_came_to_nothing_is_no_cause_any_more():
    told = lacking().then(3, ASKED)
    assert told.why_invocation(99).cause.code == "capacity_requested"
    assert told.why_invocation(100).cause.code == "no_fit"
    told.then(4, said(CapacityRefused, "cloud-1", reason="sold out"))
    assert told.why_invocation(5).cause.code == "no_fit"


def test_a_model_that_does_not_start_is_the_cause_and_not_capacity():
    told = lacking().then(1, joined("w2"), serving("r1", "w2", ECHO), failed("r1", "w2", seconds=2))
    told.then(2, withheld("cloud: it offers none now"))
    assert told.why_invocation(2.5).cause.code == "backing_off"


def test_the_timeline_of_a_job_has_what_was_done_for_it():
    released = CapacityReleased(
        **envelope(),
        data={"request": "q1", "provider": "cloud", "worker": "cloud-1", "session": "s1",
              "why": given.WHY},
    )  # fmt: skip
    told = lacking().then(
        3, withheld("no"), ASKED, said(CapacityAccepted, "cloud-1"),
        said(CapacityStarted, "cloud-1"), joined("cloud-1"), released,
        said(CapacityStopped, "cloud-1", reason="it has left"),
        said(CapacityRefused, "cloud-9", reason="of another job"),
    )  # fmt: skip
    texts = [entry.text for entry in told.why_job(9).timeline]
    assert texts[-7:] == [
        "no worker is asked for", "1 worker asked of cloud", "cloud accepts: cloud-1",
        "cloud started cloud-1", "cloud-1 joined", "cloud-1 is given back to cloud",
        "cloud stopped cloud-1: it has left",
    ]  # fmt: skip
    own = [entry.text for entry in told.why_worker("cloud-1", 9).timeline]
    assert own == texts[-6:]
    assert told.why_worker("cloud-1", 9).state == "draining"


def test_what_a_worker_says_in_the_name_of_a_provider_is_not_believed():
    told = lacking().then(3, ASKED)
    lie = said(CapacityStopped, "cloud-1", reason="gone")
    told.then(4, lie)
    told.records[-1] = replace(told.records[-1], subject="jf.fleet.cloud-1.stopped")
    assert told.why_invocation(5).cause.code == "capacity_requested"


def test_another_provider_cannot_speak_for_its_worker():
    told = lacking().then(3, ASKED, said(CapacityRefused, "cloud-1", provider="x", reason="no"))
    assert told.why_invocation(5).cause.code == "capacity_requested"


def test_the_command_shows_all_of_it():
    told = lacking().then(3, ASKED, withheld("no")).then(4, said(CapacityAccepted, "cloud-1"))
    state = told._story(Story()).capacity
    found = document(state, given.at(6))
    [provider] = found["providers"]
    assert (provider["provider"], provider["most"], provider["in_use"]) == ("cloud", 9, 1)
    [worker] = found["workers"]
    assert (worker["state"], worker["for"], worker["jobs"]) == ("accepted", 2.0, ["echo"])
    assert document(state, given.at(100))["workers"][0]["state"] == "expired"
    assert found["withheld"] == [
        {"tenant": given.TENANT, "job": "echo", "reason": "no", "since": given.at(3)}
    ]
    gone = evolve_capacity(state, offered(most=0), given.at(7))
    assert document(gone, given.at(7))["providers"][0]["most"] == 0
