"""Where commands print: for people, for pipes, or as JSON.

Results go to stdout, progress and notes to stderr. Where stdout is a pipe, tables lose colour and
frames and are never folded, so that ``grep``, ``awk`` and ``head`` see one line for each row.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 10_000
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Output:
    """The two ways out."""

    as_json: bool = False

    def document(self, value: Any) -> None:
        """One JSON document, indented where people look."""
        indent = 2 if sys.stdout.isatty() else None
        self._write(json.dumps(value, indent=indent, ensure_ascii=False, default=plain))

    def line(self, value: Any) -> None:
        """One line of NDJSON."""
        self._write(json.dumps(value, ensure_ascii=False, default=plain))

    def text(self, text: str) -> None:
        """One line of text."""
        self._write(text)

    def raw(self, text: str) -> None:
        """Text as it comes, without an end of line."""
        sys.stdout.write(shown(text, sys.stdout))
        sys.stdout.flush()

    def _write(self, text: str) -> None:
        self.raw(text + "\n")

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "none"
    ) -> None:
        """Rows under headings; JSON: a list of objects.

        Args:
            empty: what is said (on stderr) when there are no rows.
        """
        rows = [list(row) for row in rows]
        if self.as_json:
            self.document([dict(zip(columns, row, strict=True)) for row in rows])
        elif not rows:
            note(empty)
        else:
            _print_table(columns, rows)


def printable(text: str) -> str:
    """Text without control characters: what a model says must not steer the terminal."""
    return _CONTROL.sub("", text)


def shown(text: str, out: TextIO) -> str:
    """Text as it is to be written: printable where people look, else as it stands."""
    return printable(text) if out.isatty() else text


def note(text: str) -> None:
    """A remark on stderr."""
    sys.stderr.write(shown(text, sys.stderr) + "\n")


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner on stderr while one waits; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def plain(value: Any) -> Any:
    """How values that JSON does not know are written."""
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_none=True)
    return str(value)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=plain)
    return str(value).replace("\n", "⏎")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], (int, float)) for row in rows)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    _stdout().print(table)


def _stdout() -> Console:
    from rich.console import Console

    if sys.stdout.isatty():
        return Console()
    return Console(width=PIPE_WIDTH, no_color=True, highlight=False)
