"""Events of capacity: what providers of workers offer and do, and what is asked of them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from jetfleet.events.envelope import Event
from jetfleet.events.fleet import Why
from jetfleet.specs import Frozen, Name, Resources, Token


class WorkerShape(Frozen):
    """A worker as a provider starts it."""

    memory_mib: int = Field(ge=1)
    gpus: int = Field(0, ge=0, le=64)
    gpu_memory_mib: int = Field(0, ge=0, description="of each GPU")
    gpu_capability: float | None = Field(None, description="CUDA compute capability")
    labels: dict[str, str] = Field(default_factory=dict)
    owner: str = ""
    trusted: bool = False
    price_per_hour: float = Field(0.0, ge=0)


class CapacityNeed(Frozen):
    """Replicas of a job that are wanted and fit nowhere."""

    tenant: Name
    job: Name
    replicas: int = Field(ge=1)
    resources: Resources
    labels: dict[str, str] = Field(default_factory=dict)
    trusted: bool = False
    max_price_per_hour: float | None = None


class CapacityOffered(Event):
    """A provider can start workers of this shape; what it offered before holds no more."""

    class Data(Frozen):
        provider: Name
        session: Token = Field(description="UUIDv7 of this run of the provider")
        kind: Literal["process", "docker", "command"]
        shape: WorkerShape
        most: int = Field(ge=0, description="workers at once; 0: none for now")
        boot_s: float = Field(gt=0, description="longest time from asked to joined, seconds")
        lease_s: float = Field(0, ge=0, description="shortest time that one is kept, seconds")
        idle_s: float = Field(0, ge=0, description="without a replica for so long, it is released")

    type: Literal["jetfleet.capacity.offered"] = "jetfleet.capacity.offered"
    data: Data


class CapacityRequested(Event):
    """Replicas fit nowhere: a provider shall start these workers."""

    class Data(Frozen):
        request: Token
        provider: Name
        count: int = Field(ge=1)
        workers: tuple[Name, ...] = Field(description="names of the workers to start")
        shape: WorkerShape
        needs: tuple[CapacityNeed, ...] = Field(description="which jobs ask, and for what")
        expires_at: datetime = Field(description="who has not joined by then is not waited for")
        lease_s: float = Field(0, ge=0)
        idle_s: float = Field(0, ge=0)
        why: Why = Field(description="its candidates are providers")

    type: Literal["jetfleet.capacity.requested"] = "jetfleet.capacity.requested"
    data: Data


class CapacityWithheld(Event):
    """Replicas fit nowhere, and no provider is asked; said when the reason changes."""

    class Data(Frozen):
        needs: tuple[CapacityNeed, ...]
        why: Why = Field(description="its candidates are providers")

    type: Literal["jetfleet.capacity.withheld"] = "jetfleet.capacity.withheld"
    data: Data


class CapacityReleased(Event):
    """A worker that a provider started is no longer needed: it drains and is given back."""

    class Data(Frozen):
        request: Token
        provider: Name
        worker: Name
        session: Token
        why: Why

    type: Literal["jetfleet.capacity.released"] = "jetfleet.capacity.released"
    data: Data


class CapacityAccepted(Event):
    """A provider will start these workers."""

    class Data(Frozen):
        provider: Name
        request: Token
        workers: tuple[Name, ...]

    type: Literal["jetfleet.capacity.accepted"] = "jetfleet.capacity.accepted"
    data: Data


class CapacityStarted(Event):
    """A provider started a worker, which has not joined yet."""

    class Data(Frozen):
        provider: Name
        request: Token
        worker: Name
        handle: str = Field("", max_length=512, description="what the provider calls it")

    type: Literal["jetfleet.capacity.started"] = "jetfleet.capacity.started"
    data: Data


class CapacityRefused(Event):
    """A provider does not start these workers; it is left alone for a while."""

    class Data(Frozen):
        provider: Name
        request: Token
        workers: tuple[Name, ...]
        reason: str

    type: Literal["jetfleet.capacity.refused"] = "jetfleet.capacity.refused"
    data: Data


class CapacityStopped(Event):
    """A worker that a provider started is given back; it costs nothing any more."""

    class Data(Frozen):
        provider: Name
        request: Token
        worker: Name
        reason: str

    type: Literal["jetfleet.capacity.stopped"] = "jetfleet.capacity.stopped"
    data: Data


CapacityDecision = CapacityRequested | CapacityWithheld | CapacityReleased
ProviderEvent = (
    CapacityOffered | CapacityAccepted | CapacityStarted | CapacityRefused | CapacityStopped
)
