"""A short cut through nats-py for subscriptions that receive by the hundred thousand.

A message costs nats-py 10 us behind its parser (20 with headers): parsed headers, an object, a
queue, a task. A reader of a stream wants none of them. ``tap`` hands the raw parts of a
subscription's messages straight to a function; everything else stays with nats-py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# subject, reply (empty: none), headers (empty: none), body
Sink = Callable[[bytes, bytes, bytes, bytes], None]
_SINKS = "_jetfleet_sinks"


def tap(client: Any, sid: int, sink: Sink) -> Callable[[], None]:
    """Give the messages of a subscription of a nats-py client to ``sink``, which must not block or
    raise. Returns the function that ends it."""
    sinks: dict[int, Sink] | None = client.__dict__.get(_SINKS)
    if sinks is None:
        sinks = client.__dict__[_SINKS] = {}
        _divert(client, sinks)
    sinks[sid] = sink

    def end() -> None:
        sinks.pop(sid, None)

    return end


def _divert(client: Any, sinks: dict[int, Sink]) -> None:
    """Look at each message before the client does."""
    others = client._process_msg

    async def process(
        sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        sink = sinks.get(sid)
        if sink is None:
            await others(sid, subject, reply, data, headers)
        else:
            sink(subject, reply, headers or b"", data)

    client._process_msg = process
