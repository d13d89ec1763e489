"""Events for given / when / then tests: what people declared, what workers said, what was decided.

Every builder takes the names that matter in a sentence and fills in the rest. Times are seconds
after ``EPOCH``; ids count up, so that a failing test prints the same thing twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from jetfleet.catalog import RegistryState, evolve_registry
from jetfleet.events import (
    Event,
    Failure,
    InvocationCancelled,
    InvocationCancelRequested,
    InvocationCompleted,
    InvocationExpired,
    InvocationFailed,
    InvocationQueued,
    InvocationStarted,
    JobBalanced,
    JobCreated,
    JobDeleted,
    JobDisabled,
    JobEnabled,
    JobLoad,
    JobScaled,
    JobUpdated,
    ModelRegistered,
    ReplicaAssigned,
    ReplicaFailed,
    ReplicaPreparing,
    ReplicaReady,
    ReplicaReleased,
    ReplicaStopped,
    RoomFor,
    Why,
    WorkerAdmitted,
    WorkerDraining,
    WorkerHeartbeat,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
    WorkerTokenRevoked,
)
from jetfleet.fleet import FleetState, evolve_fleet
from jetfleet.images import Images, evolve_images
from jetfleet.policies.placement import Assign, Decision, Observation, place
from jetfleet.specs import GpuSpec, JobSpec, Machine, ModelSpec, Resources
from jetfleet.speeds import Speeds, evolve_speeds

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
TENANT = "default"
WHY = Why(
    policy="test",
    policy_version=1,
    reason="the test says so",
    observed_registry_seq=0,
    observed_fleet_seq=0,
)
_IDS = itertools.count(1)


def at(seconds: float) -> datetime:
    """A moment, in seconds after the beginning of the test's world."""
    return EPOCH + timedelta(seconds=seconds)


def envelope(seconds: float = 0, tenant: str = TENANT) -> dict[str, Any]:
    return {"id": f"e{next(_IDS)}", "source": "test", "time": at(seconds), "tenant": tenant}


# -- what people declare


def model(
    name: str = "echo",
    *,
    version: str = "1",
    memory_mib: int = 256,
    gpu_memory_mib: int = 0,
    gpu_capability: float | None = None,
    **more: Any,
) -> ModelSpec:
    resources = Resources(
        memory_mib=memory_mib, gpu_memory_mib=gpu_memory_mib, gpu_capability=gpu_capability
    )
    return ModelSpec(
        name=name, version=version, function="model.py:run", resources=resources, **more
    )


def job(
    name: str = "echo",
    *,
    replicas: int = 1,
    of: ModelSpec | None = None,
    memory_mib: int = 256,
    **settings: Any,
) -> JobSpec:
    """A job that wants exactly ``replicas`` replicas of ``memory_mib`` each."""
    spec = of or model(memory_mib=memory_mib)
    return JobSpec(name=name, model=spec, min_replicas=replicas, max_replicas=replicas, **settings)


def registered(spec: ModelSpec, tenant: str = TENANT) -> Event:
    return ModelRegistered(**envelope(tenant=tenant), data={"model": spec})


def created(spec: JobSpec, tenant: str = TENANT) -> Event:
    return JobCreated(**envelope(tenant=tenant), data={"job": spec})


def updated(spec: JobSpec, tenant: str = TENANT) -> Event:
    return JobUpdated(**envelope(tenant=tenant), data={"job": spec, "changed": ("model",)})


def enabled(name: str) -> Event:
    return JobEnabled(**envelope(), data={"job": name})


def disabled(name: str) -> Event:
    return JobDisabled(**envelope(), data={"job": name})


def deleted(name: str) -> Event:
    return JobDeleted(**envelope(), data={"job": name})


# -- what workers say


def gpu(
    memory_mib: int, capability: float | None = None, index: int = 0, uuid: str | None = None
) -> GpuSpec:
    return GpuSpec(
        index=index, name="GPU", uuid=uuid, memory_mib=memory_mib, compute_capability=capability
    )


def joined(
    worker: str,
    *,
    session: str = "s1",
    memory_mib: int = 4096,
    gpus: tuple[GpuSpec, ...] = (),
    **more: Any,
) -> Event:
    machine = Machine(
        hostname=worker, cpu_count=4, memory_mib=memory_mib, disk_free_mib=10_000, gpus=gpus
    )
    data = {
        "worker": worker, "session": session, "machine": machine, "agent_version": "1",
        "public_key": "U" * 56, **more,
    }  # fmt: skip
    return WorkerJoined(**envelope(), data=data)


