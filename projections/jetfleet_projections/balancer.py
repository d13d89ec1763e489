"""The conductor's balancing: from which backlog on slower workers of a job pull.

What the pure policy says is a ``JobBalanced`` event, when it changes by enough to matter. Workers
hear of it by nudges, which hold for some seconds and are sent again at every heartbeat: a worker
that comes new or missed one has it soon, and without a conductor all pull as they did before.

Only jobs whose workers differ in speed cost anything: once a second their consumer is asked what
it has delivered and what waits. The sum of both grows by what arrives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jetfleet.catalog import JobKey, JobState, RegistryState
from jetfleet.connection import Connection
from jetfleet.events import AnyEvent, JobBalanced, PullLevel, Why, WorkerHeartbeat
from jetfleet.fleet import FleetState
from jetfleet.policies import balancing
from jetfleet.policies.balancing import Level, Serving
from jetfleet.speeds import Speeds
from jetfleet.stamp import Stamp
from jetfleet_projections.observing import consumers

LOOK_S = 1.0  # how often consumers are asked
WINDOW_S = 5.0  # arrivals are counted over so long
LEAST_S = 1.0  # a rate over less is none
HOLD_S = 5.0  # a decision stands so long, unless it keeps somebody from work that nobody takes
STUCK_S = 2.0  # work waited so long, or a run of the slowest, and nothing was delivered
FREE_S = 30.0  # after that nobody leaves work to others for so long
LEASE_S = 10.0  # how long a nudge holds, at least
LEASE_BEATS = 5  # and so many heartbeats


@dataclass(slots=True, eq=False)
class Flow:
    """What a job's consumer said lately. Times are monotonic seconds."""

    pending: int = 0
    free_until: float = 0.0
    _looks: deque[tuple[float, int, int]] = field(default_factory=deque)  # when, delivered, pending
    _moved: float = 0.0

    def told(self, delivered: int, pending: int, now: float) -> None:
        """What was ever delivered, and what waits."""
        if self._looks and delivered < self._looks[-1][1]:
            self._looks.clear()  # the consumer was made anew
        if not pending or not self._looks or delivered != self._looks[-1][1]:
            self._moved = now
        self.pending = pending
        self._looks.append((now, delivered, pending))
        while now - self._looks[0][0] > WINDOW_S:
            self._looks.popleft()

    def rate(self) -> float | None:
        """Arrivals a second. What is delivered again counts too, what is cancelled against it."""
        (began, *first), (ended, *last) = self._looks[0], self._looks[-1]
        if ended - began < LEAST_S:
            return None
        return max(0, sum(last) - sum(first)) / (ended - began)

    def stuck(self, slowest_s: float, now: float) -> bool:
        """Whether those who should take what waits do not, or did not a short while ago."""
        if self._looks[-1][0] - self._moved > max(STUCK_S, slowest_s):
            self.free_until = now + FREE_S
        return now < self.free_until


