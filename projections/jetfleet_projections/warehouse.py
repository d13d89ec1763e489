"""The DuckDB file: batches of raw messages in, rows and position committed in one transaction.

One process owns the file. ``stage`` and ``commit`` may each run in a thread of its own, so that one
batch is read while the one before is folded; ``cursor`` serves others.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import duckdb

from jetfleet.errors import StartupError
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY
from jetfleet_projections import statements, tables
from jetfleet_projections.batches import Batch
from jetfleet_projections.folding import SLOTS, UNREADABLE, Folder, Staged, Stager, prepare

logger = logging.getLogger("jetfleet.projections.warehouse")

STREAMS = (REGISTRY, INVOCATIONS, FLEET)
FILE = "warehouse.duckdb"
COPY_BYTES = 1024**2  # at a time
_SQL_FILES = (
    "schema.sql",
    "staging.sql",
    "invocations.sql",
    "registry.sql",
    "fleet.sql",
    "commit.sql",
)
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "wal_autocheckpoint": "256MB",  # slowest commits 14 instead of 77 ms (measured)
    "threads": 1,  # each batch and each query in its own thread: predictable beside other processes
    "memory_limit": "2GB",
}


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream was read. ``stored_ns``: the broker's time of that message."""

    seq: int = 0
    stored_ns: int = 0


@dataclass(slots=True, eq=False)
class Warehouse:
    """See the module; made by ``open``."""

    path: Path
    connection: duckdb.DuckDBPyConnection
    stager: Stager
    positions: dict[str, Position] = field(default_factory=dict)
    commits: int = 0  # of this process: unchanged means that nothing was written
    _file: IO[bytes] = field(init=False)
    _folder: Folder = field(init=False)
    _slots: SimpleQueue[int] = field(default_factory=SimpleQueue)

    @classmethod
    def open(cls, path: Path) -> Warehouse:
        """Open or make the file. One that another version of the schema wrote is made anew.

        Raises:
            StartupError: another process has it open, or it is no warehouse.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(path)
        written_with = _fingerprint(connection)
        if written_with not in ("", _current_fingerprint()):
            logger.info("%s was written with another schema: it is built anew from the log", path)
            connection.close()
            for file in (path, path.with_name(path.name + ".wal")):
                file.unlink(missing_ok=True)
            connection, written_with = _connect(path), ""
        if not written_with:
            _create(connection)
        prepare(connection)
        self = cls(path, connection, Stager(connection.cursor()))
        # For copies, and open all the time: closing any descriptor of a file ends this process's
        # lock on it (POSIX), and then another projector could write to it too.
        self._file = path.open("rb", buffering=0)
        self._folder = Folder(connection)
        for slot in SLOTS:
            self._slots.put(slot)
        rows = connection.execute("SELECT stream, seq, stored_ns FROM checkpoint").fetchall()
        self.positions = {stream: Position(seq, stored_ns) for stream, seq, stored_ns in rows}
        return self

    def apply(self, batch: Batch) -> int:
        """Stage and commit. Raises duckdb.Error: see ``commit``."""
        staged = self.stage(batch)
        try:
            return self.commit(staged)
        except duckdb.Error:
            self._slots.put(staged.slot)
            raise

    def stage(self, batch: Batch) -> Staged:
        """Read a batch, without changing anything. At most two may be staged and not committed; a
        third waits."""
        return self.stager.stage(batch, self._slots.get())

    def commit(self, staged: Staged) -> int:
        """Fold a staged batch and move the position, atomically.

        What was folded before is left out. A message that cannot be folded is set aside with the
        reason; the rest goes on.
        Returns the number of messages set aside.

        Raises:
            duckdb.Error: nothing was written (disk full, ...); it may be committed again.
        """
        done = self._commit(staged)
        self._slots.put(staged.slot)
        return done

    def _commit(self, staged: Staged) -> int:
        batch = staged.batch.after(self.positions[staged.batch.stream].seq)
        if not batch.seqs:
            return 0
        if batch is not staged.batch:
            staged = self.stager.stage(batch, staged.slot)
        try:
            if staged.failed is not None:
                raise staged.failed
            self._folder.sift(staged)
            return self._write(staged)
        except UNREADABLE as error:
            if len(batch) == 1:
                logger.exception("%s %d cannot be folded", batch.stream, batch.seqs[0])
                staged.reasons = {0: f"it cannot be folded: {error}"}
                return self._write(staged, folding=False)
            staged.failed = error  # its table is used for the parts now, should they be tried again
        middle = len(batch) // 2
        return sum(
            self._commit(self.stager.stage(part, staged.slot))
            for part in (batch.part(0, middle), batch.part(middle))
        )

    def _write(self, staged: Staged, *, folding: bool = True) -> int:
        batch = staged.batch
        before, after = self.positions[batch.stream], Position(batch.seqs[-1], batch.times[-1])
        with self._transaction():
            if folding:
                self._folder.fold(staged)
            else:
                self._folder.bury(batch, staged.reasons)
            moved = self._folder.move_checkpoint(
                stream=batch.stream, before=before.seq, seq=after.seq, stored_ns=after.stored_ns
            )
            if not moved:
                raise RuntimeError(f"the checkpoint of {batch.stream} is not at {before.seq}")
        self.positions[batch.stream] = after
        self.commits += 1
        return len(staged.reasons)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise

    def forget(self, stream: str) -> None:
        """Drop all that came from a stream: its log is another one now."""
        with self._transaction():
            for table in ("events", "dead", "checkpoint"):
                self.connection.execute(f"DELETE FROM {table} WHERE stream = ?", [stream])  # noqa: S608 - our names
            for table in tables.of_stream(stream):
                self.connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our names
            self.connection.execute("INSERT INTO checkpoint VALUES (?, 0, 0)", [stream])
        self.positions[stream] = Position()
        self.commits += 1

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for reading what is committed, for use by one thread."""
        return self.connection.cursor()

    def copy_to(self, target: Path) -> None:
        """Copy the file as of now. Call it from the thread that calls ``commit``."""
        self.connection.execute("CHECKPOINT")
        self._file.seek(0)
        with target.open("wb") as copy:
            shutil.copyfileobj(self._file, copy, COPY_BYTES)

    def close(self) -> None:
        """Merge the write-ahead log and close."""
        self.connection.execute("CHECKPOINT")
        self.stager.connection.close()
        self.connection.close()
        self._file.close()


def _connect(path: Path) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(str(path), config=_SETTINGS)
    except duckdb.IOException as error:
        raise StartupError(
            f"{path} cannot be opened: {error}. Another projector may have it: stop that one. "
            "If the file is damaged, delete it; it is built anew from the log"
        ) from error


def _current_fingerprint() -> str:
    """Of all SQL that decides what the rows are."""
    schema = "".join(statements.read(file) for file in _SQL_FILES)
    return hashlib.sha256(schema.encode()).hexdigest()


def _fingerprint(connection: duckdb.DuckDBPyConnection) -> str:
    """Of the SQL that a file was written with; empty: the file is."""
    names = {
        name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    }
    if "version" in names:
        return str(connection.execute("SELECT fingerprint FROM version").fetchall()[0][0])
    return "unknown" if names else ""


def _create(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("BEGIN")
    connection.execute(statements.read("schema.sql"))
    connection.execute("CREATE TABLE version AS SELECT ? AS fingerprint", [_current_fingerprint()])
    for stream in STREAMS:
        connection.execute("INSERT INTO checkpoint VALUES (?, 0, 0)", [stream])
    connection.execute("COMMIT")
