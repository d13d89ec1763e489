"""The live registry: a fold of the REGISTRY stream, in memory, and the writes to it.

Reading costs nothing and works while the broker is away; writing appends an event and returns
when this fold has it, so that a caller reads what it wrote.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import Literal

from jetfleet import subjects
from jetfleet.agreement import disagreement
from jetfleet.catalog import JobState, RegistryState, evolve_registry
from jetfleet.connection import Connection, WrongSequence
from jetfleet.errors import (
    AlreadyExists,
    BeyondLimits,
    Conflict,
    JobNotFound,
    ModelNotFound,
    Unavailable,
)
from jetfleet.events import (
    Event,
    JobCreated,
    JobDeleted,
    JobDisabled,
    JobEnabled,
    JobUpdated,
    ModelRegistered,
    encode,
    unreadable,
)
from jetfleet.log import LogReader, read_records
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet.stamp import Stamp
from jetfleet.streams import REGISTRY

logger = logging.getLogger("jetfleet.registry")
FOLD_TIMEOUT_S = 10.0
WRITE_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Change:
    """What a registry write did. ``seq``: the event's position, 0 when nothing changed."""

    kind: Literal["created", "updated", "deleted", "unchanged"]
    name: str
    fields: tuple[str, ...] = ()
    seq: int = 0


