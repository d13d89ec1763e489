"""Every event of the system.

An event is a CloudEvents 1.0 JSON document (structured mode): the envelope's attributes and, under
``data``, what happened. ``type`` is a literal string, never a Python path; ``dataversion`` numbers
the shape of ``data``, and old shapes are lifted by ``upcast`` on reading. Events are frozen: what
has happened does not change.

Attribute names follow CloudEvents (lower case, no separators): ``source`` is the actor,
``correlationid`` groups everything one request caused (an invocation's id), ``causationid`` is the
event that caused this one, ``traceparent`` the W3C trace of the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from jetfleet.events.capacity import (
    CapacityAccepted,
    CapacityDecision,
    CapacityNeed,
    CapacityOffered,
    CapacityRefused,
    CapacityReleased,
    CapacityRequested,
    CapacityStarted,
    CapacityStopped,
    CapacityWithheld,
    ProviderEvent,
    WorkerShape,
)
from jetfleet.events.envelope import Event, InvalidEvent
from jetfleet.events.fleet import (
    Candidate,
    GpuLoad,
    JobBalanced,
    JobLoad,
    JobScaled,
    JobTried,
    PullLevel,
    ReplicaAssigned,
    ReplicaChange,
    ReplicaFailed,
    ReplicaPreparing,
    ReplicaReady,
    ReplicaReleased,
    ReplicaStopped,
    ReplicaTried,
    RoomFor,
    Why,
    WorkerAdmitted,
    WorkerDraining,
    WorkerHeartbeat,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
    WorkerTokenRevoked,
)
from jetfleet.events.invocations import (
    BlobRef,
    Failure,
    InvocationCancelled,
    InvocationCancelRequested,
    InvocationCompleted,
    InvocationExpired,
    InvocationFailed,
    InvocationQueued,
    InvocationStarted,
    Outcome,
)
from jetfleet.events.registry import (
    JobCreated,
    JobDeleted,
    JobDisabled,
    JobEnabled,
    JobUpdated,
    ModelRegistered,
)
from jetfleet.events.versions import lift
from jetfleet.limits import excess, modest

RegistryEvent = ModelRegistered | JobCreated | JobUpdated | JobEnabled | JobDisabled | JobDeleted
OutcomeEvent = InvocationCompleted | InvocationFailed | InvocationCancelled | InvocationExpired
InvocationEvent = InvocationQueued | InvocationCancelRequested | InvocationStarted | OutcomeEvent
ControlEvent = (
    ReplicaAssigned | ReplicaReleased | JobScaled | JobBalanced | JobTried | CapacityDecision
)
AdmissionEvent = WorkerAdmitted | WorkerTokenRevoked
FleetEvent = (
    WorkerJoined
    | WorkerDraining
    | WorkerLeft
    | WorkerLost
    | ReplicaPreparing
    | ReplicaReady
    | ReplicaFailed
    | ReplicaTried
    | ReplicaStopped
    | AdmissionEvent
    | ControlEvent
    | ProviderEvent
)
AnyEvent = RegistryEvent | InvocationEvent | FleetEvent | WorkerHeartbeat
EVENT_TYPES: Mapping[str, type[Event]] = {
    cls.model_fields["type"].default: cls for cls in get_args(AnyEvent)
}
_TYPE_NAMES: Mapping[type[Event], str] = {cls: name for name, cls in EVENT_TYPES.items()}
OUTCOMES = get_args(OutcomeEvent)
ENVELOPE_LEVELS = 2  # an input or output lies in the data of an event
_ADAPTER: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="type")])


def encode(event: Event) -> bytes:
    """The event as compact CloudEvents JSON; attributes that are None are left out."""
    return event.__pydantic_serializer__.to_json(event, exclude_none=True)


def compose(kind: type[Event], envelope: Mapping[str, Any], data: Mapping[str, Any]) -> bytes:
    """The bytes of an event from trusted parts, a third of the cost of building and encoding it.

    For the events of the invocation's path alone; readers validate whatever they read, and a test
    holds composed events against built ones. None is left out, as ``encode`` does.
    """
    document = {
        "specversion": "1.0",
        "type": _TYPE_NAMES[kind],
        "dataversion": 1,
        **envelope,
        "data": data,
    }
    return to_json({name: value for name, value in document.items() if value is not None})


def unreadable(body: bytes) -> str | None:
    """Why a composed event must not be published: no reader could decode it. None: it may be.

    Costs next to nothing for bodies that are plainly harmless; all others are decoded.
    """
    if modest(body):
        return None
    if why := excess(body, around=ENVELOPE_LEVELS):
        return why
    try:
        decode(body)
    except InvalidEvent as error:
        return str(error)
    return None


def decode(body: bytes | str) -> AnyEvent:
    """Read an event, lifting an old ``dataversion`` first.

    Raises:
        InvalidEvent: not JSON, an unknown type, or a body its type does not allow.
    """
    try:
        return _ADAPTER.validate_json(body)
    except ValidationError as first:
        lifted = lift(body)
        if lifted is None:
            raise InvalidEvent(_explain(first)) from first
        try:
            return _ADAPTER.validate_python(lifted)
        except ValidationError as error:
            raise InvalidEvent(_explain(error)) from error


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the document"
    return f"not a valid event: {where}: {first['msg']}"


__all__ = [
    "EVENT_TYPES",
    "OUTCOMES",
    "AdmissionEvent",
    "AnyEvent",
    "BlobRef",
    "Candidate",
    "CapacityAccepted",
    "CapacityDecision",
    "CapacityNeed",
    "CapacityOffered",
    "CapacityRefused",
    "CapacityReleased",
    "CapacityRequested",
    "CapacityStarted",
    "CapacityStopped",
    "CapacityWithheld",
    "ControlEvent",
    "Event",
    "Failure",
    "FleetEvent",
    "GpuLoad",
    "InvalidEvent",
    "InvocationCancelRequested",
    "InvocationCancelled",
    "InvocationCompleted",
    "InvocationEvent",
    "InvocationExpired",
    "InvocationFailed",
    "InvocationQueued",
    "InvocationStarted",
    "JobBalanced",
    "JobCreated",
    "JobDeleted",
    "JobDisabled",
    "JobEnabled",
    "JobLoad",
    "JobScaled",
    "JobTried",
    "JobUpdated",
    "ModelRegistered",
    "Outcome",
    "OutcomeEvent",
    "ProviderEvent",
    "PullLevel",
    "RegistryEvent",
    "ReplicaAssigned",
    "ReplicaChange",
    "ReplicaFailed",
    "ReplicaPreparing",
    "ReplicaReady",
    "ReplicaReleased",
    "ReplicaStopped",
    "ReplicaTried",
    "RoomFor",
    "Why",
    "WorkerAdmitted",
    "WorkerDraining",
    "WorkerHeartbeat",
    "WorkerJoined",
    "WorkerLeft",
    "WorkerLost",
    "WorkerShape",
    "WorkerTokenRevoked",
    "compose",
    "decode",
    "encode",
    "unreadable",
]
