"""Whether a subject and the body that came on it say the same.

The broker checks what a user may publish by subject alone, so a body is believed only where it says
what its subject says. Tokens of a subject are vouched for, the body is a claim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from jetfleet import subjects
from jetfleet.events import (
    OUTCOMES,
    AnyEvent,
    CapacityDecision,
    FleetEvent,
    JobBalanced,
    JobCreated,
    JobDeleted,
    JobDisabled,
    JobEnabled,
    JobScaled,
    JobTried,
    JobUpdated,
    ModelRegistered,
    ProviderEvent,
    ReplicaAssigned,
    ReplicaReleased,
    WorkerAdmitted,
    WorkerTokenRevoked,
)
from jetfleet.streams import FLEET, INVOCATIONS, REGISTRY

_VERBS = {
    "jetfleet.invocation.queued": "queued",
    "jetfleet.invocation.started": "started",
    "jetfleet.invocation.cancel_requested": "cancel",
    **{outcome.model_fields["type"].default: "done" for outcome in OUTCOMES},
}
_INVOCATION_TOKENS = {"queued": 7, "cancel": 6, "started": 7, "done": 8}


@dataclass(frozen=True, slots=True)
class Route:
    """What the subject of an invocation event says; None where it says nothing."""

    verb: str | None = None
    tenant: str | None = None
    job: str | None = None
    priority_class: str | None = None
    worker: str | None = None

    def columns(self) -> tuple[str | None, ...]:
        return (self.verb, self.tenant, self.job, self.priority_class, self.worker)


@functools.lru_cache(maxsize=50_000)
def route(subject: str) -> Route:
    """Read a subject of INVOCATIONS; a ``Route`` of Nones when it is of no known shape.

    ``jf.inv.<shard>.<tenant>.<job>.queued.<class>``, ``.cancel``, ``.started.<worker>``,
    ``.done.<origin>.<worker>``. An outcome on worker ``-`` is the gateway's or conductor's:
    they may name who ran it, so there the subject says nothing about the worker.
    """
    tokens = subject.split(".")
    if len(tokens) < 6 or len(tokens) != _INVOCATION_TOKENS.get(tokens[5], 0):
        return Route()
    tenant, job, verb, last = tokens[3], tokens[4], tokens[5], tokens[-1]
    nobody = verb == "done" and last == subjects.NOBODY
    names = [tenant, job, *([last] if verb != "cancel" and not nobody else [])]
    if not all(map(subjects.is_name, names)):
        return Route()
    return Route(
        verb,
        tenant,
        job,
        priority_class=last if verb == "queued" else None,
        worker=last if verb in ("started", "done") and not nobody else None,
    )


def disagreement(stream: str, subject: str, event: AnyEvent) -> str:
    """How an event contradicts the subject it came on; empty when it does not."""
    if stream == INVOCATIONS:
        return _invocation_disagreement(route(subject), event)
    expected = subject_of(stream, event)
    return "" if subject == expected else f"its subject would be {expected}"


def subject_of(stream: str, event: AnyEvent) -> str:
    """The only subject of REGISTRY or FLEET on which an event is believed."""
    return _EXPECTED[stream](event)


def verb_of(event_type: str) -> str:
    """The verb in the subject of an invocation event of this type; empty: another event."""
    return _VERBS.get(event_type, "")


def _invocation_disagreement(said: Route, event: AnyEvent) -> str:
    if said.verb is None:
        return "the subject is none of an invocation event"
    if verb_of(event.type) != said.verb:
        return f"a {event.type} event on the subject of {said.verb}"
    data = event.data.__dict__
    pairs = (
        ("tenant", said.tenant, event.tenant),
        ("job", said.job, data["job"]),
        ("class", said.priority_class, data.get("priority_class")),
        ("worker", said.worker, data.get("worker")),
    )
    for name, token, claim in pairs:
        if token is not None and claim is not None and token != claim:
            return f"{name} {token} in the subject, {claim} in the body"
    return ""


def _registry_subject(event: AnyEvent) -> str:
    verb = event.type.rpartition(".")[2]
    match event:
        case ModelRegistered():
            return subjects.model_event(event.tenant, event.data.model.name, verb)
        case JobCreated() | JobUpdated():
            return subjects.job_event(event.tenant, event.data.job.name, verb)
        case JobEnabled() | JobDisabled() | JobDeleted():
            return subjects.job_event(event.tenant, event.data.job, verb)
    return "in another stream"


def _fleet_subject(event: AnyEvent) -> str:
    verb = event.type.rpartition(".")[2]
    if isinstance(event, ReplicaAssigned | ReplicaReleased):
        return subjects.control(event.tenant, event.data.job, verb, event.data.worker)
    if isinstance(event, JobScaled | JobBalanced | JobTried):
        return _OF_JOB[type(event)](event.tenant, event.data.job)
    if isinstance(event, WorkerAdmitted):
        return subjects.admitted(event.data.worker)
    if isinstance(event, WorkerTokenRevoked):
        return subjects.revoked(event.data.token)
    if isinstance(event, get_args(FleetEvent)):
        return subjects.fleet(event.data.worker, verb)
    return "in another stream"


def _capacity_subject(event: AnyEvent) -> str:
    verb = event.type.rpartition(".")[2]
    if isinstance(event, ProviderEvent):
        return subjects.provider(event.data.provider, verb)
    if isinstance(event, CapacityDecision):
        return subjects.capacity_decision(verb)
    return _fleet_subject(event)


_OF_JOB: Mapping[type, Callable[[str, str], str]] = {
    JobScaled: subjects.scaled,
    JobBalanced: subjects.balanced,
    JobTried: subjects.tried,
}
_EXPECTED: Mapping[str, Callable[[AnyEvent], str]] = {
    REGISTRY: _registry_subject,
    FLEET: _capacity_subject,
}