@dataclass(slots=True, eq=False)
class Registry:
    """See the module. ``start`` before use, ``stop`` at the end."""

    connection: Connection
    tenant: str
    stamp: Stamp
    state: RegistryState = field(default_factory=RegistryState)
    invalid: int = 0  # events set aside: they do not decode, or contradict their subject
    _reader: LogReader = field(init=False)
    _task: asyncio.Task[None] | None = None
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def start(self) -> None:
        """Begin folding; returns when all that was there is folded."""
        self._reader = LogReader(self.connection, REGISTRY, follow=True)
        self._task = asyncio.create_task(self._follow())
        waiter = asyncio.create_task(self._reader.caught_up.wait())
        try:
            await asyncio.wait({waiter, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def ready(self) -> bool:
        """Whether everything that was there at the start is folded, and the rest is followed."""
        following = self._task is not None and not self._task.done()
        return following and self._reader.caught_up.is_set()

    async def _follow(self) -> None:
        async for record in read_records(self._reader):
            event = record.event
            why = record.error if event is None else disagreement(REGISTRY, record.subject, event)
            if event is None or why:
                self.invalid += 1
                logger.warning("registry event %d is set aside: %s", record.seq, why)
                # Seen all the same: nobody must wait for it to be folded.
                self.state = replace(self.state, seq=record.seq)
            else:
                self.state = evolve_registry(self.state, event, record.seq)
            async with self._moved:
                self._moved.notify_all()

    async def wait_for(self, seq: int) -> None:
        """Return when the fold has reached ``seq``.

        Raises:
            Unavailable: it did not within ten seconds.
        """
        try:
            async with asyncio.timeout(FOLD_TIMEOUT_S):
                async with self._moved:
                    await self._moved.wait_for(lambda: self.state.seq >= seq)
        except TimeoutError:
            raise Unavailable(
                f"the registry event {seq} was stored but not read back; check the broker"
            ) from None

    # -- reading

    def model(self, tenant: str, name: str, version: str | None = None) -> ModelSpec | None:
        """A model version; the newest when none is named."""
        return self.state.model(tenant, name, version)

    def models(self, tenant: str) -> list[ModelSpec]:
        """All versions of all models, in order of registration."""
        return [m for (owner, _, _), m in self.state.models.items() if owner == tenant]

    def job(self, tenant: str, name: str) -> JobState | None:
        return self.state.jobs.get((tenant, name))

    def jobs(self, tenant: str) -> list[JobState]:
        """Jobs in order of creation."""
        return [job for (owner, _), job in self.state.jobs.items() if owner == tenant]

    def default_job(self, tenant: str, model: str) -> JobState | None:
        """The job of the model's own name, else the model's first."""
        return self.state.default_job(tenant, model)

    async def find_job(self, name: str) -> JobState:
        """A job, asking the log when it is not folded yet (it may be a millisecond old).

        Raises:
            JobNotFound: there is none.
        """
        found = self.job(self.tenant, name)
        if found is None and subjects.is_name(name):
            await self.sync()
            found = self.job(self.tenant, name)
        if found is None:
            raise JobNotFound(f"there is no inference job {name!r}; `jetfleet job list` shows all")
        return found

    async def sync(self) -> None:
        """Fold everything that is in the log by now."""
        info = await self.connection.api(f"STREAM.INFO.{REGISTRY}")
        await self.wait_for(info["state"]["last_seq"])

    # -- writing

    async def register_model(self, spec: ModelSpec) -> Change:
        """Register a model version; the same one again changes nothing.

        Raises:
            AlreadyExists: this version exists and differs: versions are immutable.
        """
        for _ in range(WRITE_ATTEMPTS):
            present = self.model(self.tenant, spec.name, spec.version)
            if present == spec:
                return Change("unchanged", spec.ref)
            if present is not None:
                fields = ", ".join(_differences(present, spec))
                raise AlreadyExists(
                    f"model {spec.ref} is registered with another {fields}; "
                    "versions never change: register it under a new version"
                )
            event = ModelRegistered(
                **self.stamp(self.tenant), data=ModelRegistered.Data(model=spec)
            )
            subject = subjects.model_event(self.tenant, spec.name, "registered")
            if seq := await self._write(event, subject, subject):
                return Change("created", spec.ref, seq=seq)
        raise Conflict(f"model {spec.ref} is being changed by others; try again")

    async def create_job(self, spec: JobSpec) -> Change:
        """Open a job. Raises AlreadyExists when one of its name is open; else as ``apply_job``."""
        return await self.apply_job(spec, new=True)

    async def apply_job(self, spec: JobSpec, *, new: bool = False) -> Change:
        """Create the job, or bring it to this spec; the same one again changes nothing.

        ``new``: only create it.

        Raises:
            ModelNotFound: its model version is not registered (or differs from what is).
            Conflict: it has another priority class; what is queued under that would never run.
        """
        registered = self.model(self.tenant, spec.model.name, spec.model.version)
        if registered != spec.model:
            raise ModelNotFound(f"model {spec.model.ref} is not registered as this job has it")
        for _ in range(WRITE_ATTEMPTS):
            present = self.job(self.tenant, spec.name)
            if present is None:
                created = JobCreated(**self.stamp(self.tenant), data=JobCreated.Data(job=spec))
                if seq := await self._write_job(created, spec.name, "created"):
                    return Change("created", spec.name, seq=seq)
                continue
            if new:
                raise AlreadyExists(
                    f"inference job {spec.name!r} exists; apply changes to it instead"
                )
            fields = _differences(present.spec, spec)
            if not fields:
                return Change("unchanged", spec.name)
            if "priority_class" in fields:
                raise Conflict(
                    f"inference job {spec.name!r} has priority_class "
                    f"{present.spec.priority_class!r}, and keeps it: what is queued under it would "
                    f"never run; create another job with {spec.priority_class!r} instead"
                )
            updated = JobUpdated(
                **self.stamp(self.tenant), data=JobUpdated.Data(job=spec, changed=fields)
            )
            if seq := await self._write_job(updated, spec.name, "updated"):
                return Change("updated", spec.name, fields, seq)
        raise Conflict(f"inference job {spec.name!r} is being changed by others; try again")

    async def enable_job(self, name: str) -> Change:
        """Raises JobNotFound."""
        await self.find_job(name)
        event = JobEnabled(**self.stamp(self.tenant), data=JobEnabled.Data(job=name))
        return await self._switch(event, name, "enabled", enabled=True)

    async def disable_job(self, name: str, reason: str = "") -> Change:
        """New invocations are refused; what is queued is still served. Raises JobNotFound."""
        await self.find_job(name)
        data = JobDisabled.Data(job=name, reason=reason)
        event = JobDisabled(**self.stamp(self.tenant), data=data)
        return await self._switch(event, name, "disabled", enabled=False)

    async def delete_job(self, name: str) -> Change:
        """Raises JobNotFound."""
        for _ in range(WRITE_ATTEMPTS):
            await self.find_job(name)
            event = JobDeleted(**self.stamp(self.tenant), data=JobDeleted.Data(job=name))
            if seq := await self._write_job(event, name, "deleted"):
                return Change("deleted", name, seq=seq)
        raise Conflict(f"inference job {name!r} is being changed by others; try again")

    async def _switch(self, event: Event, name: str, verb: str, *, enabled: bool) -> Change:
        for _ in range(WRITE_ATTEMPTS):
            if (await self.find_job(name)).enabled is enabled:
                return Change("unchanged", name)
            if seq := await self._write_job(event, name, verb):
                return Change("updated", name, ("enabled",), seq)
        raise Conflict(f"inference job {name!r} is being changed by others; try again")

    async def _write_job(self, event: Event, name: str, verb: str) -> int:
        subject = subjects.job_event(self.tenant, name, verb)
        return await self._write(
            event, subject, subjects.job_event(self.tenant, name, subjects.ANY)
        )

    async def _write(self, event: Event, subject: str, guard: str) -> int:
        """Append if nobody wrote on ``guard`` since the caller looked; 0 when somebody did."""
        seen = self.state.seq  # what the caller decided by; it may move while we ask
        last = await self._last_seq(guard)
        if last > seen:
            await self.wait_for(last)
            return 0
        body = encode(event)
        if why := unreadable(body):
            raise BeyondLimits(f"it cannot be taken: {why}")
        try:
            stored = await self.connection.store(
                subject, body, msg_id=event.id, expect=(last, guard)
            )
        except WrongSequence:
            return 0
        await self.wait_for(stored.seq)
        return stored.seq

    async def _last_seq(self, guard: str) -> int:
        """The stream sequence of the last message on a subject filter; 0 when there is none."""
        reply = await self.connection.ask(
            f"$JS.API.DIRECT.GET.{REGISTRY}", b'{"last_by_subj":"%s"}' % guard.encode()
        )
        return int((reply.headers or {}).get("Nats-Sequence", 0))


def _differences(old: ModelSpec | JobSpec, new: ModelSpec | JobSpec) -> tuple[str, ...]:
    fields = type(old).model_fields
    return tuple(name for name in fields if getattr(old, name) != getattr(new, name))
