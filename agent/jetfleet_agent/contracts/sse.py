"""Reading server-sent events, as OpenAI-compatible servers write them."""

from __future__ import annotations


class EventTooLarge(Exception):
    """An event is longer than the reader's limit, and has not ended."""


class EventReader:
    """Cuts a stream of bytes into events: pairs of a name (mostly empty) and data.

    ``error: {...}``, which llama.cpp writes, is read as an event named ``error``.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line: list[bytes] = []  # pieces of the line that has not ended
        self._name = b""
        self._data: list[bytes] = []
        self._size = 0  # bytes held

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The events that are complete now. Raises EventTooLarge."""
        events: list[tuple[str, bytes]] = []
        first, *rest = data.split(b"\n")
        self._line.append(first)
        for piece in rest:
            self._take(b"".join(self._line).removesuffix(b"\r"), events)
            self._line = [piece]
        self._size += len(data)
        if self._size > self._limit and not events:
            raise EventTooLarge
        if events:
            self._size = len(self._line[0])
        return events

    def close(self) -> list[tuple[str, bytes]]:
        """The stream ended: an event whose empty line is missing counts as complete."""
        return self.feed(b"\n\n")

    def _take(self, line: bytes, events: list[tuple[str, bytes]]) -> None:
        if not line:
            if self._data:
                events.append((self._name.decode("utf-8", "replace"), b"\n".join(self._data)))
            self._name, self._data = b"", []
            return
        field, _, value = line.partition(b":")  # a comment has an empty field
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
        elif field == b"error":
            self._name = field
            self._data.append(value)
