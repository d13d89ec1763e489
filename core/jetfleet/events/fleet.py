"""Fleet events: what workers say, what the conductor decides, and heartbeats."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jetfleet.events.envelope import Event
from jetfleet.specs import Frozen, JobSpec, Machine, Name, Token


class WorkerJoined(Event):
    """A worker's agent started (or came back). Replicas it does not name are gone with its past."""

    class Data(Frozen):
        worker: Name
        session: Token = Field(description="UUIDv7 of this run of the agent")
        machine: Machine
        agent_version: str
        public_key: str = Field(description="NKey of the worker's user, to which rights are bound")
        replicas: tuple[str, ...] = Field((), description="ids of replicas it still runs")
        labels: dict[str, str] = Field(default_factory=dict)
        owner: str = ""
        trusted: bool = False
        ephemeral: bool = False
        price_per_hour: float = Field(0.0, ge=0)
        heartbeat_s: float = Field(2.0, gt=0, description="seconds between heartbeats")

    type: Literal["jetfleet.worker.joined"] = "jetfleet.worker.joined"
    data: Data


class WorkerDraining(Event):
    """A worker takes no new work and finishes what it has."""

    class Data(Frozen):
        worker: Name
        session: Token
        reason: str = ""

    type: Literal["jetfleet.worker.draining"] = "jetfleet.worker.draining"
    data: Data


class WorkerLeft(Event):
    """A worker said good-bye; it runs nothing any more."""

    class Data(Frozen):
        worker: Name
        session: Token

    type: Literal["jetfleet.worker.left"] = "jetfleet.worker.left"
    data: Data


class WorkerLost(Event):
    """A worker fell silent; its replicas are considered gone."""

    class Data(Frozen):
        worker: Name
        session: Token
        silent_s: float = Field(ge=0, description="seconds since its last heartbeat")

    type: Literal["jetfleet.worker.lost"] = "jetfleet.worker.lost"
    data: Data


class WorkerAdmitted(Event):
    """A conductor let a worker in that came with a join token; what it is trusted with."""

    class Data(Frozen):
        worker: Name
        public_key: str = Field(description="NKey that the worker proved to hold")
        token: Token = Field(description="id of the join token")
        trusted: bool = False
        owner: str = ""
        labels: dict[str, str] = Field(default_factory=dict)

    type: Literal["jetfleet.worker.admitted"] = "jetfleet.worker.admitted"
    data: Data


class WorkerTokenRevoked(Event):
    """A join token was taken back: nobody joins with it, and who did gets no further rights."""

    class Data(Frozen):
        token: Token = Field(description="id of the join token")
        reason: str = ""

    type: Literal["jetfleet.worker.token_revoked"] = "jetfleet.worker.token_revoked"
    data: Data


class ReplicaChange(Frozen):
    """What all replica events of a worker say."""

    worker: Name
    job: Name
    replica: Token


class ReplicaPreparing(Event):
    """A worker obeys an assignment: it fetches and starts the model."""

    class Data(ReplicaChange):
        stage: str = Field("starting", description="what it does now: pulling, starting, …")

    type: Literal["jetfleet.replica.preparing"] = "jetfleet.replica.preparing"
    data: Data


class ReplicaReady(Event):
    """A replica serves."""

    class Data(ReplicaChange):
        prepare_s: float = Field(ge=0, description="seconds from assignment heard to ready")
        restarts: int = Field(0, ge=0)
        image: str = Field("", description="id of the image that runs (sha256:...), if one does")
        network: str = Field("", description="what its container can reach, and how it is called")
        adopted: bool = Field(False, description="it ran on while the agent was restarted")

    type: Literal["jetfleet.replica.ready"] = "jetfleet.replica.ready"
    data: Data


class ReplicaFailed(Event):
    """A replica could not be made ready, or ended and could not be restarted."""

    class Data(ReplicaChange):
        reason: str
        log_tail: tuple[str, ...] = ()

    type: Literal["jetfleet.replica.failed"] = "jetfleet.replica.failed"
    data: Data


class ReplicaTried(Event):
    """A replica on trial ran its model's example input, before it serves anything."""

    class Data(ReplicaChange):
        passed: bool
        reason: str = Field("", description="why it did not pass")
        run_s: float | None = Field(None, ge=0, description="length of the run, seconds")

    type: Literal["jetfleet.replica.tried"] = "jetfleet.replica.tried"
    data: Data


class ReplicaStopped(Event):
    """A released replica is gone from its worker; nothing of it is left."""

    class Data(ReplicaChange):
        pass

    type: Literal["jetfleet.replica.stopped"] = "jetfleet.replica.stopped"
    data: Data


# -- decisions


class Candidate(Frozen):
    """A worker that a decision considered, and why it was not taken (or its score)."""

    worker: Name
    score: float | None = None
    rejected: str = ""


class Why(Frozen):
    """The reasons of a decision, enough to explain and to replay it."""

    policy: str
    policy_version: int
    reason: str
    observed_registry_seq: int = Field(ge=0, description="registry events folded when deciding")
    observed_fleet_seq: int = Field(ge=0, description="fleet events folded when deciding")
    candidates: tuple[Candidate, ...] = ()


