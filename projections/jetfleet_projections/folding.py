"""From a batch of raw messages to rows, in two steps that may run beside each other.

``Stager`` reads messages: what is valid goes to a table ``staged``, the rest is set aside.
``Folder`` brings the rows of the warehouse to where the staged events lead. Each has a connection
of its own; the tables between them are in memory, one for the batch that is staged and one for the
batch that is folded.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from jetfleet.agreement import route
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY
from jetfleet_projections import statements
from jetfleet_projections.batches import Batch
from jetfleet_projections.staging import SetAside, stage, utc

PLAIN_FROM = 500  # messages: below, reading them in Python costs less than planning the SQL
LOAD = 5_000  # messages handed over at a time: Python's lock is held meanwhile
ROUTES = 50_000  # subjects remembered
BODY_KEPT = 64 * 1024  # bytes of a dead message
SLOTS = (0, 1)
_FOLDS: dict[str, Sequence[str]] = {
    REGISTRY: (
        "insert_models",
        "create_job_changes",
        "insert_job_models",
        "create_job_rows",
        "delete_changed_jobs",
        "insert_jobs",
    ),
    FLEET: (
        "insert_decisions",
        "insert_trials",
        "insert_admissions",
        "create_worker_changes",
        "create_worker_rows",
        "create_lives",
        "create_replica_changes",
        "create_replica_rows",
        "delete_changed_replicas",
        "insert_replicas",
        "update_workers",
        "delete_joined_workers",
        "insert_workers",
    ),
}


@dataclass(slots=True)
class Staged:
    """A batch whose valid events are in the table ``staged`` of a slot.

    ``reasons``: why messages are set aside, by index in the batch. ``failed``: DuckDB could not
    read the batch; then the table is not to be used.
    """

    batch: Batch
    slot: int
    reasons: dict[int, str] = field(default_factory=dict)
    failed: Exception | None = None
    tally: list[int] = field(default_factory=list)  # invocations with a row, and without

    def set_aside(self, seq: int, reason: str) -> None:
        self.reasons[bisect_left(self.batch.seqs, seq)] = reason


def prepare(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the tables between stager and folder; once for each opening of the warehouse."""
    connection.execute("ATTACH ':memory:' AS scratch")
    for slot in SLOTS:
        connection.execute(f"CREATE SCHEMA scratch.slot{slot}")
        connection.execute(
            statements.load("staging.sql")["create_staged"].sql.replace(
                "TABLE staged", f"TABLE scratch.slot{slot}.staged"
            )
        )


@dataclass(slots=True)
class Stager:
    """Reads batches. ``stage`` may be called from several threads; they take turns."""

    connection: duckdb.DuckDBPyConnection
    plain_from: int = PLAIN_FROM
    _routed: set[str] = field(default_factory=set)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _runner: statements.Runner = field(init=False)

    def __post_init__(self) -> None:
        self._runner = statements.Runner(self.connection)
        self._run("create_incoming")
        self._run("create_routes")

    def stage(self, batch: Batch, slot: int) -> Staged:
        """Fill the table of a slot with a batch."""
        staged = Staged(batch, slot)
        with self._turn:
            try:
                self.connection.execute(f"USE scratch.slot{slot}")
                self._run("clear_staged")
                if batch.stream == INVOCATIONS and len(batch) >= self.plain_from:
                    self._stage_plain(batch, staged)
                else:
                    self._stage(batch.seqs, staged)
            except UNREADABLE as error:
                staged.failed = error
        return staged

    def _stage_plain(self, batch: Batch, staged: Staged) -> None:
        """Let SQL read what is in plain form, and Python the rest."""
        self._route(batch.subjects)
        self._run("clear_incoming")
        for start in range(0, len(batch), LOAD):
            part = batch.part(start, start + LOAD)
            _append(
                self.connection,
                "incoming",
                zip(part.seqs, part.times, part.subjects, part.bodies, strict=True),
            )
        self._run("stage_plain")
        self._stage(sorted(seq for (seq,) in self._run("undecided")), staged)

    def _stage(self, seqs: Iterable[int], staged: Staged) -> None:
        rows, batch = [], staged.batch
        for seq in seqs:
            i = bisect_left(batch.seqs, seq)
            try:
                rows.append(
                    stage(batch.stream, seq, batch.times[i], batch.subjects[i], batch.bodies[i])
                )
            except SetAside as why:
                staged.reasons[i] = str(why)
        _append(self.connection, "staged", rows)

    def _route(self, subjects: Sequence[str]) -> None:
        """Read the subjects that were not seen before."""
        new = set(subjects) - self._routed
        if len(self._routed) + len(new) > ROUTES:
            self._run("clear_routes")
            self._routed.clear()
            new = set(subjects)
        rows = [(subject, *route(subject).columns()) for subject in new]
        _append(self.connection, "routes", rows)
        self._routed |= new

    def _run(self, name: str) -> list[tuple[Any, ...]]:
        return self._runner.run("staging.sql", name)


