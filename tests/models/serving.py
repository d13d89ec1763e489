"""A model started the way the agent does, for a test, and stopped after it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

from jetfleet.specs import ContractName, ModelSpec
from jetfleet_agent.contracts import MAX_OUTPUT_BYTES, Call, Session, contract_of
from jetfleet_agent.runtimes import Instance, runtime_of

MODELS = Path(__file__).parent
_ids = count(1)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The agent in production runs on uvloop; what depends on the loop is tested on both."""
    return "asyncio", {"use_uvloop": True}


both_loops = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
)


@dataclass
class Served:
    """A ready model, with calls in Python values."""

    session: Session
    instance: Instance
    chunks: list[Any] = field(default_factory=list)

    async def call(self, value: Any, *, call_id: str | None = None, stream: bool = False) -> Any:
        """The output; chunks are added to ``chunks`` as they come."""

        def on_chunk(chunk: bytes) -> None:
            self.chunks.append(json.loads(chunk))

        call = Call(
            call_id or f"call-{next(_ids)}",
            json.dumps(value).encode(),
            stream=stream,
            on_chunk=on_chunk,
        )
        return json.loads(await self.session.invoke(call))


def function(name: str, file: str = "behaviours.py", **fields: Any) -> ModelSpec:
    """A function of a file in this folder."""
    return ModelSpec(name="model", function=f"{MODELS / file}:{name}", **fields)


FAKES = {
    ContractName.OPENAI: "openai_server.py",
    ContractName.COG: "cog_server.py",
    ContractName.SAGEMAKER: "sagemaker_server.py",
    ContractName.OPENINFERENCE: "oip_server.py",
}


def fake(contract: ContractName, *options: str, **fields: Any) -> ModelSpec:
    """The toy server of this folder that speaks this contract."""
    command = (sys.executable, str(MODELS / FAKES[contract]), "--port", "{port}", *options)
    return ModelSpec(name="model", contract=contract, command=command, **fields)


@asynccontextmanager
async def started(
    model: ModelSpec, *, concurrency: int = 1, max_output_bytes: int = MAX_OUTPUT_BYTES
) -> AsyncIterator[Served]:
    """A started model that is not ready yet."""
    contract = contract_of(model.contract, max_output_bytes=max_output_bytes)
    with tempfile.TemporaryDirectory() as workdir:
        launch = contract.launch(model, concurrency, Path(workdir))
        instance = await runtime_of(model.runtime).start(launch)
        session = contract.session(model, instance, launch, concurrency)
        try:
            yield Served(session, instance)
        finally:
            with anyio.CancelScope(shield=True):
                await session.close()
                await instance.stop(5)


@asynccontextmanager
async def serving(
    model: ModelSpec, *, concurrency: int = 1, max_output_bytes: int = MAX_OUTPUT_BYTES
) -> AsyncIterator[Served]:
    """A ready model."""
    async with started(model, concurrency=concurrency, max_output_bytes=max_output_bytes) as served:
        await served.session.ready()
        yield served


def lives(pid: int) -> bool:
    """Whether this process is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
