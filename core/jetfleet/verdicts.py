"""What became of a job's trial, asked of the log: the last decision on its subject says it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

from jetfleet import subjects
from jetfleet.catalog import JobState
from jetfleet.connection import Connection
from jetfleet.errors import TrialFailed
from jetfleet.events import InvalidEvent, JobTried, decode
from jetfleet.policies import trials
from jetfleet.streams import FLEET
from jetfleet.trials import failed_words

FRESH_S = 1.0  # an answer that may still change is asked for again after so long
MOST = 10_000  # answers kept


@dataclass(slots=True, eq=False)
class Verdicts:
    """Asks once a second for each job whose model has not passed; one that has is known for good.

    Jobs without a trial cost nothing.
    """

    connection: Connection
    _told: dict[tuple[str, str, str, int], tuple[float, JobTried | None]] = field(
        default_factory=dict
    )

    async def check(self, job: JobState) -> None:
        """Raises TrialFailed where nothing of the job can serve, because of its trial."""
        if not trials.due(job):
            return
        key = (job.tenant, job.spec.name, job.spec.model.ref, job.created_seq)
        at, told = self._told.get(key, (float("-inf"), None))
        now = asyncio.get_running_loop().time()
        verified = told is not None and told.data.status == "verified"
        if not verified and now - at > FRESH_S:
            told = await ask(self.connection, job)
            if len(self._told) >= MOST:
                self._told.clear()
            self._told[key] = (now, told)
        if told is None or told.data.status == "verified" or told.data.keeps:
            return
        data = told.data
        why = failed_words(data.model, data.worker, data.reason)
        raise TrialFailed(f"inference job {data.job!r} cannot serve: {why}")


async def ask(connection: Connection, job: JobState) -> JobTried | None:
    """How the trial of the job's present model ended; None: it has not, as far as is told.

    Raises:
        BrokerUnavailable: no answer in time.
    """
    last = json.dumps({"last_by_subj": subjects.tried(job.tenant, job.spec.name)}).encode()
    reply = await connection.ask(f"$JS.API.DIRECT.GET.{FLEET}", last)
    if "Nats-Sequence" not in (reply.headers or {}):
        return None
    try:
        event = decode(reply.data)
    except InvalidEvent:
        return None
    if not isinstance(event, JobTried) or event.data.registry_seq < job.created_seq:
        return None  # of a former job of its name
    return event if event.data.model == job.spec.model.ref else None
