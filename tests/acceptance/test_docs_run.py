"""Documentation that runs: the tour of the README and every block of docs/client.md.

A block runs by its first word: ``console`` line by line, ``python`` as a program. ``file=NAME`` in
a block's head writes it down instead. A ``text`` block is what the block before it prints.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from up_process import Up

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEVER_ENDS = ("--follow", "jetfleet up")
WITHIN_S = 60


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, the rest of its head, its text."""

    page: str
    line: int
    language: str
    head: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, after: str = "", before: str = "") -> list[Block]:
    """The blocks of a page, or of a part of it."""
    whole = (ROOT / page).read_text()
    start = whole.index(after) if after else 0
    end = whole.index(before, start) if before else len(whole)
    return [
        Block(page, whole[: found.start()].count("\n") + 1, *found.groups())
        for found in BLOCK.finditer(whole, start, end)
    ]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    running = Up.start(tmp_path_factory.mktemp("docs"))
    try:
        yield running.wait_ready()
    finally:
        running.close()


@dataclass
class Reader:
    """Somebody who types what the page says, in a folder of their own."""

    up: Up
    folder: Path

    def type(self, argv: list[str]) -> str:
        """What a command prints; it must succeed."""
        environment = {
            **os.environ,
            "JETFLEET_DATA_DIR": str(self.up.data_dir),
            "JETFLEET_NATS_URL": self.up.endpoints["nats_url"],
            "COLUMNS": "200",
        }
        done = subprocess.run(
            argv, cwd=self.folder, env=environment, capture_output=True, text=True,
            timeout=WITHIN_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(argv)}: {done.stderr}"
        return done.stdout

    def console(self, block: Block) -> None:
        """Each ``$`` line; where lines follow it, they are what it prints."""
        for command in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, _, expected = command.partition("\n")
            printed = self.command(line)
            if expected.strip() and printed is not None:
                assert printed.split("\n") == expected.split("\n"), block.where

    def command(self, line: str) -> str | None:
        """Run a line that begins with ``jetfleet``; None for those that never end."""
        argv = shlex.split(line, comments=True)
        if any(part in line for part in NEVER_ENDS):
            return None
        assert Path(argv[0]).name == "jetfleet", line
        return self.type([sys.executable, "-m", "jetfleet", *argv[1:]])

    def follow(self, page: list[Block]) -> None:
        """Do what the blocks say, in order, and compare what is printed."""
        printed = ""
        for block in page:
            if named := re.search(r"\bfile=(\S+)", block.head):
                (self.folder / named[1]).write_text(block.text)
            elif block.language == "python":
                printed = self.type([sys.executable, "-c", block.text])
            elif block.language == "console":
                self.console(block)
            elif block.language == "text":
                assert printed == block.text, block.where


def test_every_block_of_the_clients_page_runs_and_prints_what_it_says(
    up: Up, tmp_path: Path
) -> None:
    Reader(up, tmp_path).follow(blocks("docs/client.md"))


def test_the_tour_of_the_readme_runs(up: Up) -> None:
    Reader(up, ROOT).follow(blocks("README.md", "## Five minutes", "## How it works"))
