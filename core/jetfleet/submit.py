"""Submitting: validate, keep big inputs out of the event, append once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import PydanticSerializationError

from jetfleet import blobs, subjects
from jetfleet.catalog import JobState
from jetfleet.clock import new_id
from jetfleet.connection import Connection, Stored
from jetfleet.errors import (
    BeyondLimits,
    BrokerUnavailable,
    IdempotencyMismatch,
    InvalidRequest,
    JobDisabled,
    PayloadTooLarge,
    QueueFull,
)
from jetfleet.events import (
    InvalidEvent,
    InvocationCompleted,
    InvocationQueued,
    compose,
    decode,
    unreadable,
)
from jetfleet.limits import excess, foreign
from jetfleet.outcomes import Outcomes, Waiter
from jetfleet.registry import Registry
from jetfleet.settings import Settings
from jetfleet.specs import JobSpec
from jetfleet.stamp import Stamp
from jetfleet.streams import INVOCATIONS
from jetfleet.verdicts import Verdicts

GAUGE_FRESH_S = 1.0
KEY_LIMIT = 255
TRACEPARENT = re.compile(r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks for; see ``Client.submit``."""

    job: str
    input: Any
    stream: bool = False
    timeout_s: float | None = None
    ttl_s: float | None = None
    idempotency_key: str | None = None
    trace: str | None = None
    priority: str | None = None

    def class_of(self, spec: JobSpec) -> str:
        """Its priority class: the one asked for, else that of the job."""
        return spec.priority_class if self.priority is None else self.priority


@dataclass(slots=True)
class Gauge:
    """An estimate of a job's unfinished invocations: the last look plus what we added since.

    ``recent``: log positions of what we added and the queue, which follows the log within a
    millisecond, may not have shown yet. ``adding``: what is on its way into the log.
    """

    seen: int = 0
    recent: deque[int] = field(default_factory=deque)
    adding: int = 0
    looked_at: float = float("-inf")
    looking: bool = False

    @property
    def depth(self) -> int:
        return self.seen + len(self.recent) + self.adding


