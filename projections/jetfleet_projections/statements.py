"""Named SQL statements from the ``.sql`` files beside this module.

A file holds blocks: a line ``-- name: jobs``, comment lines that describe it, then one statement.
A block may declare parameters: ``-- params: tenant VARCHAR, invocation! UUID, limit BIGINT = 100``
(``!``: required; without a default, one that is not given is NULL).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import duckdb

_NAME = re.compile(r"^-- name: *(\w+) *$", re.MULTILINE)
_PARAM = re.compile(r"^(?P<name>\w+)(?P<required>!?) +(?P<type>[A-Z]+)(?: *= *(?P<default>\S+))?$")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A declared parameter; ``default`` is None where none is declared."""

    name: str
    type: str
    required: bool
    default: int | None


@dataclass(frozen=True, slots=True)
class Statement:
    """A named statement. ``notes``: other ``-- key: value`` lines of its head."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    notes: Mapping[str, str]
    sql: str


@dataclass(slots=True)
class Runner:
    """Runs statements over one connection; each is parsed once, which is a third of its cost."""

    connection: duckdb.DuckDBPyConnection
    _parsed: dict[tuple[str, str], duckdb.Statement] = field(default_factory=dict)

    def run(self, file: str, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """The rows that a statement returns."""
        parsed = self._parsed.get((file, name))
        if parsed is None:
            (parsed,) = self.connection.extract_statements(load(file)[name].sql)
            self._parsed[file, name] = parsed
        return self.connection.execute(parsed, parameters).fetchall()


@functools.cache
def load(file: str) -> Mapping[str, Statement]:
    """The statements of a file of this package, by name.

    Raises:
        ValueError: two blocks have one name, or a declaration cannot be read.
    """
    _, *blocks = _NAME.split(read(file))
    found: dict[str, Statement] = {}
    for name, text in zip(blocks[::2], blocks[1::2], strict=True):
        if name in found:
            raise ValueError(f"{file} has two statements named {name}")
        found[name] = _statement(name, text)
    return found


def read(file: str) -> str:
    """The text of a file of this package."""
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")


def _statement(name: str, text: str) -> Statement:
    description: list[str] = []
    notes: dict[str, str] = {}
    lines = text.strip().splitlines()
    while lines and lines[0].startswith("--"):
        line = lines.pop(0)[2:].strip()
        key, separator, value = line.partition(": ")
        if separator and key in {"params", "fresh"}:
            notes[key] = value
        else:
            description.append(line)
    declared = notes.pop("params", "")
    parameters = tuple(_parameter(name, part.strip()) for part in declared.split(",") if part)
    sql = "\n".join(lines).strip().removesuffix(";")
    return Statement(name, " ".join(description), parameters, notes, sql)


def _parameter(statement: str, text: str) -> Parameter:
    match = _PARAM.match(text)
    if match is None:
        raise ValueError(f"statement {statement}: cannot read the parameter {text!r}")
    default: Any = match["default"]
    return Parameter(
        match["name"],
        match["type"],
        bool(match["required"]),
        None if default is None else int(default),
    )
