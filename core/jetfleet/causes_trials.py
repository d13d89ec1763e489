"""That a job waits for the trial of its model, or that this has failed; see ``causes``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from jetfleet.catalog import JobState
from jetfleet.fleet import FleetState
from jetfleet.policies.placement_filters import UNTRUSTED
from jetfleet.policies.trials import gate
from jetfleet.trials import failed_words, untrusted_words


def by_trial(
    fleet: FleetState, job: JobState, against: Mapping[str, str]
) -> tuple[str, str, datetime | None] | None:
    """The cause: its code and text; None: no trial is in the way. ``against``: by worker."""
    trial, model = gate(fleet, job), job.spec.model.ref
    if trial is not None and trial.status == "failed":
        return "trial_failed", failed_words(model, trial.worker, trial.reason), None
    if trial is None or not against or any(each != UNTRUSTED for each in against.values()):
        return None
    return "no_trusted_worker", untrusted_words(model), None
