"""The client that the gateway's unit tests run on: the real registry, waiters and views in memory.

It is a twin of ``jetfleet.client.Client``; the tests at the end hold its methods to the real ones.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from jetfleet.catalog import evolve_registry
from jetfleet.client import Client, Handle, outcome_error
from jetfleet.clock import new_id
from jetfleet.errors import Conflict, InvocationNotFound, JetfleetError
from jetfleet.events import (
    Event,
    Failure,
    InvocationCancelled,
    InvocationCompleted,
    InvocationExpired,
    InvocationFailed,
    InvocationQueued,
    InvocationStarted,
    encode,
)
from jetfleet.outcomes import Waiter
from jetfleet.queries import Rows
from jetfleet.registry import Change, Registry
from jetfleet.settings import Settings
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet.stamp import Stamp
from jetfleet.submit import Request, _check
from jetfleet.views import InvocationView, evolve_view
from jetfleet_gateway.app import Gateway, create_app

STAMP = Stamp("gateway/test")
MODEL = ModelSpec(name="echo", function="models.py:echo")
JOB = JobSpec(name="echo", model=MODEL, timeout_s=20, queue_ttl_s=60)


class MemoryRegistry(Registry):
    """The real registry's rules; its log is the fold itself."""

    async def _write(self, event: Event, subject: str, guard: str) -> int:
        seq = self.state.seq + 1
        self.state = evolve_registry(self.state, event, seq)
        return seq

    async def sync(self) -> None:
        return

    @property
    def ready(self) -> bool:
        return True


@dataclass(eq=False)
class Work:
    """One invocation, as a worker of a test sees it."""

    queued: InvocationQueued
    waiter: Waiter
    view: InvocationView
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    followed: asyncio.Event = field(default_factory=asyncio.Event)  # somebody reads its chunks
    sent: int = 0

    @property
    def input(self) -> Any:
        return self.queued.data.input

    def _outcome(self) -> dict[str, Any]:
        data = self.queued.data
        return {
            "invocation": data.invocation, "job": data.job, "worker": "w1", "replica": "r1",
            "attempt": 1, "run_s": 0.01, "chunks": self.sent,
        }  # fmt: skip

    def start(self) -> None:
        data = InvocationStarted.Data(
            invocation=self.queued.data.invocation, job=self.queued.data.job, worker="w1",
            replica="r1", attempt=1,
        )  # fmt: skip
        self._fold(InvocationStarted(**STAMP("default", cause=self.queued), data=data))

    def chunk(self, value: Any) -> None:
        assert self.waiter.chunks is not None
        self.waiter.chunks.put_nowait((self.sent, value))
        self.sent += 1

    def complete(self, output: Any) -> None:
        data = InvocationCompleted.Data(**self._outcome(), output=output)
        self._end(InvocationCompleted(**STAMP("default", cause=self.queued), data=data))

    def fail(self, code: Any = "model_error", message: str = "ValueError: no") -> None:
        error = Failure(
            code=code, message=message, detail="Traceback: secret", history=("lost w0",)
        )
        data = InvocationFailed.Data(**self._outcome(), error=error)
        self._end(InvocationFailed(**STAMP("default", cause=self.queued), data=data))

    def cancelled(self, reason: str = "") -> None:
        data = InvocationCancelled.Data(**self._outcome(), reason=reason)
        self._end(InvocationCancelled(**STAMP("default", cause=self.queued), data=data))

    def expire(self) -> None:
        data = InvocationExpired.Data(**self._outcome(), expires_at=self.queued.data.expires_at)
        self._end(InvocationExpired(**STAMP("default", cause=self.queued), data=data))

    def _fold(self, event: Any) -> None:
        view = evolve_view(self.view, event, self.view.queued_seq + 1)
        assert view is not None
        self.view = view

    def _end(self, event: Any) -> None:
        self._fold(event)
        self.waiter.resolve(encode(event))
        self.ended.set()


Worker = Callable[[Work], Awaitable[None]]


async def echo(work: Work) -> None:
    work.complete(work.input)


