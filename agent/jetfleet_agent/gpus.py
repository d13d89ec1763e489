"""GPUs as NVML reports them. A machine without any, or without a driver, has none: no error.

NVML calls block, and a driver in trouble can block for minutes, so they happen in one thread of
their own; an answer that is not there in time counts as none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from jetfleet.events import GpuLoad
from jetfleet.specs import GpuSpec

log = logging.getLogger("jetfleet.agent.gpus")

ANSWER_TIMEOUT_S = 5.0
MIB = 1024**2
T = TypeVar("T")


class Gpus:
    """Asks NVML; starts it when first asked, and again after the driver went away."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._asking = asyncio.Lock()
        self._busy = False
        self._open = False  # used by the thread only, as is NVML
        self._absent = False

    async def specs(self) -> tuple[GpuSpec, ...]:
        """What the machine has."""
        return await self._ask(_read_spec)

    async def loads(self) -> tuple[GpuLoad, ...]:
        """What its GPUs do now; fields that this GPU or driver does not report are None."""
        return await self._ask(_read_load)

    def close(self) -> None:
        """Let the thread end; it is a daemon, so a hanging driver keeps no process alive."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None

    async def _ask(self, read: Callable[[int, Any], T]) -> tuple[T, ...]:
        async with self._asking:  # one question at a time
            if self._absent or self._busy:  # busy: an earlier one still hangs in the driver
                return ()
            answer = self._start(read)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    return await answer
            except TimeoutError:
                log.warning("NVML has not answered for %g s; no GPU telemetry", ANSWER_TIMEOUT_S)
                return ()

    def _start(self, read: Callable[[int, Any], T]) -> asyncio.Future[tuple[T, ...]]:
        """Hand the question to the thread; the future gets its answer."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="nvml", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[T, ...]] = loop.create_future()

        def deliver(values: tuple[T, ...]) -> None:
            self._busy = False
            if not answer.done():
                answer.set_result(values)

        def job() -> None:
            try:
                values = self._read_all(read)
            except Exception:
                log.exception("reading GPUs failed; no GPU telemetry this time")
                values = ()
            with contextlib.suppress(RuntimeError):  # the loop ended while the driver hung
                loop.call_soon_threadsafe(deliver, values)

        self._busy = True
        self._jobs.put(job)
        return answer

    # -- in the thread

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        if self._open:
            optional(pynvml.nvmlShutdown)

    def _read_all(self, read: Callable[[int, Any], T]) -> tuple[T, ...]:
        try:
            if not self._open:
                pynvml.nvmlInit()
                self._open = True
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._absent = isinstance(error, pynvml.NVMLError_LibraryNotFound)
            if self._open:
                log.warning("NVML stopped answering: %s", error)
                optional(pynvml.nvmlShutdown)
                self._open = False
            return ()
        # A GPU that fell off the bus still counts; it has no handle, and so no facts.
        handles = [optional(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
        return tuple(read(index, handle) for index, handle in enumerate(handles))


def optional(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's answer, or None: any NVML call can be unsupported, or fail, on its own."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _of(handle: Any, function: str, *arguments: Any) -> Any:
    return None if handle is None else optional(getattr(pynvml, function), handle, *arguments)


def _read_spec(index: int, handle: Any) -> GpuSpec:
    memory = _of(handle, "nvmlDeviceGetMemoryInfo")
    capability = _of(handle, "nvmlDeviceGetCudaComputeCapability")
    cuda = optional(pynvml.nvmlSystemGetCudaDriverVersion)
    return GpuSpec(
        index=index,
        name=_of(handle, "nvmlDeviceGetName") or "unknown",
        uuid=_of(handle, "nvmlDeviceGetUUID"),
        memory_mib=None if memory is None else memory.total // MIB,
        compute_capability=None if capability is None else float("{}.{}".format(*capability)),
        driver_version=optional(pynvml.nvmlSystemGetDriverVersion),
        cuda_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
    )


def _read_load(index: int, handle: Any) -> GpuLoad:
    rates = _of(handle, "nvmlDeviceGetUtilizationRates")
    memory = _of(handle, "nvmlDeviceGetMemoryInfo")
    temperature = _of(handle, "nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU)
    power = _of(handle, "nvmlDeviceGetPowerUsage")
    return GpuLoad(
        index=index,
        uuid=_of(handle, "nvmlDeviceGetUUID"),
        utilization=None if rates is None else rates.gpu / 100,
        memory_used_mib=None if memory is None else memory.used // MIB,
        temperature_c=temperature,
        power_w=None if power is None else power / 1000,
    )
