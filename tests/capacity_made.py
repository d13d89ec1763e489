"""Capacity for tests: what providers offered and did, what is lacking, decisions in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import given
from given import at, envelope, job, model
from jetfleet import subjects
from jetfleet.capacity import CapacityState, evolve_capacity
from jetfleet.events import (
    CapacityAccepted,
    CapacityOffered,
    CapacityRefused,
    CapacityRequested,
    CapacityStarted,
    CapacityStopped,
    CapacityWithheld,
    Event,
    ProviderEvent,
    WorkerShape,
)
from jetfleet.policies.capacity import (
    Ask,
    CapacityObservation,
    Ceilings,
    GiveBack,
    Withhold,
    decide,
)
from jetfleet.policies.capacity_fit import Missing

GIB = 1024
SMALL = WorkerShape(memory_mib=4 * GIB)
BIG = WorkerShape(memory_mib=64 * GIB, price_per_hour=2.0)
A100 = WorkerShape(
    memory_mib=64 * GIB, gpus=2, gpu_memory_mib=80_000, gpu_capability=8.0, price_per_hour=3.0
)


def offered(
    provider: str = "cloud", shape: WorkerShape = SMALL, most: int = 9, **more: Any
) -> Event:
    data = {
        "provider": provider, "session": "p1", "kind": "command", "shape": shape, "most": most,
        "boot_s": 100, "lease_s": 60, "idle_s": 30, **more,
    }  # fmt: skip
    return CapacityOffered(**envelope(), data=data)


def requested(*workers: str, provider: str = "cloud", shape: WorkerShape = SMALL) -> Event:
    data = {
        "request": "q1", "provider": provider, "count": len(workers), "workers": workers,
        "shape": shape, "expires_at": at(100), "lease_s": 60, "idle_s": 30, "why": given.WHY,
        "needs": [{"tenant": given.TENANT, "job": "echo", "replicas": 1, "resources": {}}],
    }  # fmt: skip
    return CapacityRequested(**envelope(), data=data)


def said(kind: type[Event], *workers: str, provider: str = "cloud", **more: Any) -> Event:
    data: dict[str, Any] = {"provider": provider, "request": "q1", **more}
    if kind in (CapacityAccepted, CapacityRefused):
        data["workers"] = workers
    else:
        (data["worker"],) = workers
    return kind(**envelope(), data=data)


def happened(*events: Event | tuple[float, Event]) -> CapacityState:
    """The state after these, at second 0 or the one given."""
    state = CapacityState()
    for each in events:
        seconds, event = each if isinstance(each, tuple) else (0, each)
        state = evolve_capacity(state, event, at(seconds))
    return state


def lacks(
    name: str = "echo", replicas: int = 1, memory_mib: int = 3 * GIB, tenant: str = given.TENANT,
    **more: Any,
) -> Missing:  # fmt: skip
    owners = more.pop("owners", frozenset())
    for_s = more.pop("for_s", 60)
    gpu_mib = more.pop("gpu_memory_mib", 0)
    spec = job(name, of=model(name, memory_mib=memory_mib, gpu_memory_mib=gpu_mib), **more)
    return Missing(tenant, spec, replicas, for_s, owners)


def decided(
    *missing: Missing,
    after: Iterable[Event | tuple[float, Event]] = (),
    now: float = 0,
    taken: Iterable[str] = (),
    **ceilings: Any,
) -> list[str]:
    """What the policy decides, in words."""
    seen = CapacityObservation(
        at(now), missing, happened(*after), Ceilings(**ceilings), frozenset(taken)
    )
    return [in_words(each) for each in decide(seen)]


def in_words(decision: Any) -> str:
    if isinstance(decision, Ask):
        return f"{decision.count} of {decision.offer.provider}"
    if isinstance(decision, GiveBack):
        return f"give back {decision.worker.worker}"
    assert isinstance(decision, Withhold)
    return decision.reason


def withheld(reason: str = "no") -> CapacityWithheld:
    """Nobody is asked for what job echo lacks."""
    need = {"tenant": given.TENANT, "job": "echo", "replicas": 1, "resources": {}}
    why = given.WHY.model_copy(update={"reason": reason})
    return CapacityWithheld(**envelope(), data={"needs": [need], "why": why})


def one_of_each() -> list[Event]:
    """All that is said between the conductor and a provider, but for what is given back."""
    return [
        offered(), requested("cloud-1", "cloud-2"), withheld(),
        said(CapacityAccepted, "cloud-1", "cloud-2"), said(CapacityStarted, "cloud-1"),
        said(CapacityStopped, "cloud-1", reason="it has left"),
        said(CapacityRefused, "cloud-2", reason="no"),
    ]  # fmt: skip


def subject_of(event: Event) -> str:
    verb = event.type.rpartition(".")[2]
    if isinstance(event, ProviderEvent):
        return subjects.provider(event.data.provider, verb)
    return subjects.capacity_decision(verb)