class ReplicaAssigned(Event):
    """A worker shall run a replica of a job. Carries all that the worker needs to obey."""

    class Data(ReplicaChange):
        spec: JobSpec
        shard: int = Field(ge=0)
        gpus: tuple[str, ...] = Field(
            (), description="the GPUs it runs on, by UUID (by index where there is none)"
        )
        replaces: str = Field("", description="the replica that goes once this one serves")
        trial: bool = Field(False, description="it runs the model's example before it serves")
        why: Why

    type: Literal["jetfleet.replica.assigned"] = "jetfleet.replica.assigned"
    data: Data


class RoomFor(Frozen):
    """A job that another makes room for, being less important."""

    tenant: Name
    job: Name
    priority: int = Field(description="of this job; that of the replica's own is lower")


class ReplicaReleased(Event):
    """A worker shall drain and stop a replica (or may forget one that is gone)."""

    class Data(ReplicaChange):
        room_for: RoomFor | None = Field(
            None, description="the more important job that gets its place; None: that is not why"
        )
        why: Why

    type: Literal["jetfleet.replica.released"] = "jetfleet.replica.released"
    data: Data


class JobScaled(Event):
    """A job shall have another number of replicas from now on."""

    class Data(Frozen):
        job: Name
        before: int | None = Field(None, ge=0, description="the number until now; None: none yet")
        desired: int = Field(ge=0, description="replicas that serve or boot")
        wanted: int = Field(ge=0, description="by the work alone, before holding and bounds")
        surge: bool = Field(False, description="kpa: more was wanted at once than a step gives")
        inputs: dict[str, float] = Field(
            default_factory=dict, description="the numbers that the policy looked at"
        )
        why: Why

    type: Literal["jetfleet.job.scaled"] = "jetfleet.job.scaled"
    data: Data


class JobTried(Event):
    """The trial of a job's model has ended: it may serve anywhere, or nowhere."""

    class Data(Frozen):
        job: Name
        model: str = Field(description="name:version")
        status: Literal["verified", "failed"]
        reason: str = Field("", description="why it failed")
        worker: Name = Field(description="where it was tried")
        replica: Token
        keeps: str = Field("", description="name:version that serves on instead; empty: none")
        registry_seq: int = Field(ge=0, description="registry events known when it was assigned")
        why: Why

    type: Literal["jetfleet.job.tried"] = "jetfleet.job.tried"
    data: Data


class PullLevel(Frozen):
    """Workers that are equally fast for a job, and when they pull."""

    workers: tuple[Name, ...]
    slots: int = Field(ge=1, description="of all of them")
    service_s: float = Field(gt=0, description="mean time of one run, seconds")
    min_pending: int | None = Field(
        None, ge=1, description="they pull while so many wait; None: whenever they are free"
    )


class JobBalanced(Event):
    """From which backlog on the slower workers of a job pull, from now on.

    Who is not named pulls whenever it is free.
    """

    class Data(Frozen):
        job: Name
        rate: float = Field(ge=0, description="arrivals a second")
        pending: int = Field(ge=0, description="invocations that wait, as the broker counts them")
        levels: tuple[PullLevel, ...] = Field((), description="fastest first")
        why: Why

    type: Literal["jetfleet.job.balanced"] = "jetfleet.job.balanced"
    data: Data


# -- telemetry


class GpuLoad(Frozen):
    """Telemetry of one GPU; every field is optional because every field can be unsupported."""

    index: int
    uuid: str | None = None
    utilization: float | None = Field(None, description="0 to 1")
    memory_used_mib: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    processes: int | None = Field(None, description="how many compute on it, ours or not")
    ecc_errors: int | None = Field(None, description="uncorrected, since the driver was loaded")
    throttled: tuple[str, ...] | None = Field(
        None, description="why its clocks are held down: power, heat, hardware, ..."
    )
    lost: bool = Field(False, description="it does not answer and needs a reset: off the bus")


class JobLoad(Frozen):
    """What one worker did for one job since its session began."""

    job: Name
    tenant: Name
    replicas_ready: int = Field(ge=0)
    slots: int = Field(ge=0)
    running: int = Field(ge=0)
    finished: int = Field(ge=0)
    busy_s: float = Field(ge=0, description="sum of run times, seconds; / finished: service time")
    model: str = Field("", description="name:version of the model")
    gpu: str = Field("", description="type of GPU that it runs on; empty: none")
    service_s: float | None = Field(
        None, ge=0, description="recent time of one run, seconds: a moving average"
    )
    min_pending: int | None = Field(
        None, ge=1, description="it pulls while so many wait; None: whenever it is free"
    )


class WorkerHeartbeat(Event):
    """A worker lives. Short-lived telemetry, not kept in the log."""

    class Data(Frozen):
        worker: Name
        session: Token
        cpu: float | None = Field(None, description="utilisation of all cores, 0 to 1")
        memory_used_mib: int | None = None
        gpus: tuple[GpuLoad, ...] = ()
        jobs: tuple[JobLoad, ...] = ()

    type: Literal["jetfleet.worker.heartbeat"] = "jetfleet.worker.heartbeat"
    data: Data
