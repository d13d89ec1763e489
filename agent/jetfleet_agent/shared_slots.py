"""The slots of a worker with a limit over all of its jobs: who gets one that is free.

``jetfleet.policies.fairness`` decides, of run seconds as they were measured. Without a limit jobs
do not contend here, and none of this runs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jetfleet.policies import fairness
from jetfleet.policies.fairness import Claim, Ledger
from jetfleet_agent.class_pulls import ClassPulls

if TYPE_CHECKING:
    from jetfleet_agent.worker import JobWorker


@dataclass(slots=True, eq=False)
class SharedSlots:
    """``total``: most invocations at once, over all jobs."""

    total: int
    _pulls: dict[JobWorker, ClassPulls] = field(default_factory=dict)
    _charged_s: dict[JobWorker, float] = field(default_factory=dict)  # of what each has run
    _ledger: Ledger = field(default_factory=Ledger)
    _scheduled: bool = False

    def join(self, job: JobWorker, pull: ClassPulls) -> None:
        """From now on it gets slots by ``pull.fill``; whenever that may change: ``changed``."""
        self._pulls[job], self._charged_s[job] = pull, job.busy_s

    def leave(self, job: JobWorker) -> None:
        """Its slots are for the others."""
        if self._pulls.pop(job, None) is not None:
            del self._charged_s[job]
            self.changed()

    def changed(self) -> None:
        """Share out what is free; once per turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._share)

    def _share(self) -> None:
        self._scheduled = False
        spent = dict[fairness.Key, float]()
        for job in self._pulls:
            spent[job.key] = spent.get(job.key, 0.0) + job.busy_s - self._charged_s[job]
            self._charged_s[job] = job.busy_s
        self._ledger = fairness.spent(self._ledger, spent)
        free = self.total - sum(job.running + pull.asked for job, pull in self._pulls.items())
        serving = {job.key: (job, pull) for job, pull in self._pulls.items() if not job.draining}
        claims = [_claim(job, pull) for job, pull in serving.values()]
        self._ledger, granted = fairness.share(self._ledger, claims, max(0, free))
        for key, count in granted.items():
            serving[key][1].fill(count)


def _claim(job: JobWorker, pull: ClassPulls) -> Claim:
    at_work = job.running + pull.asked
    run_s = fairness.QUANTUM_S if job.service_s is None else job.service_s
    return Claim(
        job.key,
        pull.appetite,
        busy=pull.waits or at_work > 0,
        weight=job.spec.weight,
        running_s=at_work * run_s,
        run_s=run_s,
    )
