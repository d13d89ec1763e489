"""Workers and replicas as a fold over FLEET: ``evolve_fleet(state, event, seq) -> state``.

Frozen values, no clock, no I/O: the conductor, the gateway, the CLI and the simulator fold the
same events to the same states. Events that contradict the state (an unknown replica, an old
session) change nothing: what a stale or lying worker says is never obeyed.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import singledispatch
from typing import Literal

from jetfleet.catalog import JobKey, JobState
from jetfleet.events import (
    AdmissionEvent,
    CapacityReleased,
    ControlEvent,
    Event,
    JobScaled,
    JobTried,
    ReplicaAssigned,
    ReplicaFailed,
    ReplicaPreparing,
    ReplicaReady,
    ReplicaReleased,
    ReplicaStopped,
    ReplicaTried,
    WorkerAdmitted,
    WorkerDraining,
    WorkerJoined,
    WorkerLeft,
    WorkerLost,
    WorkerTokenRevoked,
)
from jetfleet.persistent import drop, put
from jetfleet.specs import JobSpec, Machine, ModelSpec
from jetfleet.trials import LOST_KEPT, Served, Trial, TrialKey
from jetfleet.yielding import Freed, Yielded, Yields, frees, yields

WorkerStatus = Literal["joined", "draining", "left", "lost"]
ReplicaStatus = Literal["assigned", "preparing", "ready", "releasing"]
FAILURES_KEPT = 8  # per job and worker; more do not change the back-off


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker as the log knows it."""

    name: str
    session: str
    machine: Machine
    status: WorkerStatus
    joined_seq: int
    public_key: str
    heartbeat_s: float
    labels: Mapping[str, str]
    owner: str
    trusted: bool
    price_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class Admission:
    """What a worker that came with a join token is trusted with, whatever it says of itself."""

    public_key: str
    token: str
    trusted: bool
    owner: str
    labels: Mapping[str, str]
    seq: int
    at: datetime  # by the conductor's clock