@dataclass(slots=True)
class Folder:
    """Folds staged batches: ``sift``, and then, in the transaction of the batch, ``fold``."""

    connection: duckdb.DuckDBPyConnection
    _path: str = field(init=False)
    _run: Callable[..., list[tuple[Any, ...]]] = field(init=False)

    def __post_init__(self) -> None:
        self._run = statements.Runner(self.connection).run
        self._run("invocations.sql", "create_began")
        ((self._path,),) = self.connection.execute("SELECT current_database()").fetchall()

    def sift(self, staged: Staged) -> None:
        """Set aside what speaks of invocations that were never queued; changes no row yet."""
        self.connection.execute(
            f"SET search_path = '\"{self._path}\".main,scratch.slot{staged.slot}'"
        )
        if staged.batch.stream != INVOCATIONS:
            return
        self._run("invocations.sql", "create_folded")
        ((*staged.tally, strays),) = self._run("invocations.sql", "tally")
        if strays:
            for (seq,) in self._run("invocations.sql", "refuse_strays"):
                staged.set_aside(seq, "no such invocation was queued on this job before")
            self._run("invocations.sql", "create_folded")
            ((*staged.tally, _),) = self._run("invocations.sql", "tally")

    def fold(self, staged: Staged) -> None:
        """Everything that a batch changes, except the checkpoint."""
        stream = staged.batch.stream
        if stream == INVOCATIONS:
            present, new = staged.tally
            if present:
                self._run("invocations.sql", "update_invocations")
            if new:
                self._run("invocations.sql", "insert_invocations")
        else:
            for name in _FOLDS[stream]:
                self._run(f"{stream.lower()}.sql", name)
        self._run("commit.sql", "keep_events", stream=stream)
        self.bury(staged.batch, staged.reasons)

    def bury(self, batch: Batch, reasons: dict[int, str]) -> None:
        """Write dead messages down."""
        rows = [
            (
                batch.stream,
                batch.seqs[i],
                utc(batch.times[i]),
                batch.subjects[i],
                reason,
                len(batch.bodies[i]),
                batch.bodies[i][:BODY_KEPT],
            )
            for i, reason in sorted(reasons.items())
        ]
        if rows:
            _append(self.connection, "dead", rows)

    def move_checkpoint(self, **position: Any) -> bool:
        """Whether it was where the caller thought."""
        return bool(self._run("commit.sql", "move_checkpoint", **position))


# What a message can cause in DuckDB, apart from what the machine can (disk full, no memory).
UNREADABLE = (duckdb.DataError, duckdb.IntegrityError, duckdb.InvalidInputException)


def _append(
    connection: duckdb.DuckDBPyConnection, table: str, rows: Iterable[Sequence[Any]]
) -> None:
    """The fastest way for many rows: 2.3 us each, against 10 for lists as parameters."""
    with connection.appender(table) as appender:
        appender.append_rows(rows)
