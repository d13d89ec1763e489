"""Capacity: which workers are asked of which provider, and which are given back.

A pure function of what fits nowhere, of what providers offer and have started, and of ceilings.
``docs/capacity.md`` has the rules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import floor, inf

from jetfleet.capacity import CapacityState, Offer, Provided
from jetfleet.catalog import JobKey
from jetfleet.events import Candidate
from jetfleet.policies.capacity_fit import Missing, empty_worker, objection, pack

NAME = "next-fit"
VERSION = 1
SETTLE_S = 2.0  # what fits nowhere for less may be on its way: a worker that comes back
ANSWER_S = 30.0  # a provider that has not accepted by then is away
LATE_S = 60.0  # past its time to join, after which its provider should have said what became of it
FIRST_PAUSE_S, LONGEST_PAUSE_S = 10.0, 1800.0  # doubled with each failure in a row


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the workers of providers may come to; None: no ceiling. Money is per hour."""

    workers: int | None = None
    per_hour: float | None = None
    tenant_workers: int | None = None
    tenant_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class CapacityObservation:
    """What the policy sees.

    Args:
        missing: in the order in which jobs are served.
        taken: workers that were given a replica in this very round.
    """

    now: datetime
    missing: tuple[Missing, ...] = ()
    capacity: CapacityState = field(default_factory=CapacityState)
    ceilings: Ceilings = Ceilings()
    taken: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Ask:
    """Start so many workers of this offer, for these jobs' replicas."""

    tenant: str
    offer: Offer
    count: int
    needs: tuple[Missing, ...]
    reason: str
    candidates: tuple[Candidate, ...]  # providers


