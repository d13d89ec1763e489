"""The conductor's scaling: what the pure policies say, as decisions in the log.

A job's number changes by a ``JobScaled`` event alone. What a policy needs to remember is what this
conductor saw and what the log says others decided, so two of them hold the same numbers. One that
has just started lets nothing go for as long as its policy looks back.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import nsmallest

from jetfleet.catalog import JobKey, JobState, RegistryState
from jetfleet.events import AnyEvent, JobScaled, ReplicaReady, Why
from jetfleet.fleet import FleetState, ReplicaState
from jetfleet.policies import scaling
from jetfleet.policies.observation import JobObservation, Past
from jetfleet.policies.scaling import ScalingDecision
from jetfleet.scaling_specs import StaticScaling
from jetfleet.speeds import Speeds
from jetfleet.stamp import Stamp
from jetfleet_projections.observing import Watcher, observation, services_of

COLD_STARTS = 8  # of the last so many is the mean taken
LONGEST_START_S = 3600.0  # a worker says how long one took, and policies compute with it
TAKE_OVER_S = 2.0  # what the one that decided last leaves undone this long, another does
LOOK_S = 0.5  # how often a job is looked at; one that had nothing to do, at its first invocation
# So many a round, those first that wait longest: 1,000 jobs are looked at every two seconds, and
# neither the broker nor the round has a thousand questions at once.
MOST_LOOKED_AT = 250


@dataclass(slots=True, eq=False)
class Scaler:
    """Decides for the jobs whose scaling is not static."""

    watcher: Watcher
    stamp: Stamp
    _starts: dict[JobKey, list[float]] = field(default_factory=dict)  # heard before it is watched
    _pasts: dict[JobKey, tuple[Past, ...]] = field(default_factory=dict)
    _raised: dict[JobKey, datetime] = field(default_factory=dict)  # by another, when
    _decider: dict[JobKey, str] = field(default_factory=dict)  # who decided last
    _differs: dict[JobKey, datetime] = field(default_factory=dict)  # since when we would otherwise

    def heard(self, event: AnyEvent, fleet: FleetState) -> None:
        """An event of FLEET: what another conductor decided, and how long a start took.

        ``fleet`` knows its replica, whose job and worker are no claims.
        """
        if isinstance(event, ReplicaReady) and not event.data.adopted:
            replica = fleet.replicas.get(event.data.replica)
            if replica is not None and replica.worker == event.data.worker:
                starts = self._starts.setdefault(replica.key, [])
                starts.append(min(event.data.prepare_s, LONGEST_START_S))
                del starts[:-COLD_STARTS]
        if isinstance(event, JobScaled):
            self._decider[event.tenant, event.data.job] = event.source
        if isinstance(event, JobScaled) and event.source != self.stamp.source:
            key, data = (event.tenant, event.data.job), event.data
            if data.before is None or data.desired > data.before:
                self._raised[key] = event.time
            if key in self._pasts:
                told = list(self._pasts[key])
                insort(told, Past(event.time, data.wanted, data.desired, data.surge), key=_when)
                self._pasts[key] = tuple(told)

    async def look(self, registry: RegistryState) -> list[JobState]:
        """The jobs due for a decision, their depths up to date."""
        adaptive = {
            key: job
            for key, job in registry.jobs.items()
            if not isinstance(job.spec.scaling, StaticScaling)
        }
        await self.watcher.follow(adaptive)
        for kept in (self._pasts, self._raised, self._starts, self._decider, self._differs):
            for key in kept.keys() - adaptive.keys():
                del kept[key]
        now = self.watcher.monotonic()
        watches = self.watcher.watches
        due = [
            key for key in adaptive
            if watches[key].asked_at < 0 or now - watches[key].asked_at >= LOOK_S
        ]  # fmt: skip
        first = nsmallest(MOST_LOOKED_AT, due, key=lambda key: watches[key].asked_at)
        return await self.watcher.ask(adaptive[key] for key in first)

    def decide(
        self, jobs: list[JobState], registry: RegistryState, fleet: FleetState, speeds: Speeds
    ) -> Iterator[JobScaled]:
        """The numbers that change."""
        by_job: dict[JobKey, list[ReplicaState]] = {}
        for replica in fleet.replicas.values() if jobs else ():
            by_job.setdefault(replica.key, []).append(replica)
        told = speeds.by_model() if jobs else {}
        now = self.stamp.clock.now()
        for job in jobs:
            key = (job.tenant, job.spec.name)
            watch = self.watcher.watches.get(key)
            if watch is None or key not in registry.jobs:
                continue
            before = fleet.desired(job)
            seen = observation(
                job, watch, fleet=fleet, replicas=by_job.get(key, ()),
                services=services_of(told.get((job.tenant, job.spec.model.ref), {})),
                starts_s=self._starts.get(key, ()), history=self._history(key, before, now),
                now=now, monotonic=self.watcher.monotonic(),
            )  # fmt: skip
            found = scaling.scale(seen, job.spec.scaling)
            desired = settle(seen, found, before)
            for_s = scaling.memory_s(job.spec.scaling, seen.cold_start_s)
            if before is not None and desired < before and self._others_need(key, now, for_s):
                desired = min(before, seen.max_replicas)
            if before is not None and self._left_to_another(key, desired != before, now):
                desired = before
            watch.asleep = not seen.capacity and not desired
            self._remember(key, found, desired, now, for_s)
            if desired != before:
                at = (registry.seq, fleet.seq)
                yield self._event(job, found, before=before, desired=desired, at=at)

    def _history(self, key: JobKey, before: int | None, now: datetime) -> tuple[Past, ...]:
        """Beginning, for one that has just started, with what the log says is wanted now.

        Empty for a job of which nothing was decided: what there is may be of another of its name.
        """
        if before is None:
            self._pasts[key] = ()
        elif key not in self._pasts:
            self._pasts[key] = (Past(now, before, before),)
        return self._pasts[key]

    def _others_need(self, key: JobKey, now: datetime, for_s: float) -> bool:
        """Whether another conductor, which may have seen more, has just raised the number."""
        raised = self._raised.get(key)
        return raised is not None and now - raised < timedelta(seconds=for_s)

    def _left_to_another(self, key: JobKey, differs: bool, now: datetime) -> bool:
        """Whether a change is due that the conductor which decided last may be about to make.

        With one deciding, what two see a little differently does not turn the number to and fro.
        """
        if not differs:
            self._differs.pop(key, None)
            return False
        since = self._differs.setdefault(key, now)
        if self._decider.get(key, self.stamp.source) == self.stamp.source:
            return False
        return now - since < timedelta(seconds=TAKE_OVER_S)

    def _remember(
        self, key: JobKey, found: ScalingDecision, desired: int, now: datetime, for_s: float
    ) -> None:
        """Of equal ones that follow each other the first and the last are enough."""
        pasts = scaling.remember(self._pasts[key], found, now, for_s)
        last = Past(now, found.wanted, desired, found.surge)
        alike = len(pasts) > 2 and all(
            (p.wanted, p.desired, p.surge) == (last.wanted, last.desired, last.surge)
            for p in pasts[-3:-1]
        )
        self._pasts[key] = (*pasts[: -2 if alike else -1], last)

    def _event(
        self,
        job: JobState,
        found: ScalingDecision,
        *,
        before: int | None,
        desired: int,
        at: tuple[int, int],
    ) -> JobScaled:
        data = JobScaled.Data(
            job=job.spec.name,
            before=before,
            desired=desired,
            wanted=found.wanted,
            surge=found.surge,
            inputs={
                name: round(value, 6)
                for name, value in found.inputs.items()
                if name != "oldest_wait_s"  # which nobody measures here
            },
            why=Why(
                policy=found.policy,
                policy_version=found.version,
                reason=found.reason,
                observed_registry_seq=at[0],
                observed_fleet_seq=at[1],
            ),
        )
        return JobScaled(**self.stamp(job.tenant), data=data)


def settle(seen: JobObservation, found: ScalingDecision, before: int | None) -> int:
    """The number to put in the log: what is remembered keeps replicas, and never adds any.

    Two conductors remember different things. If one could raise for what it remembers alone, it
    would undo what the other has just decided, and be undone in turn.
    """
    if before is None or found.desired <= before:
        return found.desired
    now_wanted = max(found.wanted, seen.min_replicas, 1 if seen.unfinished else 0)
    return max(min(before, seen.max_replicas), min(found.desired, now_wanted))


def _when(past: Past) -> datetime:
    return past.at
