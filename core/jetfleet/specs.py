"""What people declare: models, jobs, machines. Values that events carry and policies read."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from jetfleet import subjects
from jetfleet.placement_specs import PlacementSpec
from jetfleet.scaling_specs import ScalingSpec, StaticScaling

# What stands in a subject, a message id or a path, and was made by us: nothing may break out of it.
Token = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
TraceParent = Annotated[
    str, StringConstraints(pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
]  # https://www.w3.org/TR/trace-context/#traceparent-header
Name = Annotated[str, StringConstraints(pattern=subjects.NAME_PATTERN, max_length=63)]
Version = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]


# host:port/path:tag@sha256:digest, as https://github.com/distribution/reference has it; the engine
# knows the fine print.
IMAGE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?$"


class Frozen(BaseModel):
    """Base of every value here: immutable, and unknown fields are errors, not silence."""

    # JSON has no infinity: it would be written as null, and read back as what is left out.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ContractName(StrEnum):
    """How the agent speaks to a model."""

    FUNCTION = "function"
    OPENAI = "openai"
    COG = "cog"
    SAGEMAKER = "sagemaker"
    OPENINFERENCE = "openinference"


class RuntimeName(StrEnum):
    """What a replica runs in."""

    PROCESS = "process"
    DOCKER = "docker"


class Resources(Frozen):
    """What one replica needs. Memory in MiB."""

    memory_mib: int = Field(256, ge=1, description="host memory of one replica, MiB")
    gpu_memory_mib: int = Field(0, ge=0, description="GPU memory of one replica, MiB; 0: no GPU")
    gpu_capability: float | None = Field(
        None, description="least CUDA compute capability, e.g. 8.0"
    )


class Container(Frozen):
    """How a model's container runs. What is not allowed here is refused to it."""

    port: int | None = Field(
        None, ge=1, le=65_535, description="where it listens; None: the usual port of its contract"
    )
    network: bool = Field(False, description="may reach the network; otherwise it has none")
    cache: str | None = Field(
        None,
        pattern=r"^/[^:]+$",
        description="folder of the container that is kept on the worker, for downloaded weights",
    )
    user: str | None = Field(
        None,
        description="user to run as; None: the image's, or nobody where the image runs as root and"
        " works without",
    )
    cpus: float | None = Field(None, gt=0, description="CPUs it may use; None: all of the worker")
    pids: int = Field(512, ge=8, description="processes and threads at once")
    tmp_mib: int = Field(256, ge=1, description="size of /tmp, in memory: nothing else is writable")
    shm_mib: int = Field(64, ge=1, description="size of /dev/shm")
    max_image_mib: int = Field(
        20_480, ge=1, description="larger images are refused, before and while they are pulled"
    )


class ModelSpec(Frozen):
    """A model version; immutable once registered.

    With runtime process, exactly one of ``function`` (``file.py:function``) and ``command`` (a
    server to start; ``{port}`` in an argument becomes its port) says what runs. With runtime docker
    it is ``image``; ``function`` names a file in it, ``command`` replaces the image's own.
    """

    name: Name
    version: Version = "1"
    contract: ContractName = ContractName.FUNCTION
    runtime: RuntimeName = RuntimeName.PROCESS
    function: str | None = Field(None, description="file.py:function, for the function contract")
    command: tuple[str, ...] | None = Field(None, description="argument list of a server process")
    image: str | None = Field(
        None,
        pattern=IMAGE_PATTERN,
        max_length=512,
        description="container image, for the docker runtime; name@sha256:... pins it",
    )
    container: Container = Container()
    served_name: str | None = Field(
        None, description="what its server calls the model; None: what it lists, or the name here"
    )
    env: dict[str, str] = Field(default_factory=dict)
    resources: Resources = Resources()
    startup_timeout_s: float = Field(120.0, gt=0, description="longest time until ready, seconds")
    example_input: Any = None
    description: str = ""
    visibility: Literal["private", "public"] = "private"

    @model_validator(mode="after")
    def _one_artifact(self) -> ModelSpec:
        in_container = self.runtime is RuntimeName.DOCKER
        if in_container and self.image is None:
            raise ValueError("runtime docker needs an image")
        if not in_container and self.image is not None:
            raise ValueError("an image needs runtime docker")
        if not in_container and self.container != Container():
            raise ValueError("container is about images: it needs runtime docker")
        given = [f for f in ("function", "command") if getattr(self, f) is not None]
        if len(given) > 1 or not (given or in_container):
            raise ValueError(
                f"give exactly one of function, command and image; got {given or 'none'}"
            )
        if self.contract is ContractName.FUNCTION and self.command is not None:
            raise ValueError(
                "the function contract needs function: file.py:function, not a command"
            )
        if self.function is not None and not re.fullmatch(r".+\.py:[A-Za-z_]\w*", self.function):
            raise ValueError(f"function must look like file.py:function, got {self.function!r}")
        if self.contract is ContractName.FUNCTION and self.function is None:
            raise ValueError("the function contract needs function: file.py:function")
        if self.contract is not ContractName.FUNCTION and self.function is not None:
            raise ValueError(
                f"contract {self.contract} needs a command or an image, not a function"
            )
        return self

    @property
    def ref(self) -> str:
        """``name:version``, as jobs name it."""
        return f"{self.name}:{self.version}"


