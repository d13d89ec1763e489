"""Connections of a worker: one as itself, one per assigned job with rights on that alone."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jetfleet import jwt, subjects
from jetfleet.connection import Connection, NoResponders
from jetfleet.errors import BrokerUnavailable, JetfleetError

logger = logging.getLogger("jetfleet.links")
RETRY_S = 0.2
PATIENCE_S = 1.0
RENEW_AT = 0.7  # of a token's life
RENEW_LEAST_S = 1.0
T = TypeVar("T")


class NotAssigned(JetfleetError):
    """The conductor gives no rights on this job: it is not assigned to this worker."""

    code = "not_assigned"


@dataclass(slots=True)
class WorkerKey:
    """The worker's own key and its token as a worker."""

    path: Path
    seed: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.seed = jwt.parse_credentials(self.path.read_text())[1]

    @property
    def public_key(self) -> str:
        return jwt.public_key(self.seed)


@dataclass(slots=True)
class JobToken:
    """A credential source: the job's token, signed for with the worker's key."""

    key: WorkerKey
    text: str
    expires_at: float

    def token(self) -> str:
        return self.text

    def sign(self, nonce: str) -> bytes:
        return jwt.sign_nonce(self.key.seed, nonce)


@dataclass(slots=True, eq=False)
class JobLink:
    """The connection for one job; its token is renewed while it lives."""

    connection: Connection
    token: JobToken
    _renewal: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, base: Connection, key: WorkerKey, worker: str, tenant: str, job: str
    ) -> JobLink:
        """Raises NotAssigned when the job is not this worker's."""
        text, expires = await _patiently(lambda: _ask(base, worker, tenant, job))
        token = JobToken(key, text, expires)
        connection = await Connection.open(
            base.url, token, user=worker, name=f"worker-{worker}/{job}"
        )
        link = cls(connection, token)
        link._renewal = asyncio.create_task(link._renew(base, worker, tenant, job))
        return link

    async def close(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        await self.connection.close()

    async def _renew(self, base: Connection, worker: str, tenant: str, job: str) -> None:
        while True:
            rest_s = self.token.expires_at - time.time()
            await asyncio.sleep(max(RENEW_LEAST_S, rest_s * RENEW_AT))
            try:
                self.token.text, self.token.expires_at = await _ask(base, worker, tenant, job)
                await self.connection.refresh()
            except NotAssigned as error:
                logger.info("%s", error)
                return
            except Exception:  # without rights the job would stand still here, and nobody know why
                logger.exception("! the rights on %s are not renewed yet", job)


async def confirm(base: Connection, worker: str, session: str, replica: str) -> None:
    """Return when the log still has this replica here, which an agent before us was assigned.

    Raises NotAssigned when it has not: the worker was thought lost meanwhile.
    """
    await _patiently(lambda: _answer(base, worker, {"session": session, "replica": replica}))


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again for a while: we may know of a joining or an assignment before a conductor does."""
    loop = asyncio.get_running_loop()
    until = loop.time() + PATIENCE_S
    while True:
        try:
            return await ask()
        except NotAssigned:
            if loop.time() > until:
                raise
        await asyncio.sleep(RETRY_S)


async def _ask(base: Connection, worker: str, tenant: str, job: str) -> tuple[str, float]:
    """A token for a job."""
    answer = await _answer(base, worker, {"tenant": tenant, "job": job})
    return answer["token"], float(answer["expires_at"])


async def _answer(base: Connection, worker: str, asked: dict[str, str]) -> dict[str, Any]:
    """What a conductor says, which is waited for as long as it takes. Raises NotAssigned."""
    request = json.dumps(asked).encode()
    while True:
        try:
            answer = json.loads(await base.request(subjects.ask_credentials(worker), request, 2.0))
        except (NoResponders, BrokerUnavailable):
            await asyncio.sleep(RETRY_S)
            continue
        if "error" in answer:
            raise NotAssigned(answer["error"])
        return dict(answer)
