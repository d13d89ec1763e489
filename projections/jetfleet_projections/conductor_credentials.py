"""Rights of workers: a token per assigned job, bound to the worker's key, for a limited time.

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
from jetfleet.fleet import FleetState
from jetfleet.secrets import Secrets

logger = logging.getLogger("jetfleet.credentials")
LIFETIME_S = 3600


@dataclass(slots=True, eq=False)
class CredentialDesk:
    """Answers ``jf.auth.*``; any number of conductors share the work."""

    connection: Connection
    secrets: Secrets
    fleet: Callable[[], FleetState]
    shards: int
    lifetime_s: int = LIFETIME_S

    async def open(self) -> None:
        await self.connection.subscribe(
            subjects.ask_credentials(subjects.ANY), self._on_request, queue="conductor"
        )

    async def _on_request(self, message: Any) -> None:
        worker = message.subject.rsplit(".", 1)[1]
        try:
            request = json.loads(message.data)
            answer = self.grant(worker, str(request["tenant"]), str(request["job"]))
        except (ValueError, KeyError, TypeError):
            answer = {"error": "a request for credentials names tenant and job"}
        await self.connection.publish(message.reply, json.dumps(answer).encode())

    def grant(self, worker: str, tenant: str, job: str) -> dict[str, Any]:
        """``{"token", "expires_at"}``, or ``{"error"}`` when the job is not the worker's."""
        fleet = self.fleet()
        state = fleet.workers.get(worker)
        mine = [
            replica
            for replica in fleet.replicas.values()
            if replica.worker == worker and replica.key == (tenant, job)
        ]
        if state is None or state.status not in ("joined", "draining") or not mine:
            return {"error": f"job {job} of {tenant} is not assigned to worker {worker}"}
        now = int(time.time())
        permissions = access.job_permissions(
            worker,
            shard=subjects.shard_of(job, self.shards),
            tenant=tenant,
            job=job,
            classes=sorted({replica.spec.priority_class for replica in mine}),
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
