"""The warehouse over made batches: what counts, what is set aside, the same in any batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from jetfleet.errors import StartupError
from jetfleet.streams import INVOCATIONS
from jetfleet_projections import tables
from jetfleet_projections.folding import Folder, Staged
from jetfleet_projections.warehouse import STREAMS, Warehouse
from projections_made import POISON, Log, feed, lives, one


@pytest.fixture
def log() -> Log:
    return Log()


def row(warehouse: Warehouse, table: str = "invocations") -> dict[str, Any]:
    result = warehouse.connection.execute(f"SELECT * FROM {table}")  # noqa: S608 - our names
    names = [column[0] for column in result.description]
    (values,) = result.fetchall()
    return dict(zip(names, values, strict=True))


def all_rows(warehouse: Warehouse) -> dict[str, Any]:
    return {table: tables.rows(warehouse.connection, table) for table in tables.TABLES}


def reasons(warehouse: Warehouse) -> list[str]:
    return [
        reason
        for (reason,) in warehouse.connection.execute(
            "SELECT reason FROM dead ORDER BY stream, seq"
        ).fetchall()
    ]


# -- invocations


def test_invocation_is_followed_from_queued_to_completed(warehouse: Warehouse, log: Log) -> None:
    invocation = log.clock.new_id()
    log.queued(invocation, stream=True)
    feed(warehouse, log)
    assert row(warehouse)["state"] == "queued"
    log.started(invocation)
    feed(warehouse, log)
    assert row(warehouse)["state"] == "started"
    log.done(invocation, chunks=3)
    feed(warehouse, log)
    found = row(warehouse)
    assert str(found["invocation"]) == invocation
    assert (found["state"], found["outcome"], found["attempts"]) == ("completed", "completed", 1)
    assert (found["queued_seq"], found["finished_seq"], found["last_seq"]) == (1, 3, 3)
    assert (found["worker"], found["replica"], found["origin"]) == ("w1", "r-w1", "g1")
    assert (found["run_s"], found["chunks"], found["stream"]) == (0.25, 3, True)
    assert found["wait_s"] == pytest.approx(0.003, abs=1e-6)
    assert found["superseded"] == found["requeued"] == 0


def test_a_short_run_is_told_by_its_outcome_alone(warehouse: Warehouse, log: Log) -> None:
    invocation = log.clock.new_id()
    log.queued(invocation)
    log.done(invocation, run_s=0.0004)
    feed(warehouse, log)
    found = row(warehouse)
    assert found["wait_s"] == pytest.approx(0.003 - 0.0004, abs=1e-6)
    assert (found["finished_at"] - found["started_at"]).total_seconds() == 0.0004


@pytest.mark.parametrize("together", [True, False])
def test_waiting_ends_with_the_first_attempt_and_running_begins_with_the_last(
    warehouse: Warehouse, log: Log, together: bool
) -> None:
    invocation = log.clock.new_id()
    log.queued(invocation)
    log.started(invocation, run_s=0.0002)
    if not together:
        feed(warehouse, log)
    log.done(invocation, attempt=2, run_s=0.0001)
    feed(warehouse, log)
    found = row(warehouse)
    assert found["wait_s"] == pytest.approx(0.0028, abs=1e-6)
    assert (found["finished_at"] - found["started_at"]).total_seconds() == 0.0001
    assert found["attempts"] == 2


def test_first_outcome_in_stream_order_counts_and_later_ones_are_superseded(
    warehouse: Warehouse, log: Log
) -> None:
    invocation = log.clock.new_id()
    log.queued(invocation)
    log.started(invocation, worker="w1")
    log.started(invocation, worker="w2", attempt=2)
    log.done(invocation, outcome="failed", worker="w2", attempt=2)
    log.done(invocation, worker="w1")
    feed(warehouse, log)
    log.done(invocation, outcome="expired", worker=None)
    feed(warehouse, log)
    found = row(warehouse)
    assert (found["state"], found["finished_seq"], found["superseded"]) == ("failed", 4, 2)
    assert (found["worker"], found["attempts"]) == ("w2", 2)
    assert (found["error_code"], found["error_message"]) == ("model_error", "boom\nagain")
    assert one(warehouse, "SELECT count(*) FROM events") == 6


def test_start_after_the_outcome_changes_nothing(warehouse: Warehouse, log: Log) -> None:
    invocation = log.clock.new_id()
    log.queued(invocation)
    log.cancel(invocation)
    log.done(invocation, outcome="cancelled", worker=None, attempt=0)
    log.started(invocation, worker="w9")
    feed(warehouse, log)
    found = row(warehouse)
    assert (found["state"], found["worker"], found["started_at"]) == ("cancelled", None, None)
    assert (found["cancel_seq"], found["wait_s"], found["attempts"]) == (2, None, 0)


def test_queued_again_outside_the_duplicate_window_keeps_the_first(
    warehouse: Warehouse, log: Log
) -> None:
    invocation = log.clock.new_id()
    log.queued(invocation, origin="first")
    log.queued(invocation, origin="second")
    feed(warehouse, log)
    log.queued(invocation, origin="third")
    feed(warehouse, log)
    found = row(warehouse)
    assert (found["origin"], found["queued_seq"], found["requeued"]) == ("first", 1, 2)


@pytest.mark.parametrize("size", [1, 10_000])
def test_outcome_of_another_job_or_tenant_is_set_aside(
    warehouse: Warehouse, log: Log, size: int
) -> None:
    invocation = log.clock.new_id()
    log.queued(invocation, "mine")
    log.done(invocation, "other")
    log.tenant = "intruder"
    log.done(invocation, "mine")
    feed(warehouse, log, size)
    assert row(warehouse)["state"] == "queued"
    assert reasons(warehouse) == ["no such invocation was queued on this job before"] * 2


@pytest.mark.parametrize("size", [1, 10_000])
def test_outcome_before_its_queued_event_is_set_aside(
    warehouse: Warehouse, log: Log, size: int
) -> None:
    invocation = log.clock.new_id()
    log.done(invocation)
    log.queued(invocation)
    feed(warehouse, log, size)
    assert row(warehouse)["state"] == "queued"
    assert one(warehouse, "SELECT seq FROM dead") == 1


# -- what is not obeyed


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("plain_from", [0, 10_000])
def test_poison_is_kept_counted_and_never_obeyed(
    warehouse: Warehouse, log: Log, stream: str, plain_from: int
) -> None:
    warehouse.stager.plain_from = plain_from
    for body in POISON:
        log.put(stream, "jf.inv.0.default.echo.queued.normal", body)
    good = log.clock.new_id()
    log.queued(good)
    feed(warehouse, log)
    assert one(warehouse, "SELECT count(*) FROM dead") == len(POISON)
    assert str(row(warehouse)["invocation"]) == good
    sizes = warehouse.connection.execute("SELECT size, octet_length(body) FROM dead").fetchall()
    assert (70_000, 65_536) in sizes
    assert warehouse.positions[stream].seq == log.batches[stream].seqs[-1]


def _changed(body: bytes, **changes: Any) -> bytes:
    document = json.loads(body)
    data = document["data"]
    for name, value in changes.items():
        target = data if name in data else document
        target[name] = value
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("plain_from", [0, 10_000])
@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "intruder"},
        {"job": "other"},
        {"worker": "w2"},
        {"type": "jetfleet.invocation.started"},
        {"type": "jetfleet.job.enabled"},
        {"invocation": "not-a-uuid"},
        {"attempt": -1},
        {"attempt": 10**30},
        {"time": "yesterday"},
        {"source": ""},
        {"specversion": "0.3"},
        {"unknown": 1},
        {"id": 5},
    ],
)
def test_body_that_contradicts_its_subject_or_its_type_is_set_aside(
    warehouse: Warehouse, log: Log, changes: dict[str, Any], plain_from: int
) -> None:
    warehouse.stager.plain_from = plain_from
    invocation = log.clock.new_id()
    log.queued(invocation)
    log.started(invocation)
    log.done(invocation)
    bodies = log.batches[INVOCATIONS].bodies
    bodies[2] = _changed(bodies[2], **changes)
    feed(warehouse, log)
    assert row(warehouse)["state"] == "started"
    assert len(reasons(warehouse)) == 1


def test_subjects_of_no_known_shape_are_set_aside(warehouse: Warehouse, log: Log) -> None:
    log.queued(log.clock.new_id())
    body = log.batches[INVOCATIONS].bodies[0]
    for subject in ("jf.inv.0.default.echo", "jf.inv.0.default.echo.done.normal", "jf.inv.0.Default.echo.queued.normal", "x"):  # fmt: skip  # noqa: E501 - one a line would hide the list
        log.put(INVOCATIONS, subject, body)
    feed(warehouse, log)
    assert len(reasons(warehouse)) == 4
    assert row(warehouse)["requeued"] == 0


def test_message_that_breaks_the_fold_is_set_aside_and_the_rest_goes_on(
    warehouse: Warehouse, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [log.clock.new_id() for _ in range(8)]
    for invocation in ids:
        log.queued(invocation)
    fold = Folder.fold

    def breaking(self: Folder, staged: Staged) -> None:
        if 5 in staged.batch.seqs:
            raise duckdb.ConversionException("made up")
        fold(self, staged)

    monkeypatch.setattr(Folder, "fold", breaking)
    feed(warehouse, log)
    assert one(warehouse, "SELECT count(*) FROM invocations") == 7
    assert reasons(warehouse) == ["it cannot be folded: made up"]


def test_old_version_of_an_event_is_lifted(warehouse: Warehouse, log: Log) -> None:
    log.queued(log.clock.new_id())
    bodies = log.batches[INVOCATIONS].bodies
    document = json.loads(bodies[0])
    data = document["data"]
    data["deadline"] = data.pop("expires_at")
    for name in ("priority_class", "origin"):
        del data[name]
    bodies[0] = json.dumps({**document, "dataversion": 0, "data": data}).encode()
    feed(warehouse, log)
    found = row(warehouse)
    assert (found["origin"], found["priority_class"]) == ("-", "normal")


# -- positions


def test_batch_applied_twice_changes_nothing(warehouse: Warehouse, log: Log) -> None:
    lives(log, 50, seed=1)
    feed(warehouse, log)
    before = all_rows(warehouse)
    for batch in log.batches.values():
        warehouse.apply(batch)
        warehouse.apply(batch.part(3))
    assert all_rows(warehouse) == before


def test_failed_commit_leaves_neither_rows_nor_position(
    warehouse: Warehouse, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.queued(log.clock.new_id())
    with monkeypatch.context() as patch:

        def full(*_: Any) -> None:
            raise duckdb.IOException("disk full")

        patch.setattr(Folder, "bury", full)
        with pytest.raises(duckdb.IOException, match="disk full"):
            feed(warehouse, log)
    assert warehouse.positions[INVOCATIONS].seq == 0
    assert one(warehouse, "SELECT count(*) FROM events") == 0
    feed(warehouse, log)
    assert one(warehouse, "SELECT count(*) FROM invocations") == 1


def test_a_batch_in_parts_is_whole_when_it_is_tried_again(
    warehouse: Warehouse, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(8):
        log.queued(log.clock.new_id())
    fold = Folder.fold
    # The batch cannot be folded, and then its first half cannot be written.
    troubles = [duckdb.IOException("disk full"), duckdb.ConversionException("made up")]

    def troubled(self: Folder, staged: Staged) -> None:
        if troubles:
            raise troubles.pop()
        fold(self, staged)

    monkeypatch.setattr(Folder, "fold", troubled)
    staged = warehouse.stage(log.batches[INVOCATIONS])
    with pytest.raises(duckdb.IOException, match="disk full"):
        warehouse.commit(staged)
    assert warehouse.commit(staged) == 0
    assert one(warehouse, "SELECT count(*) FROM invocations") == 8


def test_position_and_rows_survive_closing(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "warehouse.duckdb"
    lives(log, 20, seed=2)
    first = Warehouse.open(path)
    feed(first, log)
    before, positions = all_rows(first), first.positions
    first.close()
    second = Warehouse.open(path)
    assert (all_rows(second), second.positions) == (before, positions)
    second.close()


def test_second_owner_of_a_file_is_told_so(warehouse: Warehouse, tmp_path: Path) -> None:
    import subprocess
    import sys

    warehouse.copy_to(tmp_path / "copy.duckdb")  # which must not give the file away
    code = f"""
