"""One invocation as a fold of its own events; the first outcome counts."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest

from given import at, cancelled, completed, expired, failed_with, queued, started
from jetfleet.events import Failure, encode
from jetfleet.views import InvocationView, evolve_view, view_of_row


def seen(*happened) -> InvocationView:
    view = None
    for seq, event in enumerate(happened, start=1):
        view = evolve_view(view, event, seq)
    assert view is not None
    return view


FAILED = failed_with("i1", Failure(code="timeout", message="too long"), attempt=3)


def test_a_queued_invocation_waits():
    view = seen(queued("i1", stream=True))
    assert (view.state, view.queued_seq, view.queued_at, view.stream) == ("queued", 1, at(0), True)
    assert (view.ended, view.worker, view.attempts) == (False, None, 0)


def test_a_started_one_names_who_runs_it():
    view = seen(queued("i1"), started("i1", "w1", seconds=1))
    assert (view.state, view.worker, view.started_at, view.attempts) == ("started", "w1", at(1), 1)


def test_when_an_attempt_began_is_told_by_how_long_it_had_run():
    told = started("i1", "w1", seconds=1.5, run_s=0.5)
    assert seen(queued("i1"), told).started_at == at(1)


def test_an_outcome_alone_tells_when_its_attempt_began():
    view = seen(queued("i1"), completed("i1", 7, seconds=2, run_s=0.25))
    assert (view.started_at, view.finished_at) == (at(1.75), at(2))


def test_a_run_longer_than_the_calendar_has_no_beginning():
    ancient = completed("i1", 7, run_s=1e9).model_copy(
        update={"time": datetime(1, 1, 1, tzinfo=UTC)}
    )
    assert seen(queued("i1"), ancient).started_at is None


def test_a_second_attempt_elsewhere_is_counted():
    view = seen(queued("i1"), started("i1", "w1"), started("i1", "w2", attempt=2))
    assert (view.worker, view.attempts) == ("w2", 2)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(completed("i1", 7), "completed"), (FAILED, "failed"), (cancelled("i1"), "cancelled"),
     (expired("i1"), "expired")],
)  # fmt: skip
def test_each_outcome_ends_it(outcome, state):
    view = seen(queued("i1"), outcome)
    assert (view.state, view.ended, view.outcome) == (state, True, outcome)
    assert view.finished_at == outcome.time


def test_an_outcome_says_how_many_attempts_there_were():
    assert seen(queued("i1"), FAILED).attempts == 3


def test_result_after_cancellation_is_recorded_and_ignored():
    stop = cancelled("i1", "enough", seconds=2)
    view = seen(queued("i1"), started("i1", "w1"), stop, completed("i1", 7, seconds=3))
    assert (view.state, view.outcome, view.finished_at) == ("cancelled", stop, at(2))


def test_a_start_told_after_the_outcome_changes_nothing():
    view = seen(queued("i1"), completed("i1", 7), started("i1", "w9"))
    assert (view.state, view.worker) == ("completed", "w1")


def test_what_comes_without_its_queued_event_is_nothing():
    assert evolve_view(None, completed("i1", 7), 5) is None
    assert evolve_view(None, started("i1", "w1"), 5) is None


def test_the_same_invocation_queued_twice_keeps_its_first_place():
    assert seen(queued("i1"), queued("i1")).queued_seq == 1


def test_a_row_of_the_projection_is_the_same_view():
    view = seen(queued("i1"), started("i1", "w1"), completed("i1", {"a": None}))
    row = dataclasses.asdict(dataclasses.replace(view, outcome=None))
    for name in ("queued_at", "started_at", "finished_at"):
        row[name] = row[name].isoformat()
    row["outcome"] = json.loads(encode(view.outcome))
    assert view_of_row(row) == view


def test_a_row_of_an_open_invocation_is_the_same_view():
    view = seen(queued("i1"))
    row = {**dataclasses.asdict(view), "queued_at": view.queued_at.isoformat()}
    assert view_of_row(row) == view
