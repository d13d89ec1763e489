"""The client for code without an event loop: the same methods, blocking.

An event loop runs in a thread of its own (anyio's blocking portal); calls may come from any thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from jetfleet.client import Client, Handle
from jetfleet.events import OutcomeEvent
from jetfleet.log import Record, Start
from jetfleet.queries import Rows
from jetfleet.registry import Change
from jetfleet.settings import Settings
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet.streams import INVOCATIONS
from jetfleet.views import InvocationView


@dataclass(slots=True, eq=False)
class SyncHandle:
    """An accepted invocation; see ``Handle``."""

    handle: Handle
    portal: BlockingPortal

    @property
    def invocation(self) -> str:
        return self.handle.invocation

    def outcome(self, wait_s: float | None = None) -> OutcomeEvent:
        """See ``Handle.outcome``."""
        return self.portal.call(self.handle.outcome, wait_s)

    def output(self, wait_s: float | None = None) -> Any:
        """See ``Handle.output``."""
        return self.portal.call(self.handle.output, wait_s)

    def chunks(self) -> Iterator[Any]:
        """See ``Handle.chunks``."""
        return _iterate(self.portal, self.handle.chunks())

    def cancel(self, reason: str = "") -> None:
        """See ``Handle.cancel``."""
        self.portal.call(self.handle.cancel, reason)


@dataclass(slots=True, eq=False)
class SyncClient:
    """See ``Client``; use it as ``with SyncClient.connect() as client``."""

    client: Client
    portal: BlockingPortal
    _owner: AbstractContextManager[BlockingPortal]

    @classmethod
    def connect(
        cls, settings: Settings | None = None, *, role: str = "operator", name: str | None = None
    ) -> Self:
        """See ``Client.connect``."""
        owner = start_blocking_portal("asyncio", backend_options={"use_uvloop": True})
        portal = owner.__enter__()
        try:
            client = portal.call(lambda: Client.connect(settings, role=role, name=name))
        except BaseException:
            owner.__exit__(None, None, None)
            raise
        return cls(client, portal, owner)

    def close(self) -> None:
        """Close the connection and end the thread."""
        try:
            self.portal.call(self.client.close)
        finally:
            self._owner.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def register_model(self, spec: ModelSpec) -> Change:
        """See ``Client.register_model``."""
        return self.portal.call(self.client.register_model, spec)

    def apply_job(self, spec: JobSpec) -> Change:
        """See ``Client.apply_job``."""
        return self.portal.call(self.client.apply_job, spec)

    def create_job(self, spec: JobSpec) -> Change:
        """See ``Client.create_job``."""
        return self.portal.call(self.client.create_job, spec)

    def enable_job(self, job: str) -> Change:
        """See ``Client.enable_job``."""
        return self.portal.call(self.client.enable_job, job)

    def disable_job(self, job: str, reason: str = "") -> Change:
        """See ``Client.disable_job``."""
        return self.portal.call(self.client.disable_job, job, reason)

    def delete_job(self, job: str) -> Change:
        """See ``Client.delete_job``."""
        return self.portal.call(self.client.delete_job, job)

    def submit(self, job: str, input: Any, **options: Any) -> SyncHandle:
        """See ``Client.submit``; the same options."""
        handle = self.portal.call(lambda: self.client.submit(job, input, **options))
        return SyncHandle(handle, self.portal)

    def run(self, job: str, input: Any, **options: Any) -> Any:
        """See ``Client.run``; the same options."""
        return self.portal.call(lambda: self.client.run(job, input, **options))

    def find(self, invocation: str) -> InvocationView:
        """See ``Client.find``."""
        return self.portal.call(self.client.find, invocation)

    def cancel(self, invocation: str, reason: str = "") -> InvocationView:
        """See ``Client.cancel``."""
        return self.portal.call(self.client.cancel, invocation, reason)

    def outcome(self, invocation: str, wait_s: float | None = None) -> OutcomeEvent:
        """See ``Client.outcome``."""
        return self.portal.call(self.client.outcome, invocation, wait_s)

    def events(
        self,
        stream: str = INVOCATIONS,
        *,
        start: Start = "all",
        subject: str | None = None,
        follow: bool = False,
    ) -> Iterator[Record]:
        """See ``Client.events``."""
        source = self.client.events(stream, start=start, subject=subject, follow=follow)
        return _iterate(self.portal, source)

    def query(self, name: str, /, **params: Any) -> Rows:
        """See ``Client.query``."""
        return self.portal.call(lambda: self.client.query(name, **params))

    def sql(self, text: str) -> Rows:
        """See ``Client.sql``."""
        return self.portal.call(self.client.sql, text)


def _iterate(portal: BlockingPortal, source: Any) -> Iterator[Any]:
    """An async iterator, item by item, from another thread; closed with the loop over it."""
    iterator = source.__aiter__()
    try:
        while True:
            try:
                item = portal.call(iterator.__anext__)
            except StopAsyncIteration:
                return
            yield item
    finally:
        portal.call(iterator.aclose)