@dataclass(frozen=True, slots=True)
class TokenState:
    """A join token: the (worker, public key) pairs that were let in with it."""

    admitted: frozenset[tuple[str, str]] = frozenset()
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica that is somewhere between assigned and gone."""

    id: str
    tenant: str
    job: str
    worker: str
    status: ReplicaStatus
    spec: JobSpec
    assigned_seq: int
    assigned_at: datetime
    ready_at: datetime | None = None
    gpus: tuple[str, ...] = ()  # names of the GPUs that it was given (``GpuSpec.id``)
    released_seq: int = 0  # of the last decision to let it go
    replaces: str = ""  # id of the replica that goes once this one serves
    trial: bool = False  # it was to run the model's example first
    registry_seq: int = 0  # registry events known when it was assigned
    yields_to: JobKey | None = None  # the more important job that it makes room for

    @property
    def key(self) -> JobKey:
        return (self.tenant, self.job)

    @property
    def trial_key(self) -> TrialKey:
        return (self.tenant, self.job, self.spec.model.ref)


@dataclass(frozen=True, slots=True)
class FleetState:
    """Workers and replicas. ``seq``: last fleet event folded; ``control_seq``: last decision."""

    seq: int = 0
    control_seq: int = 0
    workers: Mapping[str, WorkerState] = field(default_factory=dict)
    replicas: Mapping[str, ReplicaState] = field(default_factory=dict)
    admissions: Mapping[str, Admission] = field(default_factory=dict)  # the last of each worker
    tokens: Mapping[str, TokenState] = field(default_factory=dict)  # those used or revoked
    # How many replicas were decided last, and the registry events known then: see ``desired``.
    scaled: Mapping[JobKey, tuple[int, int]] = field(default_factory=dict)
    # When replicas of a job failed on a worker, oldest first; emptied when one becomes ready there.
    failures: Mapping[tuple[JobKey, str], tuple[datetime, ...]] = field(default_factory=dict)
    trials: Mapping[TrialKey, Trial] = field(default_factory=dict)
    served: Mapping[JobKey, Served] = field(default_factory=dict)  # the last model let through
    untold: tuple[TrialKey, ...] = ()  # trials that ended and of which no decision tells yet

    def served_model(self, job: JobState) -> ModelSpec | None:
        """The model that the job had anywhere last; None: none, since it was made."""
        served = self.served.get((job.tenant, job.spec.name))
        return None if served is None or served.registry_seq < job.created_seq else served.model

    yielded: Yields = field(default_factory=dict)
    freed: Freed = field(default_factory=dict)  # until the job has a replica there

    def desired(self, job: JobState) -> int | None:
        """By the last scaling decision; None: none was taken since the job was made."""
        desired, registry_seq = self.scaled.get((job.tenant, job.spec.name), (0, -1))
        return desired if registry_seq >= job.created_seq else None


def evolve_fleet(state: FleetState, event: Event, seq: int) -> FleetState:
    """Fold one event of the FLEET stream at position ``seq``."""
    control = seq if isinstance(event, ControlEvent | AdmissionEvent) else state.control_seq
    return replace(_fleet(event, state, seq), seq=max(seq, state.seq), control_seq=control)


@singledispatch
def _fleet(event: Event, state: FleetState, seq: int) -> FleetState:
    return state


@_fleet.register
def _(event: WorkerAdmitted, state: FleetState, seq: int) -> FleetState:
    data = event.data
    admission = Admission(
        data.public_key, data.token, data.trusted, data.owner, data.labels, seq, event.time
    )
    token = state.tokens.get(data.token, TokenState())
    used = replace(token, admitted=token.admitted | {(data.worker, data.public_key)})
    return replace(
        state,
        admissions=put(state.admissions, data.worker, admission),
        tokens=put(state.tokens, data.token, used),
    )


@_fleet.register
def _(event: WorkerTokenRevoked, state: FleetState, seq: int) -> FleetState:
    token = state.tokens.get(event.data.token, TokenState())
    gone = replace(token, revoked=True)
    return replace(state, tokens=put(state.tokens, event.data.token, gone))


@_fleet.register
def _(event: WorkerJoined, state: FleetState, seq: int) -> FleetState:
    data = event.data
    # By name, which the broker vouches for; the public key in here is a claim.
    admission = state.admissions.get(data.worker)
    vouched = data if admission is None else admission
    worker = WorkerState(
        data.worker, data.session, data.machine, "joined", seq, data.public_key, data.heartbeat_s,
        {**data.labels, **vouched.labels}, vouched.owner, vouched.trusted, data.price_per_hour,
    )  # fmt: skip
    kept = _without_replicas(state, data.worker, event.time, keep=frozenset(data.replicas))
    return replace(kept, workers=put(state.workers, data.worker, worker))


@_fleet.register
def _(event: WorkerDraining, state: FleetState, seq: int) -> FleetState:
    return _change_worker(state, event.data.worker, event.data.session, "draining", event.time)


@_fleet.register
def _(event: CapacityReleased, state: FleetState, seq: int) -> FleetState:
    return _change_worker(state, event.data.worker, event.data.session, "draining", event.time)


@_fleet.register
def _(event: WorkerLeft, state: FleetState, seq: int) -> FleetState:
    return _change_worker(state, event.data.worker, event.data.session, "left", event.time)


@_fleet.register
def _(event: WorkerLost, state: FleetState, seq: int) -> FleetState:
    return _change_worker(state, event.data.worker, event.data.session, "lost", event.time)


@_fleet.register
def _(event: ReplicaAssigned, state: FleetState, seq: int) -> FleetState:
    data = event.data
    new = ReplicaState(
        data.replica, event.tenant, data.job, data.worker, "assigned", data.spec, seq, event.time,
        gpus=data.gpus, replaces=data.replaces, trial=data.trial,
        registry_seq=data.why.observed_registry_seq,
    )  # fmt: skip
    freed = drop(state.freed, (new.key, data.worker))
    assigned = replace(state, replicas=put(state.replicas, data.replica, new), freed=freed)
    return assigned if data.trial else _serves(assigned, new)


@_fleet.register
def _(event: ReplicaReleased, state: FleetState, seq: int) -> FleetState:
    data, asked = event.data, event.data.room_for
    to = None if asked is None else (asked.tenant, asked.job)
    changed = _change_replica(
        state, data.replica, data.worker, "releasing", released_seq=seq, yields_to=to
    )
    said_again = changed is state or state.replicas[data.replica].status == "releasing"
    if asked is None or to is None or said_again:
        return changed
    last = Yielded((event.time,), to, asked.priority)
    key = state.replicas[data.replica].key
    return replace(changed, yielded=yields(state.yielded, key, data.worker, last=last))


@_fleet.register
def _(event: JobScaled, state: FleetState, seq: int) -> FleetState:
    new = (event.data.desired, event.data.why.observed_registry_seq)
    return replace(state, scaled=put(state.scaled, (event.tenant, event.data.job), new))


@_fleet.register
def _(event: ReplicaPreparing, state: FleetState, seq: int) -> FleetState:
    return _change_replica(state, event.data.replica, event.data.worker, "preparing")


@_fleet.register
def _(event: ReplicaReady, state: FleetState, seq: int) -> FleetState:
    data = event.data
    changed = _change_replica(state, data.replica, data.worker, "ready", ready_at=event.time)
    if changed is state:
        return state
    key = (state.replicas[data.replica].key, data.worker)
    return replace(changed, failures=drop(state.failures, key))


@_fleet.register
def _(event: ReplicaFailed, state: FleetState, seq: int) -> FleetState:
    data = event.data
    if not _known(state, data.replica, data.worker):
        return state
    replica = state.replicas[data.replica]  # its job is a claim of the worker
    left = _without(state, data.replica, event.time)
    trial = state.trials.get(replica.trial_key)
    if replica.trial and (trial is None or trial.status != "verified"):
        return _trial_lost(left, replica, event.time)  # nothing is wrong with what it had before
    key = (replica.key, data.worker)
    times = (*state.failures.get(key, ()), event.time)[-FAILURES_KEPT:]
    return replace(left, failures=put(state.failures, key, times))


@_fleet.register
def _(event: ReplicaTried, state: FleetState, seq: int) -> FleetState:
    data = event.data
    if not _known(state, data.replica, data.worker):
        return state
    replica, worker = state.replicas[data.replica], state.workers.get(data.worker)
    if not replica.trial or worker is None or not worker.trusted:
        return state  # nobody asked it, or its word is not believed
    key = replica.trial_key
    before = state.trials.get(key, Trial())
    if before.status != "unverified" and before.registry_seq >= replica.registry_seq:
        return state  # the first answer counts
    trial = Trial(
        "verified" if data.passed else "failed", data.reason, data.worker, data.replica,
        replica.registry_seq, before.lost,
    )  # fmt: skip
    untold = (*(each for each in state.untold if each != key), key)
    ended = replace(state, trials=put(state.trials, key, trial), untold=untold)
    return _serves(ended, replica) if data.passed else ended


@_fleet.register
def _(event: JobTried, state: FleetState, seq: int) -> FleetState:
    told = (event.tenant, event.data.job, event.data.model)
    return replace(state, untold=tuple(each for each in state.untold if each != told))


@_fleet.register
def _(event: ReplicaStopped, state: FleetState, seq: int) -> FleetState:
    if not _known(state, event.data.replica, event.data.worker):
        return state
    return _without(state, event.data.replica, event.time)


def _without(state: FleetState, replica: str, at: datetime) -> FleetState:
    """A replica has ended by itself or as it was asked to."""
    gone = state.replicas[replica]
    freed = frees(state.freed, gone.yields_to, gone.worker, at)
    return replace(state, replicas=drop(state.replicas, replica), freed=freed)


def _known(state: FleetState, replica: str, worker: str) -> bool:
    """Whether this replica lives on this worker; nobody else may speak for it."""
    return replica in state.replicas and state.replicas[replica].worker == worker


def _serves(state: FleetState, replica: ReplicaState) -> FleetState:
    """Its model may be placed anywhere."""
    served = Served(replica.spec.model, replica.registry_seq)
    return replace(state, served=put(state.served, replica.key, served))


def _trial_lost(state: FleetState, replica: ReplicaState, at: datetime) -> FleetState:
    """A replica is gone; if it was on trial and has not answered, it is tried again later."""
    trial = state.trials.get(replica.trial_key, Trial())
    answered = trial.status != "unverified" and trial.registry_seq >= replica.registry_seq
    if not replica.trial or answered or replica.status == "releasing":
        return state
    lost = replace(trial, lost=(*trial.lost, (replica.worker, at))[-LOST_KEPT:])
    return replace(state, trials=put(state.trials, replica.trial_key, lost))


def _without_replicas(
    state: FleetState, worker: str, at: datetime, keep: Container[str] = ()
) -> FleetState:
    left = state.replicas
    for gone in [k for k, v in left.items() if v.worker == worker and k not in keep]:
        state = _trial_lost(state, left[gone], at)
        left = drop(left, gone)
    return replace(state, replicas=left) if left is not state.replicas else state


def _change_worker(
    state: FleetState, name: str, session: str, status: WorkerStatus, at: datetime
) -> FleetState:
    worker = state.workers.get(name)
    if worker is None or worker.session != session:
        return state
    changed = replace(state, workers=put(state.workers, name, replace(worker, status=status)))
    return changed if status == "draining" else _without_replicas(changed, name, at)


def _change_replica(
    state: FleetState,
    replica: str,
    worker: str,
    status: ReplicaStatus,
    *,
    ready_at: datetime | None = None,
    released_seq: int = 0,
    yields_to: JobKey | None = None,
) -> FleetState:
    if not _known(state, replica, worker):
        return state
    old = state.replicas[replica]
    if old.status == "releasing" and status != "releasing":
        return state  # what was released does not come back
    new = replace(
        old, status=status, ready_at=ready_at or old.ready_at,
        released_seq=released_seq or old.released_seq, yields_to=yields_to or old.yields_to,
    )  # fmt: skip
    return replace(state, replicas=put(state.replicas, replica, new))