@dataclass(frozen=True, slots=True)
class Withhold:
    """Nobody is asked for these, and why."""

    tenant: str
    needs: tuple[Missing, ...]
    reason: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Drain a worker that nobody needs, and stop it."""

    worker: Provided
    reason: str


CapacityDecision = Ask | Withhold | GiveBack


def decide(seen: CapacityObservation) -> tuple[CapacityDecision, ...]:
    """The decisions due now; none where all is asked for that may be."""
    decisions: list[CapacityDecision] = [*_unneeded(seen)]
    if not seen.capacity.offers:
        return tuple(decisions)  # nobody to ask: what placement thinks of each worker says all
    budget = Budget.of(seen)
    lasting = [m for m in seen.missing if m.replicas and m.for_s >= SETTLE_S]
    for tenant in sorted({m.tenant for m in lasting}):
        decisions += _of_tenant(seen, budget, tenant, [m for m in lasting if m.tenant == tenant])
    return tuple(decisions)


# -- giving back


def _unneeded(seen: CapacityObservation) -> Iterator[GiveBack]:
    for worker in seen.capacity.workers.values():
        if worker.status != "joined" or worker.worker in seen.taken:
            continue
        if worker.idle_since is None or worker.joined_at is None:
            continue
        idle = (seen.now - worker.idle_since).total_seconds()
        had = (seen.now - worker.joined_at).total_seconds()
        if idle >= worker.idle_s and had >= worker.lease_s:
            what = "it had no replica" if worker.used else "nothing came to run on it"
            text = f"{what} for {worker.idle_s:g} s, and was kept for {worker.lease_s:g} s"
            yield GiveBack(worker, text)


# -- asking


@dataclass(slots=True)
class Budget:
    """What may still be asked for, by the ceilings."""

    ceilings: Ceilings
    counts: dict[str, int]  # workers by tenant
    costs: dict[str, float]  # an hour, by tenant
    used: dict[str, int]  # workers by provider

    @classmethod
    def of(cls, seen: CapacityObservation) -> Budget:
        budget = cls(seen.ceilings, {}, {}, {})
        for worker in seen.capacity.workers.values():
            if counts(worker, seen.now):
                budget.take(worker.tenant, worker.provider, 1, worker.shape.price_per_hour)
        return budget

    def take(self, tenant: str, provider: str, count: int, price: float) -> None:
        self.used[provider] = self.used.get(provider, 0) + count
        self.counts[tenant] = self.counts.get(tenant, 0) + count
        self.costs[tenant] = self.costs.get(tenant, 0.0) + count * price

    def room(self, tenant: str, price: float) -> tuple[float, str]:
        """How many workers of a price may be added, and which ceiling says so."""
        most, all_, mine = self.ceilings, sum(self.counts.values()), self.counts.get(tenant, 0)
        rooms = [(inf, "")]
        for what, limit, used in (
            ("the fleet's providers", most.workers, all_),
            (f"tenant {tenant}'s providers", most.tenant_workers, mine),
        ):
            if limit is not None:
                rooms.append((max(0, limit - used), f"{what} may have {_count(limit, 'worker')}"))
        spent, own = sum(self.costs.values()), self.costs.get(tenant, 0.0)
        for what, money, used_up in (
            ("the fleet's providers", most.per_hour, spent),
            (f"tenant {tenant}'s providers", most.tenant_per_hour, own),
        ):
            if money is not None and price > 0:
                # What is paid now was added up from prices, so it may be off in the last digits.
                left = floor(max(0.0, money - used_up) / price + 1e-9)
                rooms.append((left, f"{what} may cost {money:g} an hour"))
        return min(rooms)


def counts(worker: Provided, now: datetime) -> bool:
    """Whether it counts against ceilings: all but what nobody accepted in time."""
    return worker.status != "asked" or now < worker.expires_at


def _of_tenant(
    seen: CapacityObservation, budget: Budget, tenant: str, missing: Sequence[Missing]
) -> Iterator[CapacityDecision]:
    left = list(missing)
    notes: dict[JobKey, dict[str, str]] = {m.key: {} for m in left}  # why not, by provider
    for offer, coming in _in_order(seen, tenant):
        empty, fit, unfit = empty_worker(offer), list[Missing](), list[Missing]()
        for m in left:
            if why := objection(m, empty):
                notes[m.key][offer.provider] = why
            (unfit if why else fit).append(m)
        if not fit:
            continue
        room, limit = _room(seen, budget, tenant, offer)
        bins, beyond = pack(offer.shape, fit, coming + room)
        for m in beyond.values():
            notes[m.key][offer.provider] = objection(m, empty) or limit
        if (count := bins - coming) > 0:
            budget.take(tenant, offer.provider, count, offer.shape.price_per_hour)
            held = sum(m.replicas for m in fit) - sum(m.replicas for m in beyond.values())
            yield _ask(tenant, offer, (count, coming, held), fit, notes[fit[0].key])
        rest = {m.key: m for m in unfit} | beyond
        left = [rest[m.key] for m in left if m.key in rest]
    yield from _withheld(seen, tenant, left, notes)


def _in_order(seen: CapacityObservation, tenant: str) -> list[tuple[Offer, int]]:
    """Offers, and how many of their workers come: first where some do, then the cheapest."""
    coming: dict[str, int] = {}
    for worker in seen.capacity.workers.values():
        if worker.tenant == tenant and _expected(worker, seen.now):
            coming[worker.provider] = coming.get(worker.provider, 0) + 1
    offers = [(offer, coming.get(name, 0)) for name, offer in seen.capacity.offers.items()]
    return sorted(offers, key=lambda o: (not o[1], o[0].shape.price_per_hour, o[0].provider))


def _expected(worker: Provided, now: datetime) -> bool:
    """Whether it may join yet, as far as its provider has said."""
    unheard = worker.status == "asked" and (now - worker.asked_at).total_seconds() >= ANSWER_S
    return worker.coming and now < worker.expires_at and not unheard


def _ask(
    tenant: str,
    offer: Offer,
    numbers: tuple[int, int, int],
    fit: Sequence[Missing],
    passed: Mapping[str, str],
) -> Ask:
    """
    Args:
        numbers: workers asked for, those on their way before, replicas that all of them hold.
        passed: providers that were looked at before, and why not.
    """
    count, coming, held = numbers
    price = offer.shape.price_per_hour
    lacking = _count(sum(m.replicas for m in fit), "replica")
    reason = f"{_count(count + coming, 'worker')} of {offer.provider} for {held} of {lacking}"
    reason += " that fit nowhere"
    reason += f", {coming} of which are on their way" if coming else ""
    reason += f", at {price:g} an hour each" if price else ""
    candidates = (Candidate(worker=offer.provider, score=1.0), *_candidates(passed, offer.provider))
    return Ask(tenant, offer, count, tuple(fit), reason, candidates)


def _withheld(
    seen: CapacityObservation,
    tenant: str,
    left: Sequence[Missing],
    notes: Mapping[JobKey, Mapping[str, str]],
) -> Iterator[Withhold]:
    """Once for each reason: what the log says already is not said again."""
    alike: dict[str, list[Missing]] = {}
    for m in left:
        reason = "; ".join(f"{name}: {why}" for name, why in sorted(notes[m.key].items()) if why)
        known, _ = seen.capacity.withheld.get(m.key, ("", None))
        if reason and reason != known:
            alike.setdefault(reason, []).append(m)
    for reason, needs in alike.items():
        yield Withhold(tenant, tuple(needs), reason, tuple(_candidates(notes[needs[0].key])))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _candidates(said: Mapping[str, str], but: str = "") -> Iterator[Candidate]:
    for name, why in sorted(said.items()):
        if why and name != but:
            yield Candidate(worker=name, rejected=why)


def _room(seen: CapacityObservation, budget: Budget, tenant: str, offer: Offer) -> tuple[int, str]:
    """How many more of an offer's workers may be asked for, and what keeps it from being more."""
    its = seen.capacity.of(offer.provider)
    if why := unwilling(offer, its, seen.now, seen.taken):
        return 0, why
    most = max(0, offer.most - budget.used.get(offer.provider, 0))
    words = f"all {offer.most} of its workers are in use" if offer.most else "it offers none now"
    room, ceiling = budget.room(tenant, offer.shape.price_per_hour)
    return (most, words) if most <= room else (int(room), ceiling)


def _idle(worker: Provided) -> bool:
    return worker.status == "joined" and worker.idle_since is not None


def unwilling(
    offer: Offer, its: Sequence[Provided], now: datetime, taken: Collection[str] = ()
) -> str:
    """Why a provider is not asked for any worker now; empty: it may be."""
    silent = 0
    for worker in its:
        if worker.status == "asked":
            if now >= worker.expires_at:
                silent += 1
            elif (now - worker.asked_at).total_seconds() >= ANSWER_S:
                return f"it has not answered within {ANSWER_S:g} s"
        elif worker.coming and (now - worker.expires_at).total_seconds() >= LATE_S:
            return f"{worker.worker} did not join in time, and it does not say why"
        elif _idle(worker) and worker.worker not in taken:
            return f"nothing fits on {worker.worker} either, which it started"
    failures = max(offer.failures, silent)
    if not failures:
        return ""
    pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 20))
    ended = [w.expires_at for w in its if w.status == "asked" and now >= w.expires_at]
    last = max([*ended, *([offer.failed_at] if offer.failed_at else [])], default=None)
    if last is None or now >= last + timedelta(seconds=pause):
        return ""
    why = offer.failure if offer.failures >= silent else "it does not answer"
    return f"{why}; it is asked again {pause:g} s after that"
