"""The last lines of a process's output, in bounded memory, and its new ones for who listens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

MAX_LINES = 50
MAX_LINE_BYTES = 4096
Listener = Callable[[int, str], None]  # number of the line (from 1), its text


class Tail:
    """Keeps the last ``MAX_LINES`` lines, each cut after ``MAX_LINE_BYTES``.

    ``listeners`` are called with each line that ends from now on; ``ended`` counts those lines.
    """

    __slots__ = ("_lines", "_open", "_open_bytes", "ended", "listeners")

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=MAX_LINES)
        self._open = b""  # the beginning of the line that is still being written
        self._open_bytes = 0  # its true length
        self.ended = 0
        self.listeners: list[Listener] = []

    def feed(self, data: bytes) -> None:
        """Take in more output; where nobody listens, it costs no more than its last lines."""
        if self.listeners:
            first, *rest = data.split(b"\n")
        else:
            first, *rest = data.rsplit(b"\n", MAX_LINES)
            if skipped := first.count(b"\n"):  # these lines would fall out anyway
                self.ended += skipped
                first = first.rpartition(b"\n")[2]
                self._open, self._open_bytes = b"", 0
        self._extend(first)
        for line in rest:
            self._end_line()
            self._extend(line)

    def _end_line(self) -> None:
        line = _cut(self._open, self._open_bytes)
        self._lines.append(line)
        self._open, self._open_bytes = b"", 0
        self.ended += 1
        for listener in self.listeners:
            listener(self.ended, _text(line))

    def _extend(self, part: bytes) -> None:
        room = MAX_LINE_BYTES - len(self._open)
        if room > 0:
            self._open += part[:room]
        self._open_bytes += len(part)

    def lines(self) -> tuple[str, ...]:
        """Oldest first, with the line still being written as the last."""
        unended = self.unended()
        return (*self.whole_lines(), *((unended,) if unended is not None else ()))[-MAX_LINES:]

    def whole_lines(self) -> tuple[str, ...]:
        """The last lines that ended, oldest first."""
        return tuple(_text(line) for line in self._lines)

    def unended(self) -> str | None:
        """The line still being written, so far; None when nothing is."""
        return _text(_cut(self._open, self._open_bytes)) if self._open_bytes else None


def _cut(kept: bytes, length: int) -> bytes:
    return kept if length <= len(kept) else kept + b" ... (%d bytes)" % length


def _text(line: bytes) -> str:
    """As a terminal would show it: a progress bar is its last state."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")
