"""Allotment: which jobs get the replicas when there are not enough for all that is wanted.

A pure function. Higher priority first; within one priority, each job's minimum, then equal shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from jetfleet.catalog import JobKey

NAME = "priority-then-fair"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Claim:
    """What one job asks for. ``priority``: higher goes first; ``weight``: its part of a share."""

    tenant: str
    job: str
    desired: int
    min_replicas: int = 0
    priority: int = 0
    weight: float = 1.0

    @property
    def key(self) -> JobKey:
        return (self.tenant, self.job)


@dataclass(frozen=True, slots=True)
class Allotment:
    """What it gets; ``reason`` is empty where that is all it asked for."""

    claim: Claim
    granted: int
    reason: str = ""


def allot(
    claims: Sequence[Claim],
    *,
    fleet_limit: int | None = None,
    tenant_limits: Mapping[str, int] | None = None,
) -> tuple[Allotment, ...]:
    """What each claim gets, in their order. None, or a tenant not named: no limit."""
    room = _Room(fleet_limit, dict(tenant_limits or {}))
    granted: dict[JobKey, int] = {}
    short: dict[JobKey, str] = {}
    for priority in sorted({claim.priority for claim in claims}, reverse=True):
        level = [claim for claim in claims if claim.priority == priority]
        if room.fits(level):
            for claim in level:
                room.take(claim.tenant, claim.desired)
                granted[claim.key] = claim.desired
        else:
            _share(level, room, granted, short)
    return tuple(
        Allotment(
            claim,
            granted.get(claim.key, 0),
            _in_words(claim, granted.get(claim.key, 0), short.get(claim.key, "")),
        )
        for claim in claims
    )


@dataclass(slots=True)
class _Room:
    """What is left to grant; the limits of tenants shrink as they are used."""

    fleet: int | None
    tenants: dict[str, int]

    def fits(self, claims: Iterable[Claim]) -> bool:
        """Whether all of them can have what they want."""
        total, each = 0, dict.fromkeys(self.tenants, 0)
        for claim in claims:
            total += claim.desired
            if claim.tenant in each:
                each[claim.tenant] += claim.desired
        return (self.fleet is None or total <= self.fleet) and all(
            wanted <= self.tenants[tenant] for tenant, wanted in each.items()
        )

    def objection(self, tenant: str) -> str:
        """Why not one replica more; empty: there is room."""
        if self.tenants.get(tenant, 1) < 1:
            return f"tenant {tenant} has as many replicas as it may"
        if self.fleet is not None and self.fleet < 1:
            return "the fleet has as many replicas as it may"
        return ""

    def take(self, tenant: str, count: int) -> None:
        if self.fleet is not None:
            self.fleet -= count
        if tenant in self.tenants:
            self.tenants[tenant] -= count


def _share(
    level: Sequence[Claim], room: _Room, granted: dict[JobKey, int], short: dict[JobKey, str]
) -> None:
    """One replica at a time to whoever has the least for its weight, minimums first."""

    def place(claim: Claim, has: int) -> tuple[bool, float, str, str, Claim]:
        below = has < min(claim.min_replicas, claim.desired)
        return (not below, has / claim.weight, claim.tenant, claim.job, claim)

    waiting = [place(claim, 0) for claim in level if claim.desired > 0]
    heapify(waiting)
    while waiting:
        claim = heappop(waiting)[-1]
        if objection := room.objection(claim.tenant):
            short[claim.key] = objection
            continue
        room.take(claim.tenant, 1)
        has = granted[claim.key] = granted.get(claim.key, 0) + 1
        if has < claim.desired:
            heappush(waiting, place(claim, has))


def _in_words(claim: Claim, granted: int, objection: str) -> str:
    if granted >= claim.desired:
        return ""
    return f"{granted} of {claim.desired} wanted, at priority {claim.priority}: {objection}"
