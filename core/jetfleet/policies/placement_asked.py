"""What placement thinks without deciding: asked to explain what was not decided."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from jetfleet.catalog import JobState
from jetfleet.fleet import FleetState, ReplicaState
from jetfleet.policies.placement import Observation, _current, _needs, _wanted
from jetfleet.policies.placement_preempt import Precedence
from jetfleet.policies.placement_rooms import rooms_of
from jetfleet.policies.placement_search import Round, Search


def wanted(observation: Observation, job: JobState) -> int:
    """How many replicas a job shall have now."""
    return _wanted(observation.fleet, job, len(staying(observation.fleet, job)))


def staying(fleet: FleetState, job: JobState) -> list[ReplicaState]:
    """A job's replicas on workers at work, without those that are let go."""
    key = (job.tenant, job.spec.name)
    joined = {name for name, worker in fleet.workers.items() if worker.status == "joined"}
    return [
        r for r in fleet.replicas.values()
        if r.key == key and r.status != "releasing" and r.worker in joined
    ]  # fmt: skip


def objections(observation: Observation, job: JobState, now: datetime) -> Mapping[str, str]:
    """What stands against one more replica of a job on each worker at work; empty: nothing."""
    work = Round(observation, rooms_of(observation.fleet), now)
    search = Search.of(work, job, _current(work, job, staying(observation.fleet, job)))
    return {name: search.objection(room) for name, room in sorted(work.rooms.items())}


def room_could_be_made(observation: Observation, job: JobState, now: datetime) -> bool:
    """Whether less important replicas could make room for one more of a job."""
    jobs = observation.registry.jobs.values()
    work = Round(observation, rooms_of(observation.fleet), now)
    rights = Precedence(work, min(other.spec.placement.priority for other in jobs))
    if rights.may(job):
        current = _current(work, job, staying(observation.fleet, job))
        rights.make_room(job, current, 1, _needs(job.spec))
    return bool(work.decisions)
