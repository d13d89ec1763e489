"""The trial of a replica: its model's example input, through the contract, before it serves."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pydantic_core

from jetfleet.limits import excess
from jetfleet_agent.contracts import Call, CallFailed
from jetfleet_agent.replicas import Replica

REASON_LIMIT = 2_000


@dataclass(frozen=True, slots=True)
class Answer:
    """How it went. ``reason``: why the model did not pass; empty: it did."""

    reason: str
    run_s: float


async def run_example(replica: Replica) -> Answer:
    """Run the example once, for as long as the job gives an attempt."""
    began = time.monotonic()
    reason = await _why_not(replica)
    text = reason[:REASON_LIMIT].encode(errors="backslashreplace").decode()
    return Answer(text, time.monotonic() - began)


async def _why_not(replica: Replica) -> str:
    session, limit_s = replica.session, replica.spec.timeout_s
    if session is None:
        return "the model's process ended before its example was run"
    call = Call(f"trial-{replica.id}", pydantic_core.to_json(replica.spec.model.example_input))
    try:
        async with asyncio.timeout(limit_s):
            raw = await session.invoke(call)
        pydantic_core.from_json(raw, allow_inf_nan=False)
    except TimeoutError:
        return f"it ran longer than timeout_s ({limit_s:g} s)"
    except CallFailed as error:
        return f"{error.code}: {error.message}"
    except ValueError as error:
        return f"invalid_output: {excess(raw) or f'it is not JSON: {error}'}"
    return excess(raw) or ""
