"""Models and jobs as a fold over REGISTRY: ``evolve_registry(state, event, seq) -> state``.

Frozen values, no clock, no I/O, as ``fleet`` is for FLEET.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import singledispatch

from jetfleet.events import (
    Event,
    JobCreated,
    JobDeleted,
    JobDisabled,
    JobEnabled,
    JobUpdated,
    ModelRegistered,
)
from jetfleet.persistent import drop, put
from jetfleet.specs import JobSpec, ModelSpec

JobKey = tuple[str, str]  # tenant, job


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as it is now."""

    tenant: str
    spec: JobSpec
    enabled: bool
    created_seq: int
    updated_seq: int
    created_at: datetime

    @property
    def key(self) -> JobKey:
        return (self.tenant, self.spec.name)


@dataclass(frozen=True, slots=True)
class RegistryState:
    """Models and jobs; ``seq`` is the last registry event folded."""

    seq: int = 0
    models: Mapping[tuple[str, str, str], ModelSpec] = field(default_factory=dict)
    latest: Mapping[tuple[str, str], str] = field(default_factory=dict)  # newest version of a model
    jobs: Mapping[JobKey, JobState] = field(default_factory=dict)

    def model(self, tenant: str, name: str, version: str | None = None) -> ModelSpec | None:
        """A model version; the one registered last when none is named."""
        wanted = version or self.latest.get((tenant, name), "")
        return self.models.get((tenant, name, wanted))

    def default_job(self, tenant: str, model: str) -> JobState | None:
        """The job that ``/v1/models/{model}/run`` means: of the model's name, else its first."""
        named = self.jobs.get((tenant, model))
        if named is not None and named.spec.model.name == model:
            return named
        mine = [j for (t, _), j in self.jobs.items() if t == tenant and j.spec.model.name == model]
        return min(mine, key=lambda job: job.created_seq, default=None)


def evolve_registry(state: RegistryState, event: Event, seq: int) -> RegistryState:
    """Fold one registry event at stream position ``seq``."""
    return replace(_registry(event, state, seq), seq=max(seq, state.seq))


@singledispatch
def _registry(event: Event, state: RegistryState, seq: int) -> RegistryState:
    return state


@_registry.register
def _(event: ModelRegistered, state: RegistryState, seq: int) -> RegistryState:
    model = event.data.model
    key = (event.tenant, model.name, model.version)
    if key in state.models:
        return state  # immutable per version: the first registration holds
    return replace(
        state,
        models=put(state.models, key, model),
        latest=put(state.latest, key[:2], model.version),
    )


@_registry.register
def _(event: JobCreated, state: RegistryState, seq: int) -> RegistryState:
    key = (event.tenant, event.data.job.name)
    if key in state.jobs:
        return state
    job = JobState(event.tenant, event.data.job, True, seq, seq, event.time)
    return replace(state, jobs=put(state.jobs, key, job))


@_registry.register
def _(event: JobUpdated, state: RegistryState, seq: int) -> RegistryState:
    return _change_job(state, (event.tenant, event.data.job.name), seq, spec=event.data.job)


@_registry.register
def _(event: JobEnabled, state: RegistryState, seq: int) -> RegistryState:
    return _change_job(state, (event.tenant, event.data.job), seq, enabled=True)


@_registry.register
def _(event: JobDisabled, state: RegistryState, seq: int) -> RegistryState:
    return _change_job(state, (event.tenant, event.data.job), seq, enabled=False)


@_registry.register
def _(event: JobDeleted, state: RegistryState, seq: int) -> RegistryState:
    key = (event.tenant, event.data.job)
    return replace(state, jobs=drop(state.jobs, key))


def _change_job(
    state: RegistryState,
    key: JobKey,
    seq: int,
    *,
    spec: JobSpec | None = None,
    enabled: bool | None = None,
) -> RegistryState:
    job = state.jobs.get(key)
    if job is None:
        return state
    job = replace(
        job,
        spec=job.spec if spec is None else spec,
        enabled=job.enabled if enabled is None else enabled,
        updated_seq=seq,
    )
    return replace(state, jobs=put(state.jobs, key, job))
