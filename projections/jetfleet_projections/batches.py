"""A run of messages of one stream, in columns: what readers make and the warehouse takes."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass(slots=True)
class Batch:
    """Messages in stream order. ``times``: the broker's, nanoseconds since 1970."""

    stream: str
    seqs: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.seqs)

    def add(self, seq: int, time_ns: int, subject: str, body: bytes) -> None:
        self.seqs.append(seq)
        self.times.append(time_ns)
        self.subjects.append(subject)
        self.bodies.append(body)

    def part(self, start: int, stop: int | None = None) -> Batch:
        """The messages with these indexes."""
        cut = slice(start, stop)
        return Batch(
            self.stream, self.seqs[cut], self.times[cut], self.subjects[cut], self.bodies[cut]
        )

    def after(self, seq: int) -> Batch:
        """The messages behind a position: what was delivered again is left out."""
        return (
            self if not self.seqs or self.seqs[0] > seq else self.part(bisect_right(self.seqs, seq))
        )