class JobSettings(Frozen):
    """What may be changed on a job while it lives."""

    min_replicas: int = Field(1, ge=0, le=10_000)
    max_replicas: int = Field(1, ge=0, le=10_000)
    desired_replicas: int | None = Field(
        None, ge=0, description="for static scaling; None: scaling.replicas, or else min_replicas"
    )
    scaling: ScalingSpec = Field(
        StaticScaling(), description="how the number follows the work, see docs/policies.md"
    )
    concurrency: int = Field(1, ge=1, le=1024, description="invocations at once in one replica")
    timeout_s: float = Field(
        300.0, gt=0, le=86_400, description="longest run of one attempt, seconds"
    )
    queue_ttl_s: float = Field(
        3600.0, gt=0, le=86_400, description="longest wait for a start, seconds"
    )
    retry_limit: int = Field(2, ge=0, le=100, description="further attempts after one was lost")
    queue_cap: int = Field(100_000, ge=1, description="unfinished invocations before 429")
    ack_wait_s: float = Field(
        10.0, ge=1, le=3600, description="silence that means a worker is lost"
    )
    priority_class: Name = Field(
        subjects.DEFAULT_CLASS, description="of an invocation that names none"
    )
    priority_classes: tuple[Name, ...] = Field(
        (),
        max_length=8,
        description="what invocations may name, highest first; none: priority_class alone. The"
        " classes never change; for others create another job",
    )
    priority_floor: float = Field(
        0.1,
        ge=0.001,
        le=1,
        description="a lower class that waits gets so many starts for each of the next higher",
    )
    weight: float = Field(
        1.0,
        ge=0.001,
        le=1000,
        description="its part of a worker's seconds where jobs contend (`jetfleet agent --slots`)",
    )
    balancing: bool = Field(
        True, description="slower workers leave what they can to faster ones, see docs/policies.md"
    )
    assignment: Literal["auto", "manual"] = "auto"
    workers: tuple[Name, ...] = Field((), description="for manual assignment: who serves")
    placement: PlacementSpec = Field(
        PlacementSpec(), description="which workers may serve, see docs/policies.md"
    )
    trial: bool = Field(
        True,
        description="a model with an example input runs that on a trusted worker before it serves",
    )
    labels: dict[str, str] = Field(default_factory=dict)
    visibility: Literal["private", "public"] = "private"

    @model_validator(mode="after")
    def _bounds(self) -> JobSettings:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}"
            )
        wanted, scaling = self.desired_replicas, self.scaling
        if wanted is not None and not isinstance(scaling, StaticScaling):
            raise ValueError(
                f"desired_replicas is a fixed number, and scaling {scaling.policy} decides it:"
                " leave one of them out"
            )
        if not self.min_replicas <= self.replicas <= self.max_replicas:
            name = "scaling.replicas" if wanted is None else "desired_replicas"
            raise ValueError(f"{name} {self.replicas} is outside min_replicas..max_replicas")
        return self

    @model_validator(mode="after")
    def _class_among_classes(self) -> JobSettings:
        several = self.priority_classes
        if len(set(several)) < len(several):
            raise ValueError("priority_classes has a class twice")
        if several and self.priority_class not in several:
            raise ValueError(
                f"priority_class {self.priority_class!r}, of invocations that name none, is not"
                f" among priority_classes: {', '.join(several)}"
            )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that its invocations may have, highest first."""
        return self.priority_classes or (self.priority_class,)

    @property
    def replicas(self) -> int:
        """How many replicas are wanted as declared; with adaptive scaling the least."""
        declared = self.desired_replicas
        if declared is None and isinstance(self.scaling, StaticScaling):
            declared = self.scaling.replicas
        return self.min_replicas if declared is None else declared


class JobSpec(JobSettings):
    """An InferenceJob: an endpoint with a queue, on a snapshot of a model version."""

    name: Name
    model: ModelSpec


class GpuSpec(Frozen):
    """One GPU, as NVML reports it; every field but index and name may be unknown."""

    index: int
    name: str
    uuid: str | None = None
    memory_mib: int | None = None
    compute_capability: float | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    power_limit_w: float | None = None
    mig: bool | None = Field(None, description="whether it is split into MIG instances")
    ecc: bool | None = Field(None, description="whether its memory corrects errors")
    pcie_generation: int | None = Field(None, description="the most that it and its slot can")
    pcie_width: int | None = Field(None, description="lanes, the most that it and its slot can")

    @property
    def id(self) -> str:
        """What decisions and models call it: its UUID, or its index where that is not known."""
        return self.uuid or str(self.index)


class Machine(Frozen):
    """What a worker's machine has. Memory and disk in MiB."""

    hostname: str
    cpu_count: int = Field(ge=1)
    memory_mib: int = Field(ge=1)
    disk_free_mib: int = Field(ge=0)
    gpus: tuple[GpuSpec, ...] = ()
    architecture: str = ""
    python: str = ""
