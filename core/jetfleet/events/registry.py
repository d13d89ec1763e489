"""Registry events: what people declared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jetfleet.events.envelope import Event
from jetfleet.specs import Frozen, JobSpec, ModelSpec, Name


class ModelRegistered(Event):
    """A model version was registered; it never changes afterwards."""

    class Data(Frozen):
        model: ModelSpec

    type: Literal["jetfleet.model.registered"] = "jetfleet.model.registered"
    data: Data


class JobCreated(Event):
    """An InferenceJob was opened on a snapshot of a model version."""

    class Data(Frozen):
        job: JobSpec

    type: Literal["jetfleet.job.created"] = "jetfleet.job.created"
    data: Data


class JobUpdated(Event):
    """A job's settings or its model snapshot were changed; ``job`` is the whole new state."""

    class Data(Frozen):
        job: JobSpec
        changed: tuple[str, ...] = Field(description="names of the fields that changed")

    type: Literal["jetfleet.job.updated"] = "jetfleet.job.updated"
    data: Data


class JobEnabled(Event):
    """A job accepts invocations again."""

    class Data(Frozen):
        job: Name

    type: Literal["jetfleet.job.enabled"] = "jetfleet.job.enabled"
    data: Data


class JobDisabled(Event):
    """A job accepts no invocations for now; what is queued is still served."""

    class Data(Frozen):
        job: Name
        reason: str = ""

    type: Literal["jetfleet.job.disabled"] = "jetfleet.job.disabled"
    data: Data


class JobDeleted(Event):
    """A job was removed; its replicas are released, what is still queued is cancelled."""

    class Data(Frozen):
        job: Name

    type: Literal["jetfleet.job.deleted"] = "jetfleet.job.deleted"
    data: Data
