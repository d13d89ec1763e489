"""One example of each event, for docs/events.md: one story, with fixed ids and times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from jetfleet import events
from jetfleet.events import Event
from jetfleet.specs import JobSpec, Machine, ModelSpec, Resources

NOON = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
INVOCATION = "019c13f1-8a00-7c41-9d2e-5b7a10c3e601"
REPLICA = "019c13f0-6d80-7a52-8e11-0c4d5f6a7b02"
SESSION = "019c13f0-2ee0-7b63-9a22-1d5e6f7a8b03"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ORIGIN = "3f9a0c12b4d5"
WORKER, JOB = "local", "filetype"
MODEL = ModelSpec(
    name="magika",
    function="/srv/models/filetype.py:identify",
    resources=Resources(memory_mib=200),
    description="what type a file is, from its content",
)
JOB_SPEC = JobSpec(name=JOB, model=MODEL, min_replicas=2, max_replicas=2, timeout_s=30)
WHY = events.Why(
    policy="weighted",
    policy_version=1,
    reason="best of 1 workers: apart 1, speed 0.5, price 1, room 0.97, image 1",
    observed_registry_seq=4,
    observed_fleet_seq=1,
    candidates=(events.Candidate(worker=WORKER, score=0.8464),),
)
WHY_RELEASED = WHY.model_copy(update={"reason": "the job was deleted", "candidates": ()})
WHY_SCALED = WHY.model_copy(
    update={
        "policy": "lag", "reason": "2 queued or running at 1 a replica need 2", "candidates": (),
    }
)  # fmt: skip
WHY_TRIED = WHY.model_copy(
    update={
        "policy": "trial", "candidates": (),
        "reason": f"{WORKER}, a trusted worker, says so: model_error: KeyError: 'path'",
    }
)  # fmt: skip
WHY_BALANCED = WHY.model_copy(
    update={
        "policy": "overflow", "candidates": (),
        "reason": "attic: 10 runs/s against 200 of faster workers at 60 arrivals/s: waits for 14"
        " pending",
    }
)  # fmt: skip
WHY_REQUESTED = WHY.model_copy(
    update={
        "policy": "next-fit",
        "reason": "1 worker of cloud for 2 of 2 replicas that fit nowhere, at 1.2 an hour each",
        "candidates": (
            events.Candidate(worker="cloud", score=1.0),
            events.Candidate(worker="process", rejected="it offers none now"),
        ),
    }
)
WHY_WITHHELD = WHY_REQUESTED.model_copy(
    update={
        "reason": "cloud: the fleet's providers may have 1 worker; process: it offers none now",
        "candidates": (
            events.Candidate(worker="cloud", rejected="the fleet's providers may have 1 worker"),
            events.Candidate(worker="process", rejected="it offers none now"),
        ),
    }
)
WHY_GIVEN_BACK = WHY_REQUESTED.model_copy(
    update={
        "reason": "it had no replica for 300 s, and was kept for 600 s", "candidates": (),
    }
)  # fmt: skip
PUBLIC_KEY = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
JOINED_WITH = "5c9e0f3a71b24d88"
MACHINE = Machine(
    hostname="box", cpu_count=8, memory_mib=16_384, disk_free_mib=91_000,
    architecture="x86_64", python="3.11.7",
)  # fmt: skip

_DONE = {
    "invocation": INVOCATION, "job": JOB, "worker": WORKER, "replica": REPLICA,
    "attempt": 1, "run_s": 0.031,
}  # fmt: skip
_WORKER = {"worker": WORKER, "session": SESSION}
_REPLICA = {"worker": WORKER, "job": JOB, "replica": REPLICA}
_GONE = {"invocation": INVOCATION, "job": JOB}  # nobody ran it
_NEED = {"tenant": "default", "job": JOB, "replicas": 2, "resources": MODEL.resources}
_SHAPE = {"memory_mib": 32_768, "price_per_hour": 1.2}
_TERMS = {"lease_s": 600, "idle_s": 300}
_CLOUD = {"provider": "cloud", "request": "019c13f2-1c40-7d74-8b33-2e6f7a8b9c04"}
_PROVIDER, _PROVIDED = "provider/cloud", "cloud-7a8b9c04-1"
_CLIENT, _AGENT, _CONDUCTOR = f"gateway/{ORIGIN}", f"worker/{WORKER}", "conductor/5f0c1a2b"

# type -> (source, data)
_SAID: Mapping[str, tuple[str, dict[str, Any]]] = {
    "model.registered": (_CLIENT, {"model": MODEL}),
    "job.created": (_CLIENT, {"job": JOB_SPEC}),
    "job.updated": (_CLIENT, {"job": JOB_SPEC, "changed": ("timeout_s",)}),
    "job.enabled": (_CLIENT, {"job": JOB}),
    "job.disabled": (_CLIENT, {"job": JOB, "reason": "the model is being retrained"}),
    "job.deleted": (_CLIENT, {"job": JOB}),
    "invocation.queued": (
        _CLIENT,
        {
            "invocation": INVOCATION, "job": JOB, "input": {"path": "/etc/hostname"},
            "origin": ORIGIN, "timeout_s": 30.0, "expires_at": NOON + timedelta(hours=1),
        },
    ),
    "invocation.cancel_requested": (
        _CLIENT,
        {**_GONE, "queued_seq": 1, "origin": ORIGIN, "reason": "not needed any more"},
    ),
    "invocation.started": (
        _AGENT,
        {**_REPLICA, "invocation": INVOCATION, "attempt": 1, "run_s": 0.0206},
    ),
    "invocation.completed": (_AGENT, {**_DONE, "output": {"label": "txt", "score": 0.98}}),
    "invocation.failed": (
        _AGENT,
        {
            **_DONE,
            "error": events.Failure(
                code="model_error",
                message="ValueError: cannot read it: file_not_found_error",
                detail="Traceback (most recent call last): ...",
            ),
        },
    ),
    "invocation.cancelled": (_CONDUCTOR, {**_GONE, "reason": "not needed any more"}),
    "invocation.expired": (_CONDUCTOR, {**_GONE, "expires_at": NOON}),
    "worker.joined": (
        _AGENT, {**_WORKER, "machine": MACHINE, "agent_version": "0.1.0", "public_key": PUBLIC_KEY},
    ),
    "worker.draining": (_AGENT, _WORKER),
    "worker.left": (_AGENT, _WORKER),
    "worker.lost": (_CONDUCTOR, {**_WORKER, "silent_s": 6.2}),
    "worker.admitted": (
        _CONDUCTOR,
        {
            "worker": WORKER, "public_key": PUBLIC_KEY, "token": JOINED_WITH, "trusted": False,
            "owner": "ada", "labels": {"zone": "attic"},
        },
    ),
    "worker.token_revoked": ("cli", {"token": JOINED_WITH, "reason": "it was in a screenshot"}),
    "replica.preparing": (_AGENT, _REPLICA),
    "replica.ready": (_AGENT, {**_REPLICA, "prepare_s": 0.84}),
    "replica.failed": (
        _AGENT,
        {
            **_REPLICA, "reason": "the model could not be imported",
            "log_tail": ("ModuleNotFoundError: No module named 'magika'",),
        },
    ),
    "replica.tried": (
        _AGENT,
        {**_REPLICA, "passed": False, "reason": "model_error: KeyError: 'path'", "run_s": 0.012},
    ),
    "replica.stopped": (_AGENT, _REPLICA),
    "replica.assigned": (_CONDUCTOR, {**_REPLICA, "spec": JOB_SPEC, "shard": 2, "why": WHY}),
    "replica.released": (_CONDUCTOR, {**_REPLICA, "why": WHY_RELEASED}),
    "job.scaled": (
        _CONDUCTOR,
        {
            "job": JOB, "before": 0, "desired": 2, "wanted": 2,
            "inputs": {"queued": 2, "in_flight": 0, "ready": 0, "threshold": 1}, "why": WHY_SCALED,
        },
    ),
    "job.tried": (
        _CONDUCTOR,
        {
            "job": JOB, "model": "magika:2", "status": "failed", "keeps": MODEL.ref,
            "reason": "model_error: KeyError: 'path'", "worker": WORKER, "replica": REPLICA,
            "registry_seq": 4, "why": WHY_TRIED,
        },
    ),
    "job.balanced": (
        _CONDUCTOR,
        {
            "job": JOB, "rate": 60.0, "pending": 0,
            "levels": (
                {"workers": (WORKER,), "slots": 1, "service_s": 0.005},
                {"workers": ("attic",), "slots": 1, "service_s": 0.1, "min_pending": 14},
            ),
            "why": WHY_BALANCED,
        },
    ),
    "capacity.offered": (
        _PROVIDER,
        {
            "provider": "cloud", "session": SESSION, "kind": "command", "shape": _SHAPE, "most": 4,
            "boot_s": 600, **_TERMS,
        },
    ),
    "capacity.requested": (
        _CONDUCTOR,
        {
            **_CLOUD, "count": 1, "workers": (_PROVIDED,), "shape": _SHAPE, "needs": (_NEED,),
            "expires_at": NOON + timedelta(minutes=10), **_TERMS, "why": WHY_REQUESTED,
        },
    ),
    "capacity.withheld": (_CONDUCTOR, {"needs": (_NEED,), "why": WHY_WITHHELD}),
    "capacity.accepted": (_PROVIDER, {**_CLOUD, "workers": (_PROVIDED,)}),
    "capacity.started": (_PROVIDER, {**_CLOUD, "worker": _PROVIDED, "handle": "i-0a1b2c3d"}),
    "capacity.refused": (
        _PROVIDER,
        {
            **_CLOUD, "workers": (_PROVIDED,),
            "reason": "start ended with status 1: no such machine is free in eu-north-1",
        },
    ),
    "capacity.released": (
        _CONDUCTOR,
        {**_CLOUD, "worker": _PROVIDED, "session": SESSION, "why": WHY_GIVEN_BACK},
    ),
    "capacity.stopped": (
        _PROVIDER, {**_CLOUD, "worker": _PROVIDED, "reason": "it has left"},
    ),
    "worker.heartbeat": (
        _AGENT,
        {
            **_WORKER, "cpu": 0.21, "memory_used_mib": 3_021,
            "jobs": (
                events.JobLoad(
                    job=JOB, tenant="default", replicas_ready=2, slots=2, running=1,
                    finished=194, busy_s=6.1,
                ),
            ),
        },
    ),
}  # fmt: skip


def examples() -> Iterator[Event]:
    """One of each, in the order of ``EVENT_TYPES``; each a valid event.

    Raises:
        KeyError: there is no example of a type.
    """
    for number, (name, kind) in enumerate(events.EVENT_TYPES.items()):
        source, data = _SAID[name.removeprefix("jetfleet.")]
        of_invocation = "invocation" in data
        envelope = {
            "id": f"019c13f1-8b{number:02x}-7000-8000-0000000000{number:02x}",
            "source": source,
            "time": NOON + timedelta(milliseconds=number),
            "tenant": "default",
            "correlationid": INVOCATION if of_invocation else None,
            "traceparent": TRACE if of_invocation else None,
        }
        yield kind.model_validate({**envelope, "type": name, "data": data})
