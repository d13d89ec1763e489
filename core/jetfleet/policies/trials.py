"""Trials: whether a job's model may be placed anywhere, or has to run its example input first.

Pure functions of the folds. ``gate`` is asked wherever a replica is placed; the search that it
closes assigns trials on trusted workers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jetfleet.catalog import JobState, RegistryState
from jetfleet.fleet import FleetState
from jetfleet.trials import Trial, TrialKey

NAME = "trial"
VERSION = 1
_UNTRIED = Trial()


@dataclass(frozen=True, slots=True)
class Conclusion:
    """A trial that has ended. ``keeps``: the model that serves on in its place; empty: none."""

    key: TrialKey
    trial: Trial
    keeps: str


def due(job: JobState) -> bool:
    """Whether the job's model is to be tried: it has an example, and the job does not opt out."""
    return job.spec.trial and job.spec.model.example_input is not None


def standing(fleet: FleetState, job: JobState) -> Trial:
    """The trial of the job's present model; one of a former job of its name does not count."""
    found = fleet.trials.get((job.tenant, job.spec.name, job.spec.model.ref), _UNTRIED)
    if found.status != "unverified" and found.registry_seq < job.created_seq:
        return Trial(lost=found.lost)
    return found


def gate(fleet: FleetState, job: JobState) -> Trial | None:
    """What keeps the job's model from being placed as usual; None: nothing."""
    if not due(job):
        return None
    trial = standing(fleet, job)
    if trial.status == "verified":
        return None
    served = fleet.served_model(job)
    if trial.status == "unverified" and served is not None and served.ref == job.spec.model.ref:
        return None  # it is out there already: from before it was to be tried
    return trial


def before(fleet: FleetState, job: JobState) -> JobState | None:
    """The job with the model that it had before the one that is closed off; None: it had none."""
    served = fleet.served_model(job)
    if served is None or served.ref == job.spec.model.ref:
        return None
    return replace(job, spec=job.spec.model_copy(update={"model": served}))


def conclusions(registry: RegistryState, fleet: FleetState) -> Iterator[Conclusion]:
    """Trials that have ended and of which no decision tells yet."""
    for key in fleet.untold:
        tenant, name, _ = key
        trial, keeps = fleet.trials[key], ""
        job = registry.jobs.get((tenant, name))
        if job is not None and trial.status == "failed":
            served = fleet.served_model(job)
            keeps = "" if served is None or served.ref == key[2] else served.ref
        yield Conclusion(key, trial, keeps)
