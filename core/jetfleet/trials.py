"""Trial runs as the log knows them: a new model of a job runs its example input before it serves.

The values that ``fleet`` folds to; ``policies.trials`` reads them. A worker's answer counts for a
replica that was assigned to it as a trial, while it is trusted; nobody else's is obeyed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from jetfleet.specs import ModelSpec

TrialKey = tuple[str, str, str]  # tenant, job, name:version of the model
TrialStatus = Literal["unverified", "verified", "failed"]
LOST_KEPT = 8  # more do not change the back-off


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a model's trial on a job. ``unverified``: nothing, yet.

    Args:
        registry_seq: registry events known when its replica was assigned.
        lost: on which workers, and when, replicas ended without an answer; oldest first.
    """

    status: TrialStatus = "unverified"
    reason: str = ""
    worker: str = ""
    replica: str = ""
    registry_seq: int = 0
    lost: tuple[tuple[str, datetime], ...] = ()

    def failures(self) -> dict[str, tuple[datetime, ...]]:
        """``lost``, by worker: what backs it off, in place of failures of the job."""
        found: dict[str, tuple[datetime, ...]] = {}
        for worker, at in self.lost:
            found[worker] = (*found.get(worker, ()), at)
        return found


def failed_words(model: str, worker: str, reason: str) -> str:
    """That a trial failed, why, and what to do."""
    return (
        f"{model} failed its trial on {worker}: {reason}; register a new version of the model and"
        " apply it to the job, or set trial: false on the job"
    )


def untrusted_words(model: str) -> str:
    """That nobody is there to try it, and what to do."""
    return (
        f"no trusted worker is at work to try {model} first: start one with"
        " `jetfleet agent --trusted`, or set trial: false on the job"
    )


@dataclass(frozen=True, slots=True)
class Served:
    """The model that a job may have anywhere: assigned without a trial, or verified by one."""

    model: ModelSpec
    registry_seq: int
