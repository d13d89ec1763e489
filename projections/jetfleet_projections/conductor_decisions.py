"""What the placement policy decided, as events and in words."""

from __future__ import annotations

from collections.abc import Iterator

from jetfleet import subjects
from jetfleet.catalog import RegistryState
from jetfleet.events import Event, JobTried, ReplicaAssigned, ReplicaReleased, Why
from jetfleet.fleet import FleetState
from jetfleet.policies import placement, trials
from jetfleet.policies.placement import Assign, Decision, Observation
from jetfleet.stamp import Stamp


def event_of(decision: Decision, seen: Observation, stamp: Stamp, shards: int) -> tuple[Event, str]:
    """The event that says a placement decision, and its subject."""
    why = Why(
        policy=placement.NAME,
        policy_version=placement.VERSION,
        reason=decision.reason,
        observed_registry_seq=seen.registry.seq,
        observed_fleet_seq=seen.fleet.seq,
        candidates=decision.candidates,
    )
    if isinstance(decision, Assign):
        spec, tenant = decision.spec, decision.tenant
        assigned = ReplicaAssigned.Data(
            worker=decision.worker,
            job=spec.name,
            replica=stamp.clock.new_id(),
            spec=spec,
            shard=subjects.shard_of(spec.name, shards),
            gpus=decision.gpus,
            replaces=decision.replaces,
            trial=decision.trial,
            why=why,
        )
        subject = subjects.control(tenant, spec.name, "assigned", decision.worker)
        return ReplicaAssigned(**stamp(tenant), data=assigned), subject
    gone = decision.replica
    released = ReplicaReleased.Data(
        worker=gone.worker, job=gone.job, replica=gone.id, room_for=decision.room_for, why=why
    )
    subject = subjects.control(gone.tenant, gone.job, "released", gone.worker)
    return ReplicaReleased(**stamp(gone.tenant), data=released), subject


def tried(registry: RegistryState, fleet: FleetState, stamp: Stamp) -> Iterator[JobTried]:
    """The trials that have ended and of which the log does not tell yet."""
    for ended in trials.conclusions(registry, fleet):
        (tenant, job, model), trial = ended.key, ended.trial
        said = f"{trial.worker}, a trusted worker, says so"
        why = Why(
            policy=trials.NAME,
            policy_version=trials.VERSION,
            reason=f"{said}: {trial.reason}" if trial.reason else said,
            observed_registry_seq=registry.seq,
            observed_fleet_seq=fleet.seq,
        )
        data = JobTried.Data(
            job=job, model=model, status=trial.status, reason=trial.reason, worker=trial.worker,
            replica=trial.replica, keeps=ended.keeps, registry_seq=trial.registry_seq, why=why,
        )  # fmt: skip
        yield JobTried(**stamp(tenant), data=data)


def words(decision: Decision) -> str:
    """For the conductor's own log."""
    if isinstance(decision, Assign):
        on_trial = ", on trial" if decision.trial else ""
        return f"→ {decision.spec.name} to {decision.worker}{on_trial}: {decision.reason}"
    return f"← {decision.replica.job} from {decision.replica.worker}: {decision.reason}"
