"""Waiting for what has no event of its own: looked at again and again, and bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

WITHIN_S = 30.0  # longest wait for anything that has no bound of its own; machines can be busy
LOOK_S = 0.01


async def until(condition: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
    """What ``condition`` (awaited where it must be) returns once it is true; bounded."""
    value: Any = None
    try:
        async with asyncio.timeout(within_s):
            while True:
                value = condition()
                if asyncio.iscoroutine(value):
                    value = await value
                if value:
                    return value
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise AssertionError(f"not within {within_s:g} s: {what}") from None


def eventually(condition: Callable[[], Any], within_s: float = 20.0) -> Any:
    """The same for a test without a loop."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not come true within {within_s:g} s"
        time.sleep(LOOK_S)
    return value
