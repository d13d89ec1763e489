"""How fast models run on which GPUs: a fold over heartbeats, for policies.

Frozen values, no clock, no I/O. What workers told last is kept for as long as they are known, also
for jobs that they no longer serve: that is what placing a job anew needs to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jetfleet.events import WorkerHeartbeat

MOST_WORKERS = 10_000  # the table of a fleet whose machines come and go for years stays bounded
MOST_KINDS = 1_000  # of one worker: names of models in its heartbeats are claims
# So are its numbers, with which policies compute: no run is longer (``timeout_s``), and nobody's
# word counts for more runs.
LONGEST_S, MOST_RUNS = 86_400.0, 1_000_000
Kind = tuple[str, str, str]  # tenant, model (name:version), type of GPU (empty: none)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one worker told last of a model on its GPUs. ``runs``: how many it stands for."""

    service_s: float
    runs: int


@dataclass(frozen=True, slots=True)
class Speeds:
    """The table, by worker; see ``by_model``."""

    workers: Mapping[str, Mapping[Kind, Sample]] = field(default_factory=dict)

    def by_model(self) -> dict[tuple[str, str], dict[str, dict[str, Sample]]]:
        """What was told by (tenant, model), then by type of GPU, then by worker."""
        found: dict[tuple[str, str], dict[str, dict[str, Sample]]] = {}
        for worker, samples in self.workers.items():
            for (tenant, model, gpu), sample in samples.items():
                found.setdefault((tenant, model), {}).setdefault(gpu, {})[worker] = sample
        return found

    def of_worker(self, worker: str, tenant: str, model: str) -> tuple[float | None, int]:
        """Seconds of one run on this worker, and how many runs that stands for."""
        told = self.workers.get(worker, {})  # asked for every replica: no tuple is made to compare
        samples = [each for kind, each in told.items() if kind[1] == model and kind[0] == tenant]
        if not samples:
            return None, 0
        both = samples[0]
        for each in samples[1:]:
            both = _together(both, each)
        return both.service_s, both.runs


def evolve_speeds(state: Speeds, heartbeat: WorkerHeartbeat) -> Speeds:
    """Fold one heartbeat, of a worker whose name its subject vouches for."""
    told: dict[Kind, Sample] = {}
    for load in heartbeat.data.jobs:
        if load.service_s is None or not load.finished or not load.model:
            continue
        kind = (load.tenant, load.model, load.gpu)
        sample = Sample(min(load.service_s, LONGEST_S), min(load.finished, MOST_RUNS))
        told[kind] = _together(told.get(kind), sample)
    if not told:
        return state
    worker = heartbeat.data.worker
    known = dict(state.workers)
    # What was told last comes last, so that what was not told for longest goes first.
    before = {k: s for k, s in known.pop(worker, {}).items() if k not in told}
    if len(known) >= MOST_WORKERS:
        del known[next(iter(known))]  # the one that told nothing for longest
    known[worker] = dict([*before.items(), *told.items()][-MOST_KINDS:])
    return replace(state, workers=known)


def _together(one: Sample | None, other: Sample) -> Sample:
    """Two jobs of the same model on the same worker."""
    if one is None:
        return other
    runs = one.runs + other.runs
    return Sample((one.service_s * one.runs + other.service_s * other.runs) / runs, runs)
