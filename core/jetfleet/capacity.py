"""Providers of workers and what they started, as a fold over FLEET.

Frozen values, no clock, no I/O. A worker is remembered from its request, in which the conductor
names it, until its provider says that it is given back (or refuses it): until then it may cost
money, joined or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import singledispatch
from typing import Literal

from jetfleet.catalog import JobKey
from jetfleet.events import (
    CapacityAccepted,
    CapacityOffered,
    CapacityRefused,
    CapacityReleased,
    CapacityRequested,
    CapacityStarted,
    CapacityStopped,
    CapacityWithheld,
    Event,
    ReplicaAssigned,
    ReplicaFailed,
    ReplicaStopped,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
    WorkerShape,
)
from jetfleet.persistent import drop, put

ProvidedStatus = Literal["asked", "accepted", "started", "joined", "releasing", "left", "lost"]
COMING = ("asked", "accepted", "started")  # not joined yet


@dataclass(frozen=True, slots=True)
class Offer:
    """What a provider offers; ``failures`` in a row since one of its workers was of use."""

    provider: str
    session: str
    kind: str
    shape: WorkerShape
    most: int
    boot_s: float
    lease_s: float
    idle_s: float
    failures: int = 0
    failed_at: datetime | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Provided:
    """A worker that was asked for, from then until it is given back."""

    worker: str
    provider: str
    request: str
    tenant: str
    jobs: tuple[JobKey, ...]
    shape: WorkerShape
    asked_at: datetime
    expires_at: datetime
    lease_s: float
    idle_s: float
    status: ProvidedStatus
    changed_at: datetime
    handle: str = ""
    session: str = ""
    joined_at: datetime | None = None
    idle_since: datetime | None = None  # None: it has a replica, or has not joined
    used: bool = False
    replicas: frozenset[str] = frozenset()

    @property
    def coming(self) -> bool:
        return self.status in COMING


@dataclass(frozen=True, slots=True)
class CapacityState:
    """``withheld``: why nobody is asked for what these jobs lack, and since when."""

    offers: Mapping[str, Offer] = field(default_factory=dict)
    workers: Mapping[str, Provided] = field(default_factory=dict)
    withheld: Mapping[JobKey, tuple[str, datetime]] = field(default_factory=dict)

    def of(self, provider: str) -> list[Provided]:
        """The workers of a provider."""
        return [each for each in self.workers.values() if each.provider == provider]


def evolve_capacity(state: CapacityState, event: Event, at: datetime) -> CapacityState:
    """Fold one event of FLEET that agrees with its subject; ``at``: when the broker took it."""
    return _evolve(event, state, at)


@singledispatch
def _evolve(event: Event, state: CapacityState, at: datetime) -> CapacityState:
    return state


# -- providers


@_evolve.register
def _(event: CapacityOffered, state: CapacityState, at: datetime) -> CapacityState:
    data = event.data
    before = state.offers.get(data.provider)
    offer = Offer(
        data.provider, data.session, data.kind, data.shape, data.most, data.boot_s, data.lease_s,
        data.idle_s,
    )  # fmt: skip
    if before is not None and before.session == data.session:
        offer = replace(
            offer, failures=before.failures, failed_at=before.failed_at, failure=before.failure
        )
    return replace(state, offers=put(state.offers, data.provider, offer))


@_evolve.register
def _(event: CapacityAccepted, state: CapacityState, at: datetime) -> CapacityState:
    for name in event.data.workers:
        known = _its(state, event.data.provider, name)
        if known is not None and known.status == "asked":
            state = _put(state, replace(known, status="accepted", changed_at=at))
    return state


@_evolve.register
def _(event: CapacityStarted, state: CapacityState, at: datetime) -> CapacityState:
    data = event.data
    known = _its(state, data.provider, data.worker)
    if known is None:
        return state
    known = replace(known, handle=data.handle)
    if known.status == "accepted":  # it may have joined before its provider could say so
        known = replace(known, status="started", changed_at=at)
    return _put(state, known)


@_evolve.register
def _(event: CapacityRefused, state: CapacityState, at: datetime) -> CapacityState:
    data = event.data
    its = [name for name in data.workers if _its(state, data.provider, name) is not None]
    for name in its:
        state = replace(state, workers=drop(state.workers, name))
    return _failed(state, data.provider, at, f"it refused: {data.reason}") if its else state


@_evolve.register
def _(event: CapacityStopped, state: CapacityState, at: datetime) -> CapacityState:
    data = event.data
    known = _its(state, data.provider, data.worker)
    if known is None:
        return state
    state = replace(state, workers=drop(state.workers, data.worker))
    if known.joined_at is not None:
        return state
    return _failed(state, data.provider, at, f"{data.worker}: {data.reason}")


def _its(state: CapacityState, provider: str, worker: str) -> Provided | None:
    """The worker, if it is this provider's; nobody else may speak for it."""
    known = state.workers.get(worker)
    return known if known is not None and known.provider == provider else None


