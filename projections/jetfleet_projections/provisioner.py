"""The conductor's capacity: what fits nowhere is asked of providers, what idles is given back.

What the pure policy says is an event. Beside the log it remembers only since when something is
missing, so that a worker which comes back in a moment is waited for. A worker that is given back is
told to drain by nudges, which may be lost and are sent until it has left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from jetfleet import subjects
from jetfleet.capacity import CapacityState, evolve_capacity
from jetfleet.catalog import JobKey
from jetfleet.events import (
    AnyEvent,
    CapacityNeed,
    CapacityReleased,
    CapacityRequested,
    CapacityWithheld,
    Event,
    Why,
)
from jetfleet.policies import capacity
from jetfleet.policies.capacity import (
    Ask,
    CapacityObservation,
    Ceilings,
    GiveBack,
    Withhold,
)
from jetfleet.policies.capacity_fit import Missing
from jetfleet.policies.placement_search import Assign, Round
from jetfleet.settings import Settings
from jetfleet.stamp import Stamp

NUDGE_S = 1.0


@dataclass(slots=True, eq=False)
class Provisioner:
    """See the module."""

    settings: Settings
    stamp: Stamp
    state: CapacityState = field(default_factory=CapacityState)
    _since: dict[JobKey, float] = field(default_factory=dict)  # monotonic; what is missing
    _nudged: dict[str, float] = field(default_factory=dict)  # monotonic; by worker

    def heard(self, event: AnyEvent, at: datetime) -> None:
        """An event of FLEET, when the broker took it."""
        self.state = evolve_capacity(self.state, event, at)

    def decide(self, work: Round) -> Iterator[tuple[Event, str, str]]:
        """Events of what is due after this round of placement, their subjects, and words."""
        if not self.state.offers and not self.state.workers:
            return
        seen = CapacityObservation(
            self.stamp.clock.now(), self._missing(work), self.state, self._ceilings(),
            frozenset(d.worker for d in work.decisions if isinstance(d, Assign)),
        )  # fmt: skip
        for decision in capacity.decide(seen):
            event = self._event(decision, work, seen.now)
            verb = event.type.rpartition(".")[2]
            yield event, subjects.capacity_decision(verb), _words(event)

    def leaving(self) -> Iterator[str]:
        """Workers to be told to drain, each once a second."""
        now = self.stamp.clock.monotonic()
        releasing = {w.worker for w in self.state.workers.values() if w.status == "releasing"}
        for gone in self._nudged.keys() - releasing:
            del self._nudged[gone]
        for worker in releasing:
            if now - self._nudged.get(worker, -NUDGE_S) >= NUDGE_S:
                self._nudged[worker] = now
                yield worker

    def _missing(self, work: Round) -> tuple[Missing, ...]:
        now, jobs = self.stamp.clock.monotonic(), work.seen.registry.jobs
        for key in self._since.keys() - work.unplaced.keys():
            del self._since[key]
        owners: dict[JobKey, set[str]] = {
            key: set() for key in work.unplaced if jobs[key].spec.placement.apart == "owners"
        }
        for replica in work.fleet.replicas.values() if owners else ():
            worker = work.fleet.workers.get(replica.worker)
            if replica.key in owners and worker is not None and worker.status == "joined":
                owners[replica.key].add(worker.owner)
        return tuple(
            Missing(
                key[0], jobs[key].spec, count, now - self._since.setdefault(key, now),
                frozenset(owners.get(key, ())),
            )
            for key, count in work.unplaced.items()
        )  # fmt: skip

    def _ceilings(self) -> Ceilings:
        of = self.settings
        return Ceilings(
            of.capacity_workers, of.capacity_per_hour, of.capacity_tenant_workers,
            of.capacity_tenant_per_hour,
        )  # fmt: skip

    def _event(self, decision: capacity.CapacityDecision, work: Round, now: datetime) -> Event:
        why = Why(
            policy=capacity.NAME,
            policy_version=capacity.VERSION,
            reason=decision.reason,
            observed_registry_seq=work.seen.registry.seq,
            observed_fleet_seq=work.seen.fleet.seq,
            candidates=() if isinstance(decision, GiveBack) else decision.candidates,
        )
        if isinstance(decision, Ask):
            return self._requested(decision, why, now)
        if isinstance(decision, Withhold):
            withheld = CapacityWithheld.Data(needs=_needs(decision), why=why)
            return CapacityWithheld(**self.stamp(decision.tenant), data=withheld)
        gone = decision.worker
        released = CapacityReleased.Data(
            request=gone.request,
            provider=gone.provider,
            worker=gone.worker,
            session=gone.session,
            why=why,
        )
        return CapacityReleased(**self.stamp(gone.tenant), data=released)

    def _requested(self, ask: Ask, why: Why, now: datetime) -> CapacityRequested:
        offer, request = ask.offer, self.stamp.clock.new_id()
        data = CapacityRequested.Data(
            request=request,
            provider=offer.provider,
            count=ask.count,
            workers=tuple(name_of(offer.provider, request, n) for n in range(ask.count)),
            shape=offer.shape,
            needs=_needs(ask),
            expires_at=now + timedelta(seconds=offer.boot_s),
            lease_s=offer.lease_s,
            idle_s=offer.idle_s,
            why=why,
        )
        return CapacityRequested(**self.stamp(ask.tenant), data=data)


def name_of(provider: str, request: str, number: int) -> str:
    """The name of a request's worker. ``request``: a UUIDv7, whose end is random."""
    return f"{provider[:40]}-{request[-8:]}-{number + 1}"


def _needs(decision: Ask | Withhold) -> tuple[CapacityNeed, ...]:
    return tuple(
        CapacityNeed(
            tenant=m.tenant,
            job=m.spec.name,
            replicas=m.replicas,
            resources=m.spec.model.resources,
            labels=m.spec.placement.labels,
            trusted=m.spec.placement.trusted,
            max_price_per_hour=m.spec.placement.max_price_per_hour,
        )
        for m in decision.needs
    )


def _words(event: Event) -> str:
    """For the conductor's own log."""
    if isinstance(event, CapacityRequested):
        return f"+ {', '.join(event.data.workers)}: {event.data.why.reason}"
    if isinstance(event, CapacityReleased):
        return f"- {event.data.worker} is given back: {event.data.why.reason}"
    assert isinstance(event, CapacityWithheld)
    jobs = ", ".join(need.job for need in event.data.needs)
    return f"! no worker is asked for {jobs}: {event.data.why.reason}"