from pathlib import Path
from jetfleet.errors import StartupError
from jetfleet_projections.folding import Folder, Staged
from jetfleet_projections.warehouse import Warehouse
try:
    Warehouse.open(Path({str(warehouse.path)!r}))
except StartupError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Another projector may have it" in said.stdout


def test_file_of_another_schema_is_built_anew(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "warehouse.duckdb"
    old = duckdb.connect(str(path))
    old.execute("CREATE TABLE events (something_else INTEGER)")
    old.close()
    warehouse = Warehouse.open(path)
    log.queued(log.clock.new_id())
    feed(warehouse, log)
    assert row(warehouse)["state"] == "queued"
    warehouse.close()


def test_file_that_is_no_database_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "warehouse.duckdb"
    path.write_bytes(b"x" * 10_000)
    with pytest.raises(StartupError, match="delete it"):
        Warehouse.open(path)


def test_forgetting_a_stream_leaves_the_others(warehouse: Warehouse, log: Log) -> None:
    log.model()
    log.queued(log.clock.new_id())
    feed(warehouse, log)
    warehouse.forget(INVOCATIONS)
    assert one(warehouse, "SELECT count(*) FROM invocations") == 0
    assert one(warehouse, "SELECT count(*) FROM models") == 1
    assert warehouse.positions[INVOCATIONS].seq == 0
    feed(warehouse, log)
    assert one(warehouse, "SELECT count(*) FROM events") == 2
