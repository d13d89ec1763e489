"""Rights of workers: a token per assigned job, bound to the worker's key, for a limited time.

A worker that came with a join token gets its own rights anew here too.

A worker asks on a subject that only it may publish (``jf.auth.<worker>``), so the broker vouches
for who asks. It gets rights on a job's queue only while the log says that the job is assigned to
it. A token is useless without the worker's seed, which never leaves its machine.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jetfleet import access, subjects
from jetfleet.connection import Connection
from jetfleet.fleet import FleetState, WorkerState
from jetfleet.secrets import Secrets
from jetfleet_projections.conductor_joining import worker_credentials

logger = logging.getLogger("jetfleet.credentials")
LIFETIME_S = 3600


@dataclass(slots=True, eq=False)
class CredentialDesk:
    """Answers ``jf.auth.*``; any number of conductors share the work."""

    connection: Connection
    secrets: Secrets
    fleet: Callable[[], FleetState]
    shards: int
    worker_life_s: float
    lifetime_s: int = LIFETIME_S

    async def open(self) -> None:
        """Call when the log is folded: a worker that is not known yet would be refused."""
        await self.connection.subscribe(
            subjects.ask_credentials(subjects.ANY), self._on_request, queue="conductor"
        )

    async def _on_request(self, message: Any) -> None:
        worker = message.subject.rsplit(".", 1)[1]
        try:
            request = json.loads(message.data)
            if request.get("renew"):
                answer = self.renew(worker)
            elif "replica" in request:
                answer = self.confirm(worker, str(request["session"]), str(request["replica"]))
            else:
                answer = self.grant(worker, str(request["tenant"]), str(request["job"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            answer = {"error": "a request for credentials names tenant and job"}
        await self.connection.publish(message.reply, json.dumps(answer).encode())

    def confirm(self, worker: str, session: str, replica: str) -> dict[str, Any]:
        """``{"assigned": true}`` when the log, this session's joining included, has the replica on
        this worker; else ``{"error"}``: its worker was thought lost, and its place given anew."""
        fleet = self.fleet()
        state, mine = fleet.workers.get(worker), fleet.replicas.get(replica)
        if state is None or state.session != session or mine is None or mine.worker != worker:
            return {"error": f"replica {replica} is not assigned to worker {worker} any more"}
        return {"assigned": True}

    def grant(self, worker: str, tenant: str, job: str) -> dict[str, Any]:
        """``{"token", "expires_at"}``, or ``{"error"}`` when the job is not the worker's."""
        fleet = self.fleet()
        state = fleet.workers.get(worker)
        mine = [
            replica
            for replica in fleet.replicas.values()
            if replica.worker == worker and replica.key == (tenant, job)
        ]
        if self._revoked(worker) or state is None or not _at_work(state) or not mine:
            return {"error": f"job {job} of {tenant} is not assigned to worker {worker}"}
        now = int(time.time())
        permissions = access.job_permissions(
            worker,
            shard=subjects.shard_of(job, self.shards),
            tenant=tenant,
            job=job,
            classes=sorted({cls for replica in mine for cls in replica.spec.classes}),
        )
        token = access.user_token(
            permissions,
            account_seed=self.secrets.seed(access.WORKERS_ACCOUNT),
            user=state.public_key,
            name=f"worker-{worker}/{job}",
            issued_at=now,
            expires_at=now + self.lifetime_s,
        )
        return {"token": token, "expires_at": now + self.lifetime_s}

    def renew(self, worker: str) -> dict[str, Any]:
        """``{"token", "life_s"}`` for the key that was let in, or ``{"error"}``."""
        admission = self.fleet().admissions.get(worker)
        if admission is None:
            return {"error": f"{worker} did not join with a token: it has a credentials file"}
        if self._revoked(worker):
            return {"error": f"the join token that {worker} came with was revoked"}
        seed = self.secrets.seed(access.WORKERS_ACCOUNT)
        return worker_credentials(worker, admission.public_key, seed, self.worker_life_s)

    def _revoked(self, worker: str) -> bool:
        """Whether the token that it came with was taken back."""
        fleet = self.fleet()
        admission = fleet.admissions.get(worker)
        token = None if admission is None else fleet.tokens.get(admission.token)
        return token is not None and token.revoked


def _at_work(worker: WorkerState) -> bool:
    return worker.status in ("joined", "draining")