@dataclass(slots=True, eq=False)
class Submitter:
    """See the module."""

    connection: Connection
    settings: Settings
    registry: Registry
    outcomes: Outcomes
    stamp: Stamp
    verdicts: Verdicts = field(init=False)
    _gauges: dict[str, Gauge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.verdicts = Verdicts(self.connection)

    async def submit(self, request: Request) -> tuple[Waiter, bool]:
        """The waiter of the accepted invocation, and whether an earlier submit had made it."""
        job, gauge = await self.admit(request)
        try:
            waiter, stored = await self._store(request, job)
        finally:
            gauge.adding -= 1
        if stored.duplicate:
            # Perhaps sent again over a reconnect: then its outcome may have come while we were cut
            # off, and before it had the position that `recover` goes by.
            self.outcomes.recover_soon()
            if request.idempotency_key:
                return await self._earlier(stored.seq, request, waiter), True
        gauge.recent.append(stored.seq)
        return waiter, False

    async def admit(self, request: Request) -> tuple[JobState, Gauge]:
        """The job, which takes it; its gauge counts one more that is on its way into the log."""
        tenant = self.settings.tenant
        if not isinstance(request.job, str):
            raise InvalidRequest(f"a job is named by text, not by {request.job!r}", field="job")
        state = self.registry.job(tenant, request.job)
        if not self.connection.connected:
            raise BrokerUnavailable
        job = state or await self.registry.find_job(request.job)
        _check(request, job)
        await self.verdicts.check(job)
        return job, await self._take_place(job)

    async def prepare(self, request: Request, job: JobState) -> tuple[Waiter, str, bytes]:
        """The waiter of a new invocation, and the subject and body of its queued event."""
        waiter = self.outcomes.expect(new_id(), request.job)
        body = await self._encode(request, job, waiter.invocation)
        shard = subjects.shard_of(request.job, self.settings.shards)
        subject = subjects.queued(shard, job.tenant, request.job, request.class_of(job.spec))
        return waiter, subject, body

    async def _store(self, request: Request, job: JobState) -> tuple[Waiter, Stored]:
        """Append the queued event."""
        waiter, subject, body = await self.prepare(request, job)
        if request.stream:
            await waiter.listen(self.connection)
        key = request.idempotency_key
        msg_id = _key_id(job.tenant, request.job, key) if key else waiter.invocation
        try:
            stored = await self.connection.store(subject, body, msg_id=msg_id, trace=request.trace)
        except BaseException:
            await waiter.stop()
            raise
        waiter.seq = stored.seq
        return waiter, stored

    async def _encode(self, request: Request, job: JobState, invocation: str) -> bytes:
        """The queued event, its input moved to the payload store when it is big."""
        envelope = self.stamp(job.tenant, correlation=invocation, trace=request.trace)
        data = self._data(request, job.spec, invocation, envelope["time"])
        if kind := foreign(request.input):
            raise InvalidRequest(
                f"the input is not JSON: it has a {kind}; give dicts, lists, text, finite numbers, "
                "booleans and None",
                field="input",
            )
        try:
            body = compose(InvocationQueued, envelope, data)
        except PydanticSerializationError as error:
            _json(request.input)  # says it in better words
            raise InvalidRequest(f"the input is not JSON: {error}", field="input") from error
        if len(body) <= self.settings.inline_limit:
            if b"NaN" in body or b"Infinity" in body:  # written as such, though JSON has neither
                _json(request.input)
            if why := unreadable(body):
                raise _beyond(why)
            return body
        text = _json(request.input)
        if len(text) > self.settings.payload_limit:
            raise PayloadTooLarge(
                f"the input is {len(text):,} bytes of JSON; "
                f"this installation takes {self.settings.payload_limit:,}"
            )
        del data["input"]
        data["input_ref"] = await blobs.write(
            self.connection,
            text,
            invocation,
            lambda n: subjects.input_blob(job.tenant, job.spec.name, invocation, n),
        )
        return compose(InvocationQueued, envelope, data)

    def _data(
        self, request: Request, spec: JobSpec, invocation: str, now: datetime
    ) -> dict[str, Any]:
        ttl = spec.queue_ttl_s if request.ttl_s is None else request.ttl_s
        data = {
            "invocation": invocation,
            "job": spec.name,
            "input": request.input,
            "origin": self.outcomes.origin,
            "stream": request.stream,
            "timeout_s": spec.timeout_s if request.timeout_s is None else request.timeout_s,
            "expires_at": now + timedelta(seconds=ttl),
            "priority_class": request.class_of(spec),
        }
        if request.idempotency_key is not None:
            data["idempotency_key"] = request.idempotency_key
        return data

    async def _earlier(self, seq: int, request: Request, waiter: Waiter) -> Waiter:
        """The waiter of the invocation that this idempotency key made before."""
        await waiter.stop()
        answer = await self.connection.api(f"STREAM.MSG.GET.{INVOCATIONS}", {"seq": seq})
        try:
            before = decode(blobs.decode_stored(answer["message"]))
        except InvalidEvent:
            before = None
        if not isinstance(before, InvocationQueued) or not _same(before, request):
            raise IdempotencyMismatch(
                f"idempotency key {request.idempotency_key!r} was used before with another "
                "input; use a new key for a new request"
            )
        known = self.outcomes.waiting.get(before.data.invocation)
        if known is not None:
            return known
        again = self.outcomes.expect(before.data.invocation, before.data.job)
        again.seq = seq
        await self.outcomes.watch(again, before.data.origin, seq)
        return again

    # -- the queue's cap

    async def _take_place(self, job: JobState) -> Gauge:
        """Count one more, or refuse above the job's cap.

        Goes by an estimate that is checked with the broker near the cap. The place is taken before
        anything is awaited, so that many submits at once cannot share the last one.
        """
        gauge = self._gauges.setdefault(job.spec.name, Gauge())
        now = asyncio.get_running_loop().time()
        if gauge.depth >= job.spec.queue_cap or gauge.looked_at == float("-inf"):
            await self._look(gauge, job)
        elif now - gauge.looked_at > GAUGE_FRESH_S and not gauge.looking:
            self.connection.spawn(self._look(gauge, job))
        if gauge.depth >= job.spec.queue_cap:
            raise QueueFull(
                f"inference job {job.spec.name!r} has {gauge.depth:,} unfinished invocations, "
                f"its cap is {job.spec.queue_cap:,}; try again later",
                retry_after_s=1.0,
            )
        gauge.adding += 1
        return gauge

    async def _look(self, gauge: Gauge, job: JobState) -> None:
        gauge.looking = True
        try:
            depth, position = await queue_depth(self.connection, job, self.settings.shards)
            while gauge.recent and gauge.recent[0] <= position:
                gauge.recent.popleft()
            gauge.seen = depth
            gauge.looked_at = asyncio.get_running_loop().time()
        finally:
            gauge.looking = False


async def queue_depth(connection: Connection, job: JobState, shards: int) -> tuple[int, int]:
    """Unfinished invocations of a job, and up to which log position the queue shows them."""
    shard = subjects.shard_of(job.spec.name, shards)
    wanted = subjects.queue(shard, job.tenant, job.spec.name, subjects.ANY)
    info = await connection.api(
        f"STREAM.INFO.{subjects.queue_stream(shard)}", {"subjects_filter": wanted}
    )
    counts: dict[str, int] = info["state"].get("subjects") or {}
    sources: list[dict[str, Any]] = info.get("sources") or [{}]
    return sum(counts.values()), sources[0].get("seq", 0)


async def read_output(connection: Connection, outcome: InvocationCompleted) -> Any:
    """The output of a completed invocation, from the event or from the payload store."""
    ref, data = outcome.data.output_ref, outcome.data
    if ref is None:
        return data.output
    worker = ref.worker or ""
    text = await blobs.read(
        connection,
        ref,
        lambda n: subjects.output_blob(outcome.tenant, data.job, worker, ref.blob, n),
    )
    return json.loads(text)


def _check(request: Request, job: JobState) -> None:
    spec = job.spec
    if not job.enabled:
        raise JobDisabled(f"inference job {spec.name!r} is disabled; enable it first")
    for name, value, limit in (
        ("timeout_s", request.timeout_s, spec.timeout_s),
        ("ttl_s", request.ttl_s, spec.queue_ttl_s),
    ):
        if value is not None and not isinstance(value, int | float):
            raise InvalidRequest(f"{name} must be a number, not {value!r}", field=name)
        if value is not None and not 0 < value <= limit:
            raise InvalidRequest(
                f"{name} must be above 0 and at most {limit:g} (the job's limit), got {value:g}",
                field=name,
            )
    if request.priority is not None and request.priority not in spec.classes:
        raise InvalidRequest(
            f"inference job {spec.name!r} has no priority class {request.priority!r}, only "
            + ", ".join(spec.classes),
            field="priority",
        )
    trace = request.trace
    if trace is not None and not (isinstance(trace, str) and TRACEPARENT.fullmatch(trace)):
        raise InvalidRequest("trace is not a W3C traceparent", field="traceparent")
    key = request.idempotency_key
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= KEY_LIMIT):
        raise InvalidRequest(
            f"an idempotency key has 1 to {KEY_LIMIT} characters", field="Idempotency-Key"
        )


def _json(value: Any) -> bytes:
    """The input as JSON text. Raises InvalidRequest when it cannot be written as such."""
    try:
        text = blobs.to_json(value)
    except RecursionError:
        raise _beyond("it nests deeper than can be written") from None
    except (TypeError, ValueError) as error:
        if "integer string conversion" in str(error):
            raise _beyond("it has a number of thousands of digits") from None
        raise InvalidRequest(f"the input is not JSON: {error}", field="input") from error
    if why := excess(text):
        raise _beyond(why)
    return text


def _beyond(why: str) -> BeyondLimits:
    return BeyondLimits(f"the input cannot be taken: {why}", field="input")


def _same(before: InvocationQueued, request: Request) -> bool:
    """Whether a repeated key came with the input that it came with first."""
    text = _json(request.input)
    if before.data.input_ref is None:
        return bool(before.data.input == json.loads(text))
    return before.data.input_ref.sha256 == hashlib.sha256(text).hexdigest()


def _key_id(tenant: str, job: str, key: str) -> str:
    return "key." + hashlib.sha256(f"{tenant}\n{job}\n{key}".encode()).hexdigest()
