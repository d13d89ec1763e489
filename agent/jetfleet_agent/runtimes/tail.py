"""The last lines of a process's output, in bounded memory."""

from __future__ import annotations

from collections import deque

MAX_LINES = 50
MAX_LINE_BYTES = 4096


class Tail:
    """Keeps the last ``MAX_LINES`` lines, each cut after ``MAX_LINE_BYTES``."""

    __slots__ = ("_lines", "_open", "_open_bytes")

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=MAX_LINES)
        self._open = b""  # the beginning of the line that is still being written
        self._open_bytes = 0  # its true length

    def feed(self, data: bytes) -> None:
        """Take in more output; costs no more than the last lines of it."""
        first, *rest = data.rsplit(b"\n", MAX_LINES)
        if len(rest) == MAX_LINES:  # older lines would fall out anyway
            first = first.rpartition(b"\n")[2] if b"\n" in first else first
            self._lines.clear()
        self._extend(first)
        for line in rest:
            self._lines.append(_cut(self._open, self._open_bytes))
            self._open, self._open_bytes = b"", 0
            self._extend(line)

    def _extend(self, part: bytes) -> None:
        room = MAX_LINE_BYTES - len(self._open)
        if room > 0:
            self._open += part[:room]
        self._open_bytes += len(part)

    def lines(self) -> tuple[str, ...]:
        """Oldest first, with the line still being written as the last."""
        lines = [*self._lines]
        if self._open_bytes:
            lines.append(_cut(self._open, self._open_bytes))
        return tuple(_text(line) for line in lines[-MAX_LINES:])


def _cut(kept: bytes, length: int) -> bytes:
    return kept if length <= len(kept) else kept + b" ... (%d bytes)" % length


def _text(line: bytes) -> str:
    """As a terminal would show it: a progress bar is its last state."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")