def draining(worker: str, session: str = "s1") -> Event:
    return WorkerDraining(**envelope(), data={"worker": worker, "session": session})


def left(worker: str, session: str = "s1") -> Event:
    return WorkerLeft(**envelope(), data={"worker": worker, "session": session})


def lost(worker: str, session: str = "s1") -> Event:
    return WorkerLost(**envelope(), data={"worker": worker, "session": session, "silent_s": 9})


def admitted(
    worker: str, token: str, *, public_key: str = "U" * 56, seconds: float = 0, **terms: Any
) -> Event:
    data = {"worker": worker, "public_key": public_key, "token": token, **terms}
    return WorkerAdmitted(**envelope(seconds), data=data)


def token_revoked(token: str) -> Event:
    return WorkerTokenRevoked(**envelope(), data={"token": token})


def preparing(replica: str, worker: str, of: str = "echo") -> Event:
    return ReplicaPreparing(**envelope(), data=_replica(replica, worker, of))


def ready(
    replica: str, worker: str, of: str = "echo", seconds: float = 0, restarts: int = 0
) -> Event:
    data = {**_replica(replica, worker, of), "prepare_s": 1, "restarts": restarts}
    return ReplicaReady(**envelope(seconds), data=data)


def failed(replica: str, worker: str, of: str = "echo", seconds: float = 0) -> Event:
    data = {**_replica(replica, worker, of), "reason": "it ended"}
    return ReplicaFailed(**envelope(seconds), data=data)


def stopped(replica: str, worker: str, of: str = "echo", seconds: float = 0) -> Event:
    return ReplicaStopped(**envelope(seconds), data=_replica(replica, worker, of))


# -- what is decided


def assigned(
    replica: str, worker: str, spec: JobSpec, seconds: float = 0, gpus: tuple[str, ...] = (),
    replaces: str = "", *, registry_seq: int = 0, **more: Any,
) -> Event:  # fmt: skip
    why = WHY.model_copy(update={"observed_registry_seq": registry_seq})
    data = {
        **_replica(replica, worker, spec.name), "spec": spec, "shard": 0, "gpus": gpus, "why": why,
        "replaces": replaces, **more,
    }  # fmt: skip
    return ReplicaAssigned(**envelope(seconds), data=data)


def released(
    replica: str, worker: str, of: str = "echo", seconds: float = 0, room_for: RoomFor | None = None
) -> Event:
    data = {**_replica(replica, worker, of), "room_for": room_for, "why": WHY}
    return ReplicaReleased(**envelope(seconds), data=data)


def room_for(name: str, priority: int = 10, tenant: str = TENANT) -> RoomFor:
    return RoomFor(tenant=tenant, job=name, priority=priority)


def scaled(of: str, desired: int, *, registry_seq: int = 9, seconds: float = 0) -> Event:
    why = WHY.model_copy(update={"observed_registry_seq": registry_seq})
    data = {"job": of, "desired": desired, "wanted": desired, "why": why}
    return JobScaled(**envelope(seconds), data=data)


def balanced(
    of: str, thresholds: dict[str, int | None], *, rate: float = 60.0, seconds: float = 0
) -> Event:
    levels = [
        {"workers": (worker,), "slots": 1, "service_s": 1, "min_pending": pending}
        for worker, pending in thresholds.items()
    ]
    data = {"job": of, "rate": rate, "pending": 0, "levels": levels, "why": WHY}
    return JobBalanced(**envelope(seconds), data=data)


def serving(replica: str, worker: str, spec: JobSpec) -> tuple[Event, ...]:
    """A replica from its assignment until it serves."""
    return (assigned(replica, worker, spec), ready(replica, worker, spec.name))


def _replica(replica: str, worker: str, of: str) -> dict[str, Any]:
    return {"worker": worker, "job": of, "replica": replica}


# -- invocations


def queued(invocation: str, of: str = "echo", **more: Any) -> InvocationQueued:
    data = {
        "invocation": invocation, "job": of, "origin": "o1", "timeout_s": 10,
        "expires_at": at(3600), **more,
    }  # fmt: skip
    return InvocationQueued(**envelope(), data=data)


def started(
    invocation: str, worker: str, attempt: int = 1, seconds: float = 1, **more: Any
) -> Event:
    data = {
        "invocation": invocation, "job": "echo", "worker": worker, "replica": "r1",
        "attempt": attempt, **more,
    }  # fmt: skip
    return InvocationStarted(**envelope(seconds), data=data)


