"""Payloads over the inline limit: JSON text in pieces in the PAYLOADS stream, checked by digest.

An object store whose subjects name tenant and job, because that is what a worker's permissions can
be scoped by (docs/decisions/0003). Pieces have message ids: writing one twice stores it once.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable

from jetfleet.connection import Connection
from jetfleet.errors import JetfleetError
from jetfleet.events import BlobRef
from jetfleet.streams import PAYLOADS

PIECE = 512 * 1024  # bytes; below the broker's max_payload with room for headers


class BlobUnreadable(JetfleetError):
    """A stored payload is missing or damaged."""

    code = "payload_unreadable"


async def write(
    connection: Connection,
    text: bytes,
    blob: str,
    subject: Callable[[int], str],
    *,
    worker: str | None = None,
    timeout_s: float | None = 30.0,
) -> BlobRef:
    """Store a payload; returns when all of it is durable.

    Args:
        text: JSON text.
        blob: its id, unique.
        subject: piece number to subject (``subjects.input_blob`` or ``output_blob``).
    """
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)] or [b""]
    for number, piece in enumerate(pieces):
        await connection.store(
            subject(number), piece, msg_id=f"{blob}.{number}", timeout_s=timeout_s
        )
    return BlobRef(
        blob=blob,
        pieces=len(pieces),
        size=len(text),
        sha256=hashlib.sha256(text).hexdigest(),
        worker=worker,
    )


async def read(connection: Connection, ref: BlobRef, subject: Callable[[int], str]) -> bytes:
    """The payload's JSON text.

    Raises:
        BlobUnreadable: a piece is gone (older than the stream keeps) or the digest differs.
        BrokerUnavailable: no answer in time.
    """
    parts: list[bytes] = []
    for number in range(ref.pieces):
        where = subject(number)
        reply = await connection.ask(f"$JS.API.DIRECT.GET.{PAYLOADS}.{where}", timeout_s=10)
        if (reply.headers or {}).get("Nats-Subject") != where:
            raise BlobUnreadable(
                f"piece {number} of payload {ref.blob} is gone; payloads are kept for two days"
            )
        parts.append(reply.data)
    text = b"".join(parts)
    if len(text) != ref.size or hashlib.sha256(text).hexdigest() != ref.sha256:
        raise BlobUnreadable(f"payload {ref.blob} is damaged: its digest differs")
    return text


def decode_stored(message: dict[str, str]) -> bytes:
    """The body of a message as STREAM.MSG.GET returns it (base64)."""
    return base64.b64decode(message.get("data", ""))


def to_json(value: object) -> bytes:
    """Compact JSON text.

    Raises:
        TypeError, ValueError: the value is not JSON (NaN and Infinity are not).
    """
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
