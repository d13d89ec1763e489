"""The client: register, create, submit, await or stream, cancel, look up, tail, replay, query."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

from jetfleet import queries, running
from jetfleet.connection import Connection
from jetfleet.errors import (
    BrokerUnavailable,
    InvalidRequest,
    InvocationCancelled,
    InvocationError,
    InvocationExpired,
    InvocationFailed,
)
from jetfleet.events import InvocationCompleted, OutcomeEvent
from jetfleet.log import LogReader, Record, Start, read_records
from jetfleet.lookup import Lookup
from jetfleet.outcomes import Gap, Outcomes, Waiter
from jetfleet.queries import Rows
from jetfleet.registry import Change, Registry
from jetfleet.settings import Settings
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet.stamp import Stamp
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY
from jetfleet.submit import Request, Submitter, read_output
from jetfleet.views import InvocationView

CONNECT_S = 10.0
READABLE = (INVOCATIONS, REGISTRY, FLEET)
SUBJECT = re.compile(r"[^\s.]+(\.[^\s.]+)*")


@dataclass(slots=True, eq=False)
class Handle:
    """An accepted invocation. Keep it to hear the outcome at once; its id finds it later too."""

    client: Client
    waiter: Waiter
    duplicate: bool = False

    @property
    def invocation(self) -> str:
        return self.waiter.invocation

    @property
    def job(self) -> str:
        return self.waiter.job

    @property
    def seq(self) -> int:
        """Position of its queued event in INVOCATIONS."""
        return self.waiter.seq

    async def outcome(self, wait_s: float | None = None) -> OutcomeEvent:
        """The outcome event. Raises OutcomePending when ``wait_s`` seconds pass without one."""
        return await self.waiter.outcome(wait_s)

    async def output(self, wait_s: float | None = None) -> Any:
        """What the model returned.

        Raises:
            InvocationFailed, InvocationCancelled, InvocationExpired: it ended otherwise.
            OutcomePending: no outcome within ``wait_s`` seconds.
        """
        return await self.client.output(await self.waiter.outcome(wait_s))

    async def chunks(self, *, gaps: bool = False) -> AsyncIterator[Any]:
        """Output as it comes (submit with ``stream=True``); ends when the invocation does.

        A chunk over 512 KiB of JSON is not sent while streaming: that is logged, or with ``gaps``
        a ``Gap`` comes in its place. The outcome has the whole output.
        """
        if self.waiter.chunks is None:
            await self.waiter.listen(self.client.connection)
        async for chunk in self.waiter.stream(late_join=self.duplicate, gaps=gaps):
            yield chunk

    async def cancel(self, reason: str = "") -> None:
        """Ask to cancel, queued or running; the outcome follows."""
        await self.client.cancel(self.invocation, reason)


@dataclass(slots=True, eq=False)
class Client:
    """One process's view of jetfleet; see ``connect``. Use it as ``async with``."""

    connection: Connection
    settings: Settings
    origin: str
    registry: Registry
    outcomes: Outcomes
    submitter: Submitter
    lookup: Lookup
    _closed: bool = field(default=False)

    @classmethod
    async def connect(
        cls, settings: Settings | None = None, *, role: str = "operator", name: str | None = None
    ) -> Self:
        """Connect and fold the registry.

        Args:
            settings: default: from ``JETFLEET_*`` variables.
            role: whose credentials of the data folder to use, unless settings name a file.
            name: shown in the broker's monitoring and as ``source`` of events.

        Raises:
            BrokerUnavailable: no broker within ten seconds, or it refuses the credentials.
        """
        settings = settings or Settings()
        try:
            async with asyncio.timeout(CONNECT_S):
                connection = await Connection.open(
                    settings.nats_url,
                    settings.credentials_of(role),
                    user=role,
                    name=name or role,
                )
        except TimeoutError:
            raise BrokerUnavailable(
                f"no broker answers at {settings.nats_url}; is `jetfleet up` running there?"
            ) from None
        self = cls._assemble(connection, settings, role, name)
        try:
            async with asyncio.timeout(CONNECT_S):
                await self.outcomes.start()
                await self.registry.start()
        except BaseException as error:  # whoever waited for us has nothing that it could close
            await self.close()
            if isinstance(error, TimeoutError):
                raise BrokerUnavailable(
                    f"the broker at {settings.nats_url} answers, but has no registry to read; "
                    "has the conductor or `jetfleet up` made the streams?"
                ) from None
            raise
        return self

    @classmethod
    def _assemble(
        cls, connection: Connection, settings: Settings, role: str, name: str | None
    ) -> Self:
        origin = secrets.token_hex(6)
        stamp = Stamp(f"{name or role}/{origin}")
        registry = Registry(connection, settings.tenant, stamp)
        outcomes = Outcomes(connection, settings.tenant, origin)
        return cls(
            connection,
            settings,
            origin,
            registry,
            outcomes,
            Submitter(connection, settings, registry, outcomes, stamp),
            Lookup(connection, settings, stamp),
        )

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.registry.stop()
            await self.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached now."""
        return self.connection.connected

    # -- registry

    async def register_model(self, spec: ModelSpec) -> Change:
        """See ``Registry.register_model``."""
        return await self.registry.register_model(spec)

    async def apply_job(self, spec: JobSpec) -> Change:
        """See ``Registry.apply_job``."""
        return await self.registry.apply_job(spec)

    async def create_job(self, spec: JobSpec) -> Change:
        """See ``Registry.create_job``."""
        return await self.registry.create_job(spec)

    async def enable_job(self, job: str) -> Change:
        """Accept invocations again."""
        return await self.registry.enable_job(job)

    async def disable_job(self, job: str, reason: str = "") -> Change:
        """Refuse new invocations; what is queued is still served."""
        return await self.registry.disable_job(job, reason)

    async def delete_job(self, job: str) -> Change:
        """Remove a job; what is still queued is cancelled."""
        return await self.registry.delete_job(job)

    # -- work

    async def submit(
        self,
        job: str,
        input: Any,
        *,
        stream: bool = False,
        timeout_s: float | None = None,
        ttl_s: float | None = None,
        idempotency_key: str | None = None,
        trace: str | None = None,
    ) -> Handle:
        """Submit an invocation; returns when the log has it, which is what accepted means.

        Args:
            input: anything JSON; over the inline limit it goes to the payload store.
            stream: output chunks are wanted as they come (``Handle.chunks``).
            timeout_s: longest run of one attempt, seconds; at most the job's.
            ttl_s: longest wait for a start, seconds; at most the job's.
            idempotency_key: the same key within ten minutes returns the same invocation.
            trace: W3C traceparent of the request; carried through every event it causes.

        Raises:
            InvalidRequest, JobNotFound, JobDisabled, QueueFull, PayloadTooLarge,
            IdempotencyMismatch: refused, nothing was stored.
            BrokerUnavailable, LogFull: not accepted as far as is known; repeat it with a key.
        """
        request = Request(job, input, stream, timeout_s, ttl_s, idempotency_key, trace)
        waiter, duplicate = await self.submitter.submit(request)
        return Handle(self, waiter, duplicate)

    async def run(
        self,
        job: str,
        input: Any,
        *,
        wait_s: float | None = None,
        timeout_s: float | None = None,
        ttl_s: float | None = None,
        idempotency_key: str | None = None,
        trace: str | None = None,
    ) -> Any:
        """Submit and return what the model returned; see ``submit`` and ``Handle.output``.

        ``wait_s``: seconds from now.
        """
        request = Request(job, input, False, timeout_s, ttl_s, idempotency_key, trace)
        return await self.output(await running.run(self.submitter, request, wait_s))

    async def run_to_outcome(self, request: Request, wait_s: float | None = None) -> OutcomeEvent:
        """Submit and wait for the outcome event, whatever it is; raises as ``run`` does else."""
        return await running.run(self.submitter, request, wait_s)

    async def output(self, outcome: OutcomeEvent) -> Any:
        """The output of an outcome, read back whole when it is not inline.

        Raises:
            InvocationFailed, InvocationCancelled, InvocationExpired: it is not a completed one.
        """
        if isinstance(outcome, InvocationCompleted):
            return await read_output(self.connection, outcome)
        raise outcome_error(outcome)

    async def find(self, invocation: str) -> InvocationView:
        """An invocation by id, as of now: the projection, then the log behind it.

        Raises:
            InvocationNotFound: no event of this id is in the log.
            EventUnreadable: there is one, which cannot be read.
        """
        return await self.lookup.find(invocation)

    async def cancel(self, invocation: str, reason: str = "") -> InvocationView:
        """Ask to cancel and wait a moment for the outcome.

        Raises:
            InvocationNotFound: there is none of this id.
            Conflict: it has ended already.
            EventUnreadable: there is one, which cannot be read, or has an outcome that cannot.
        """
        return await self.lookup.cancel(invocation, reason)

    async def outcome(self, invocation: str, wait_s: float | None = None) -> OutcomeEvent:
        """The outcome of any invocation by id, whoever submitted it. Raises OutcomePending."""
        return await self.lookup.outcome(invocation, wait_s)

    async def chunks(self, invocation: str, *, gaps: bool = False) -> AsyncIterator[Any]:
        """Live output chunks of any invocation by id, from now on; ends with its outcome.

        ``gaps``: see ``Handle.chunks``.
        """
        async for chunk in self.lookup.chunks(invocation, gaps=gaps):
            yield chunk

    # -- the log and its projections

    async def events(
        self,
        stream: str = INVOCATIONS,
        *,
        start: Start = "all",
        subject: str | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Record]:
        """Events of a stream in order.

        Args:
            stream: REGISTRY, INVOCATIONS or FLEET.
            start: a sequence, a time (aware datetime), "all", or "new".
            subject: filter with NATS wildcards.
            follow: go on with new ones; otherwise end at what is there now.

        Raises:
            InvalidRequest: there is no such stream, or the filter is no subject.
        """
        if stream not in READABLE:
            known = ", ".join(READABLE)
            raise InvalidRequest(f"there is no stream {stream!r}, only {known}", field="stream")
        if subject and not SUBJECT.fullmatch(subject):
            raise InvalidRequest(f"{subject!r} is not a NATS subject", field="subject")
        reader = LogReader(
            self.connection, stream, (subject,) if subject else (), start=start, follow=follow
        )
        async for record in read_records(reader):
            yield record

    async def query(self, name: str, /, **params: Any) -> Rows:
        """A named query of the projections. Raises QueryFailed, QueryUnavailable."""
        return await queries.ask(self.connection, {"name": name, "params": params})

    async def sql(self, text: str) -> Rows:
        """A read-only SELECT over the projections. Raises QueryFailed, QueryUnavailable."""
        return await queries.ask(self.connection, {"sql": text})


def outcome_error(outcome: OutcomeEvent) -> InvocationError:
    """The error that an outcome other than completed stands for."""
    data = outcome.data
    if outcome.type == "jetfleet.invocation.failed":
        error = outcome.data.error
        return InvocationFailed(f"{error.code}: {error.message}", outcome=outcome)
    if outcome.type == "jetfleet.invocation.cancelled":
        return InvocationCancelled(
            f"invocation {data.invocation} was cancelled"
            + (f": {outcome.data.reason}" if outcome.data.reason else ""),
            outcome=outcome,
        )
    return InvocationExpired(
        f"no worker started invocation {data.invocation} before its time-to-live ended",
        outcome=outcome,
    )


__all__ = ["Client", "Gap", "Handle", "outcome_error"]