@dataclass(eq=False)
class FakeClient:
    """See the module.

    Args:
        worker: what happens to each accepted invocation; None: nobody takes it.
        refusal: raised by every call that needs the broker.
    """

    worker: Worker | None = echo
    refusal: JetfleetError | None = None
    settings: Settings = field(default_factory=lambda: Settings(payload_limit=100_000))
    connected: bool = True
    origin: str = "test"
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    works: dict[str, Work] = field(default_factory=dict)
    cancels: list[tuple[str, str]] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self.registry = MemoryRegistry(None, self.settings.tenant, STAMP)  # type: ignore[arg-type]  # no broker
        self._keys: dict[str, Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        self.closed = True

    def _refuse(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def register_model(self, spec: ModelSpec) -> Change:
        self._refuse()
        return await self.registry.register_model(spec)

    async def apply_job(self, spec: JobSpec) -> Change:
        self._refuse()
        return await self.registry.apply_job(spec)

    async def create_job(self, spec: JobSpec) -> Change:
        self._refuse()
        return await self.registry.create_job(spec)

    async def enable_job(self, job: str) -> Change:
        return await self.registry.enable_job(job)

    async def disable_job(self, job: str, reason: str = "") -> Change:
        return await self.registry.disable_job(job, reason)

    async def delete_job(self, job: str) -> Change:
        return await self.registry.delete_job(job)

    async def submit(
        self, job: str, input: Any, *, stream: bool = False, timeout_s: float | None = None,
        ttl_s: float | None = None, idempotency_key: str | None = None, trace: str | None = None,
    ) -> Handle:  # fmt: skip
        self._refuse()
        state = await self.registry.find_job(job)
        _check(Request(job, input, stream, timeout_s, ttl_s, idempotency_key, trace), state)
        if idempotency_key in self._keys:
            return Handle(self, self._keys[idempotency_key].waiter, True)  # type: ignore[arg-type]  # a twin
        envelope = STAMP("default", trace=trace)
        data = InvocationQueued.Data(
            invocation=new_id(), job=job, input=input, origin=self.origin, stream=stream,
            timeout_s=timeout_s or state.spec.timeout_s,
            expires_at=envelope["time"] + timedelta(seconds=ttl_s or state.spec.queue_ttl_s),
            idempotency_key=idempotency_key,
        )  # fmt: skip
        queued = InvocationQueued(**envelope, data=data)
        waiter = Waiter(data.invocation, "default", job, len(self.works) + 1)
        waiter.chunks = asyncio.Queue() if stream else None
        view = evolve_view(None, queued, waiter.seq)
        assert view is not None
        work = self.works[data.invocation] = Work(queued, waiter, view)
        if idempotency_key is not None:
            self._keys[idempotency_key] = work
        if self.worker is not None:
            task = asyncio.ensure_future(self.worker(work))
            self._tasks.add(task)  # type: ignore[arg-type]  # a task it is
        return Handle(self, waiter)  # type: ignore[arg-type]  # a twin

    async def run_to_outcome(self, request: Request, wait_s: float | None = None) -> Any:
        handle = await self.submit(
            request.job, request.input, timeout_s=request.timeout_s, ttl_s=request.ttl_s,
            trace=request.trace,
        )  # fmt: skip
        return await handle.outcome(wait_s)

    def _work(self, invocation: str) -> Work:
        if invocation not in self.works:
            raise InvocationNotFound(f"there is no invocation {invocation} in the log")
        return self.works[invocation]

    async def find(self, invocation: str) -> InvocationView:
        self._refuse()
        return self._work(invocation).view

    async def cancel(self, invocation: str, reason: str = "") -> InvocationView:
        work = self._work(invocation)
        if work.view.ended:
            raise Conflict(f"invocation {invocation} has ended already ({work.view.state})")
        self.cancels.append((invocation, reason))
        work.cancelled(reason)
        return work.view

    async def outcome(self, invocation: str, wait_s: float | None = None) -> Any:
        return await self._work(invocation).waiter.outcome(wait_s)

    async def chunks(self, invocation: str, *, gaps: bool = False) -> AsyncIterator[Any]:
        work = self._work(invocation)
        work.followed.set()
        if not work.view.ended:
            work.waiter.chunks = work.waiter.chunks or asyncio.Queue()
            async for chunk in work.waiter.stream():
                yield chunk

    async def output(self, outcome: Any) -> Any:
        if isinstance(outcome, InvocationCompleted):
            return outcome.data.output
        raise outcome_error(outcome)

    async def query(self, name: str, /, **params: Any) -> Rows:
        self._refuse()
        self.asked.append((name, params))
        rows = self.rows.get(name, [])
        columns = list(rows[0]) if rows else []
        return Rows(columns, [list(row.values()) for row in rows])


async def with_job(client: FakeClient, *jobs: JobSpec) -> FakeClient:
    """The client, with the model and a job ``echo`` (or these jobs) registered."""
    await client.registry.register_model(MODEL)
    for job in jobs or (JOB,):
        await client.registry.apply_job(job)
    return client


@asynccontextmanager
async def serving(app: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the application, while it lives."""
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0)  # the door's first try to connect runs
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            yield http


@asynccontextmanager
async def gateway(client: FakeClient, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The same for an application that stands on this client."""

    async def connect() -> Any:
        return client

    async with serving(create_app(client.settings, connect=connect, **options)) as http:
        yield http


def problem(response: httpx.Response) -> dict[str, Any]:
    """The problem document of an error answer, after checking that it is one."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    document: dict[str, Any] = response.json()
    assert document["status"] == response.status_code
    assert document["type"] == f"urn:jetfleet:problem:{document['code']}"
    assert document["title"]
    assert document["detail"]
    return document


def events_of(text: str) -> list[tuple[str, Any]]:
    """The events of a stream: (name, data)."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


# -- the twin is a twin ---------------------------------------------------------------------------

SHARED = [name for name in vars(FakeClient) if not name.startswith("_") and name in vars(Client)]


@pytest.mark.parametrize("name", sorted(set(SHARED) - {"connected"}))
def test_a_method_of_the_fake_takes_what_the_real_client_takes(name: str) -> None:
    fake, real = getattr(FakeClient, name), getattr(Client, name)
    if not callable(real):
        return

    def parameters(function: Any) -> list[tuple[str, Any, Any]]:
        return [
            (p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()
        ]

    assert parameters(fake) == parameters(real)


@pytest.mark.anyio
async def test_the_fake_answers_like_a_log_would() -> None:
    client = await with_job(FakeClient())
    handle = await client.submit("echo", {"a": 1})
    assert (await handle.outcome(1)).data.output == {"a": 1}
    view = await client.find(handle.invocation)
    assert (view.state, view.attempts) == ("completed", 1)
    assert replace(view, outcome=None).ended is False
