"""What the placement policy decided, as events and in words."""

from __future__ import annotations

from jetfleet import subjects
from jetfleet.events import Event, ReplicaAssigned, ReplicaReleased, Why
from jetfleet.policies import placement
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


def words(decision: Decision) -> str:
    """For the conductor's own log."""
    if isinstance(decision, Assign):
        return f"→ {decision.spec.name} to {decision.worker}: {decision.reason}"
    return f"← {decision.replica.job} from {decision.replica.worker}: {decision.reason}"