def _put(state: CapacityState, worker: Provided) -> CapacityState:
    return replace(state, workers=put(state.workers, worker.worker, worker))


def _failed(state: CapacityState, provider: str, at: datetime, why: str) -> CapacityState:
    offer = state.offers.get(provider)
    if offer is None:
        return state
    failed = replace(offer, failures=offer.failures + 1, failed_at=at, failure=why)
    return replace(state, offers=put(state.offers, provider, failed))


# -- decisions


@_evolve.register
def _(event: CapacityRequested, state: CapacityState, at: datetime) -> CapacityState:
    data = event.data
    jobs = tuple((need.tenant, need.job) for need in data.needs)
    for name in data.workers:
        state = _put(
            state,
            Provided(
                name, data.provider, data.request, event.tenant, jobs, data.shape, at,
                data.expires_at, data.lease_s, data.idle_s, "asked", at,
            ),
        )  # fmt: skip
    for key in jobs:
        state = replace(state, withheld=drop(state.withheld, key))
    return state


@_evolve.register
def _(event: CapacityWithheld, state: CapacityState, at: datetime) -> CapacityState:
    for need in event.data.needs:
        said = (event.data.why.reason, at)
        state = replace(state, withheld=put(state.withheld, (need.tenant, need.job), said))
    return state


@_evolve.register
def _(event: CapacityReleased, state: CapacityState, at: datetime) -> CapacityState:
    data = event.data
    known = _its(state, data.provider, data.worker)
    if known is None or known.session != data.session or known.status != "joined":
        return state
    state = _put(state, replace(known, status="releasing", changed_at=at))
    if known.used:
        return state
    return _failed(state, data.provider, at, f"nothing came to run on {data.worker}")


# -- what its workers say


@_evolve.register
def _(event: WorkerJoined, state: CapacityState, at: datetime) -> CapacityState:
    known = state.workers.get(event.data.worker)
    if known is None:
        return state
    kept = known.replicas & {*event.data.replicas}
    return _put(
        state,
        replace(
            known, status="joined", changed_at=at, session=event.data.session,
            joined_at=known.joined_at or at, replicas=kept,
            idle_since=None if kept else at,
        ),
    )  # fmt: skip


@_evolve.register
def _(event: WorkerLeft, state: CapacityState, at: datetime) -> CapacityState:
    return _gone(state, event.data.worker, event.data.session, "left", at)


@_evolve.register
def _(event: WorkerLost, state: CapacityState, at: datetime) -> CapacityState:
    return _gone(state, event.data.worker, event.data.session, "lost", at)


def _gone(
    state: CapacityState, worker: str, session: str, status: ProvidedStatus, at: datetime
) -> CapacityState:
    known = state.workers.get(worker)
    if known is None or known.session != session:
        return state
    gone = replace(known, status=status, changed_at=at, replicas=frozenset(), idle_since=None)
    return _put(state, gone)


@_evolve.register
def _(event: ReplicaAssigned, state: CapacityState, at: datetime) -> CapacityState:
    known = state.workers.get(event.data.worker)
    if known is None:
        return state
    held = known.replicas | {event.data.replica}
    state = _put(state, replace(known, replicas=held, used=True, idle_since=None))
    offer = state.offers.get(known.provider)
    if offer is None or not offer.failures:
        return state
    well = replace(offer, failures=0, failed_at=None, failure="")
    return replace(state, offers=put(state.offers, known.provider, well))


@_evolve.register
def _(event: ReplicaStopped, state: CapacityState, at: datetime) -> CapacityState:
    return _without(state, event.data.worker, event.data.replica, at)


@_evolve.register
def _(event: ReplicaFailed, state: CapacityState, at: datetime) -> CapacityState:
    return _without(state, event.data.worker, event.data.replica, at)


def _without(state: CapacityState, worker: str, replica: str, at: datetime) -> CapacityState:
    known = state.workers.get(worker)
    if known is None or replica not in known.replicas:
        return state
    left = known.replicas - {replica}
    return _put(state, replace(known, replicas=left, idle_since=None if left else at))