def cancel_requested(invocation: str, of: str = "echo", reason: str = "") -> Event:
    data = {
        "invocation": invocation, "job": of, "queued_seq": 1, "origin": "o1", "reason": reason,
    }  # fmt: skip
    return InvocationCancelRequested(**envelope(), data=data)


def completed(
    invocation: str, output: Any, worker: str | None = "w1", seconds: float = 2, **more: Any
) -> Event:
    data = {"invocation": invocation, "job": "echo", "worker": worker, "output": output, **more}
    return InvocationCompleted(**envelope(seconds), data=data)


def failed_with(invocation: str, error: Failure, **more: Any) -> Event:
    data = {"invocation": invocation, "job": "echo", "error": error, **more}
    return InvocationFailed(**envelope(), data=data)


def cancelled(invocation: str, reason: str = "", seconds: float = 2, **more: Any) -> Event:
    data = {"invocation": invocation, "job": "echo", "reason": reason, **more}
    return InvocationCancelled(**envelope(seconds), data=data)


def expired(invocation: str, **more: Any) -> Event:
    data = {"invocation": invocation, "job": "echo", "expires_at": at(0), **more}
    return InvocationExpired(**envelope(), data=data)


# -- folds


def registry(*events: Event | Iterable[Event], onto: RegistryState | None = None) -> RegistryState:
    """The state after these events, at positions that follow each other."""
    state = onto or RegistryState()
    for event in _flat(events):
        state = evolve_registry(state, event, state.seq + 1)
    return state


def fleet(*events: Event | Iterable[Event], onto: FleetState | None = None) -> FleetState:
    """The state after these events, at positions that follow each other."""
    state = onto or FleetState()
    for event in _flat(events):
        state = evolve_fleet(state, event, state.seq + 1)
    return state


def _flat(events: Iterable[Event | Iterable[Event]]) -> Iterable[Event]:
    for event in events:
        if isinstance(event, Event):
            yield event
        else:
            yield from event


# -- placement


def took(worker: str, seconds: float, of: str = "echo:1", on: str = "", runs: int = 10) -> Event:
    """A heartbeat: one run of this model takes a worker so long, on this type of GPU."""
    load = JobLoad(
        job="any", tenant=TENANT, replicas_ready=1, slots=1, running=0, finished=runs,
        busy_s=seconds * runs, model=of, gpu=on, service_s=seconds,
    )  # fmt: skip
    return WorkerHeartbeat(**envelope(), data={"worker": worker, "session": "s1", "jobs": (load,)})


def world(
    declared: Iterable[Event],
    happened: Iterable[Event | Iterable[Event]],
    heard: Iterable[Event] = (),
) -> Observation:
    """What placement sees once people declared this, the fleet said that, and these heartbeats."""
    state, images, speeds = FleetState(), Images(), Speeds()
    for event in _flat(happened):
        state = fleet(event, onto=state)
        images = evolve_images(images, event, state)
    for beat in heard:
        assert isinstance(beat, WorkerHeartbeat)
        speeds = evolve_speeds(speeds, beat)
    return Observation(registry(*declared), state, speeds, images)


def decide(
    declared: Iterable[Event],
    happened: Iterable[Event | Iterable[Event]],
    seconds: float = 0,
    heard: Iterable[Event] = (),
) -> list[str]:
    """What placement decides then, in words."""
    return in_words(place(world(declared, happened, heard), at(seconds)))


def obeyed(seen: Observation, decisions: Iterable[Decision], seconds: float = 0) -> Observation:
    """The observation once these decisions are in the log."""
    state = seen.fleet
    for decision in decisions:
        if isinstance(decision, Assign):
            event = assigned(
                f"r{next(_IDS)}", decision.worker, decision.spec, seconds, decision.gpus,
                decision.replaces, trial=decision.trial, registry_seq=seen.registry.seq,
            )  # fmt: skip
        else:
            gone = decision.replica
            event = released(gone.id, gone.worker, gone.job, seconds, decision.room_for)
        state = fleet(event, onto=state)
    return replace(seen, fleet=state)


def in_words(decisions: Iterable[Decision]) -> list[str]:
    """Decisions as a person would say them: ``echo on w1``, ``try echo on w1``, ``release r1``."""
    return [
        f"{'try ' if decision.trial else ''}{decision.spec.name} on {decision.worker}"
        if isinstance(decision, Assign)
        else f"release {decision.replica.id}"
        for decision in decisions
    ]
