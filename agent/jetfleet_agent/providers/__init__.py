"""Providers of workers: they start what the conductor asks for, and give it back.

``Provider`` (in ``provider``) listens, answers and reconciles; a ``Backend`` knows one way to start
a worker: ``process``, ``docker``, ``command``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from jetfleet.errors import JetfleetError
from jetfleet.events import WorkerShape

Kind = Literal["process", "docker", "command"]


class CannotStart(JetfleetError):
    """The worker cannot be started."""

    code = "cannot_start"


class CannotStop(JetfleetError):
    """The worker cannot be stopped, or whether it is there cannot be told; tried again."""

    code = "cannot_stop"


@dataclass(frozen=True, slots=True)
class Start:
    """A worker to start.

    Args:
        agent: arguments of ``jetfleet`` that make a machine this worker.
        environment: what the agent needs beside them; the join token is in it.
    """

    worker: str
    request: str
    shape: WorkerShape
    agent: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


class Backend(Protocol):
    """One way to start workers. All is told by the worker's name, and may be told twice."""

    kind: Kind

    async def start(self, what: Start) -> str:
        """Start it, or find it started; what it is called there.

        Raises:
            CannotStart: it is not there, and is not coming.
        """
        ...

    async def stop(self, worker: str, handle: str) -> None:
        """Stop it and leave nothing of it; one that is not there is stopped.

        Raises:
            CannotStop: it may still be there.
        """
        ...

    async def list(self) -> Collection[str] | None:
        """The workers of this provider that are there; None: this backend cannot tell.

        Raises:
            CannotStop: it cannot be told now.
        """
        ...

    async def close(self, *, leave: bool) -> None:
        """The provider ends. ``leave``: what it started stays."""
        ...
