"""The frames between the agent and the host process of a function. Standard library only.

A frame is a header of 13 bytes and its payload:

    u32 length of the payload | u8 kind | u64 number of the call     (little endian)

Payloads are JSON text (UTF-8); the agent passes inputs, chunks and outputs through unread.
"""

from __future__ import annotations

from struct import Struct

HEADER = Struct("<IBQ")
HEADER_BYTES = HEADER.size

# From the agent.
CALL = 1  # payload: the input
CALL_STREAM = 2  # the same; each yielded value is wanted as a CHUNK, as it comes
CANCEL = 3  # no payload

# From the host.
READY = 16  # call 0; {"cancellable": bool}
FAILED = 17  # call 0; {"message": str, "traceback": str}: the function could not be loaded
CHUNK = 18  # one yielded value
RESULT = 19  # the whole output
ERROR = 20  # {"type": one of the below, "message": str, "traceback": str}

# Types of an ERROR.
RAISED = "raised"
INVALID_OUTPUT = "invalid_output"
CANCELLED = "cancelled"

Frame = tuple[int, int, bytes]  # kind, number of the call, payload


class WireError(Exception):
    """What came over the channel is no frame; the connection is of no more use."""


def frame(kind: int, call: int, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return HEADER.pack(len(payload), kind, call) + payload


class FrameReader:
    """Cuts a stream of bytes into frames; what is incomplete waits for more.

    Pieces of a large frame are joined once, when all of it is there.
    """

    __slots__ = ("_held", "_held_bytes", "_limit", "_needed")

    def __init__(self, limit: int = 2**32 - 1) -> None:
        self._limit = limit
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._needed = 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now.

        Raises:
            WireError: a frame announces more than ``limit`` bytes of payload.
        """
        if self._held:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes < self._needed:
                return []
            data = b"".join(self._held)
            self._held.clear()
        frames: list[Frame] = []
        start, end = 0, len(data)
        needed = HEADER_BYTES
        while end - start >= HEADER_BYTES:
            length, kind, call = HEADER.unpack_from(data, start)
            if length > self._limit:
                raise WireError(
                    f"a frame of {length} bytes was announced; {self._limit} is the most"
                )
            body = start + HEADER_BYTES
            needed = HEADER_BYTES + length
            if body + length > end:
                break
            frames.append((kind, call, data[body : body + length]))
            start = body + length
            needed = HEADER_BYTES
        if start < end:
            self._held.append(data[start:])
            self._held_bytes = end - start
            self._needed = needed
        return frames