@dataclass(slots=True, eq=False)
class Balancer:
    """Decides for the jobs that are served by workers of different speed."""

    connection: Connection
    shards: int
    stamp: Stamp
    standing: dict[JobKey, JobBalanced] = field(default_factory=dict)  # the last of each job
    flows: dict[JobKey, Flow] = field(default_factory=dict)  # of jobs that are looked at
    _wanted: dict[JobKey, Mapping[str, int]] = field(default_factory=dict)
    _looked: float = -LOOK_S

    def heard(self, event: AnyEvent) -> None:
        """An event of FLEET."""
        if isinstance(event, JobBalanced):
            key = (event.tenant, event.data.job)
            self.standing[key] = event
            self._wanted[key] = {
                worker: level.min_pending
                for level in event.data.levels
                if level.min_pending is not None
                for worker in level.workers
            }

    def restarted(self) -> None:
        """The broker was away: its consumers count anew."""
        self.flows.clear()

    # -- deciding

    async def look(
        self, registry: RegistryState, fleet: FleetState, speeds: Speeds
    ) -> dict[JobKey, tuple[Serving, ...]]:
        """Who serves the jobs that are due for a decision; what waits there is asked for."""
        now = self.stamp.clock.monotonic()
        if now - self._looked < LOOK_S:
            return {}
        self._looked = now
        for kept in (self.standing, self._wanted):
            for key in kept.keys() - registry.jobs.keys():
                del kept[key]
        due = {
            key: who for key, who in self._serving(registry, fleet, speeds)
            if self._wanted.get(key) or len(balancing.levels(who)) > 1
        }  # fmt: skip
        for key in self.flows.keys() - due.keys():
            del self.flows[key]
        jobs = [registry.jobs[key] for key in due]
        async for job, info in consumers(self.connection, self.shards, jobs):
            flow = self.flows.setdefault((job.tenant, job.spec.name), Flow())
            delivered, pending = info["delivered"]["consumer_seq"], info["num_pending"]
            flow.told(int(delivered), int(pending), self.stamp.clock.monotonic())
        return due

    def _serving(
        self, registry: RegistryState, fleet: FleetState, speeds: Speeds
    ) -> Iterator[tuple[JobKey, tuple[Serving, ...]]]:
        """Who serves each job that several serve, or of which thresholds stand, and how fast.

        Of who has told nothing yet the log knows, if it was told before: a conductor that comes
        new goes on from there.
        """
        slots: dict[JobKey, dict[str, int]] = {}
        for replica in fleet.replicas.values():
            worker = fleet.workers.get(replica.worker)
            if replica.status == "ready" and worker is not None and worker.status == "joined":
                of_job = slots.setdefault(replica.key, {})
                of_job[worker.name] = of_job.get(worker.name, 0) + replica.spec.concurrency
        for key, by_worker in slots.items():
            job = registry.jobs.get(key)
            wanted = self._wanted.get(key)
            if job is None or not (wanted or (job.spec.balancing and len(by_worker) > 1)):
                continue
            before = self.standing.get(key)
            known = {
                worker: (level.service_s, balancing.MEMORY_RUNS)
                for level in (before.data.levels if before is not None else ())
                for worker in level.workers
            }
            who = []
            for name, count in sorted(by_worker.items()):
                service_s, runs = speeds.of_worker(name, job.tenant, job.spec.model.ref)
                if name not in speeds.workers:
                    service_s, runs = known.get(name, (None, 0))
                who.append(Serving(name, count, service_s, runs))
            yield key, tuple(who)

    def decide(
        self,
        due: Mapping[JobKey, tuple[Serving, ...]],
        registry: RegistryState,
        fleet: FleetState,
    ) -> Iterator[JobBalanced]:
        """The thresholds that change."""
        for key, who in due.items():
            job, flow = registry.jobs.get(key), self.flows.get(key)
            if job is None or flow is None:
                continue
            before = self.standing.get(key)
            rate = flow.rate()
            if rate is None:
                rate = before.data.rate if before is not None else None
            if rate is None:
                continue
            slowest_s = max((each.service_s or 0.0 for each in who), default=0.0)
            stuck = flow.stuck(slowest_s, self.stamp.clock.monotonic())
            found = balancing.balance(who, rate, stuck=stuck) if job.spec.balancing else ()
            if self._due(key, before, who, found):
                yield self._event(job, found, rate, flow.pending, (registry.seq, fleet.seq))

    def _due(
        self,
        key: JobKey,
        before: JobBalanced | None,
        who: tuple[Serving, ...],
        found: tuple[Level, ...],
    ) -> bool:
        old, new = self._wanted.get(key, {}), balancing.wanted(found)
        workers = [each.worker for each in who]
        if before is None or balancing.frees(old, new, workers):
            return balancing.differs(old, new, workers)
        stood_s = (self.stamp.clock.now() - before.time).total_seconds()
        return stood_s >= HOLD_S and balancing.differs(old, new, workers)

    def _event(
        self,
        job: JobState,
        found: tuple[Level, ...],
        rate: float,
        pending: int,
        at: tuple[int, int],
    ) -> JobBalanced:
        data = JobBalanced.Data(
            job=job.spec.name,
            rate=round(rate, 3),
            pending=pending,
            levels=tuple(
                PullLevel(
                    workers=level.workers,
                    slots=level.slots,
                    service_s=round(level.service_s, 6),
                    min_pending=level.min_pending,
                )
                for level in found
            ),
            why=Why(
                policy=balancing.NAME,
                policy_version=balancing.VERSION,
                reason=_reason(job, found),
                observed_registry_seq=at[0],
                observed_fleet_seq=at[1],
            ),
        )
        return JobBalanced(**self.stamp(job.tenant), data=data)

    # -- telling

    def nudge(self, beat: WorkerHeartbeat.Data, heartbeat_s: float) -> list[dict[str, Any]]:
        """What this worker must hear now: what holds on, and what does not hold any more."""
        said = ((load.tenant, load.job, load.min_pending) for load in beat.jobs)
        return [
            self._term(tenant, job, pending, heartbeat_s)
            for tenant, job, reported in said
            if (pending := self._wanted.get((tenant, job), {}).get(beat.worker)) is not None
            or reported is not None
        ]

    def news(self, event: JobBalanced, fleet: FleetState) -> Iterator[tuple[str, dict[str, Any]]]:
        """What each worker must hear of a decision, at once."""
        for level in event.data.levels:
            for name in level.workers:
                worker = fleet.workers.get(name)
                beat_s = 0.0 if worker is None else worker.heartbeat_s
                yield name, self._term(event.tenant, event.data.job, level.min_pending, beat_s)

    def _term(
        self, tenant: str, job: str, min_pending: int | None, heartbeat_s: float
    ) -> dict[str, Any]:
        for_s = max(LEASE_S, LEASE_BEATS * heartbeat_s)
        return {"tenant": tenant, "job": job, "min_pending": min_pending, "for_s": for_s}


def _reason(job: JobState, found: tuple[Level, ...]) -> str:
    if not job.spec.balancing:
        return "balancing is off for this job: all pull whenever they are free"
    slower = [f"{_names(level.workers)}: {level.reason}" for level in found if level.min_pending]
    if slower:
        return "; ".join(slower)
    return found[-1].reason if found else "speeds are not known: all pull whenever they are free"


def _names(workers: tuple[str, ...]) -> str:
    more = f" and {len(workers) - 3} more" if len(workers) > 3 else ""
    return ", ".join(workers[:3]) + more
