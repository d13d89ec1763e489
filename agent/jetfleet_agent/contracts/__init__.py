"""How the agent speaks to a model, behind one protocol per contract.

Kept light, because the host process of a function passes through here on its way up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jetfleet.specs import ContractName, ModelSpec
    from jetfleet_agent.runtimes import Instance, Launch

MAX_OUTPUT_BYTES = 64 * 1024**2  # the default of jetfleet.settings.Settings.payload_limit


class Call:
    """One invocation as a contract sees it.

    ``input`` is JSON text. With ``stream``, ``on_chunk`` gets the JSON text of each chunk, in
    order and before ``invoke`` returns; it must not block or raise.
    """

    __slots__ = ("id", "input", "on_chunk", "stream")

    def __init__(
        self,
        id: str,
        input: bytes,
        *,
        stream: bool = False,
        on_chunk: Callable[[bytes], None] | None = None,
    ) -> None:
        self.id = id
        self.input = input
        self.stream = stream
        self.on_chunk = on_chunk


class CallFailed(Exception):
    """A call ended without an output. ``code`` is one of ``jetfleet.events.Failure``'s."""

    code = "model_error"

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class ModelError(CallFailed):
    """The model raised, or answered with an error; ``detail`` is its traceback or its answer."""


class CallCancelled(ModelError):
    """The model stopped the call because ``Session.cancel`` asked it to."""


class InvalidOutput(CallFailed):
    """What the model returned is not JSON, or larger than this installation allows."""

    code = "invalid_output"


class ModelExited(CallFailed):
    """The model's process ended during the call; ``detail`` holds its last lines of output."""

    code = "model_exited"


class Session(Protocol):
    """A started model behind a contract."""

    async def ready(self) -> None:
        """Returns when the model serves. Raises StartFailed when it cannot, or not in time.

        ``close`` is due afterwards in either case.
        """

    async def invoke(self, call: Call) -> bytes:
        """The JSON text of the whole output.

        The caller bounds its time. Cancelling the task that awaits it asks the model to stop the
        call, and leaves the session usable for other calls if the model cooperates.

        Raises:
            ModelError: the model raised or answered with an error.
            CallCancelled: the model stopped because ``cancel`` was called.
            InvalidOutput: what it returned is not JSON, or is too large.
            ModelExited: its process ended.
        """

    async def cancel(self, call_id: str) -> bool:
        """Ask the model to stop this call; does not wait for it.

        False: this model cannot be interrupted; only stopping its process ends the call. True is
        no promise: a model may ignore it, so the caller still bounds the time.
        """

    async def close(self) -> None:
        """Close the connection to the model; calls in progress end with ModelExited."""


class Contract(Protocol):
    """A way of speaking to models."""

    def launch(self, model: ModelSpec, concurrency: int, workdir: Path) -> Launch:
        """How to start this model; ``workdir`` is the replica's own, for temporary files."""

    def session(
        self, model: ModelSpec, instance: Instance, launch: Launch, concurrency: int
    ) -> Session:
        """The session of an instance that was started from ``launch``; call ``ready`` first."""


def contract_of(name: ContractName, *, max_output_bytes: int = MAX_OUTPUT_BYTES) -> Contract:
    """The contract of this name; outputs over ``max_output_bytes`` are InvalidOutput."""
    if name == "function":
        from jetfleet_agent.contracts.function import FunctionContract

        return FunctionContract(max_output_bytes)
    if name == "cog":
        from jetfleet_agent.contracts.cog import CogContract

        return CogContract(max_output_bytes)
    if name == "sagemaker":
        from jetfleet_agent.contracts.sagemaker import SageMakerContract

        return SageMakerContract(max_output_bytes)
    if name == "openinference":
        from jetfleet_agent.contracts.openinference import OpenInferenceContract

        return OpenInferenceContract(max_output_bytes)
    from jetfleet_agent.contracts.openai import OpenAIContract

    return OpenAIContract(max_output_bytes)
