"""GPUs as NVML reports them. A machine without any, or without a driver, has none: no error.

NVML calls block, and a driver in trouble can block for minutes, so they happen in one thread of
their own; an answer that is not there in time counts as none. Every fact is optional: a GPU, a
driver or a container may not report it (NotSupported, FunctionNotFound), and one that fails costs
no other.
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

SPECS_WAIT_S = 5.0
LOADS_WAIT_S = 1.0  # a heartbeat waits for it; three missed ones would mean a lost worker
MIB = 1024**2
T = TypeVar("T")

# The GPU is there no more until somebody resets it or the machine.
_LOST = {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED}
# The driver is there no more; any other error may be one of the moment.
_NO_DRIVER = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
}
# Bits of the throttle reasons that slow work down (idle and clocks set by people do not count).
_THROTTLED = {
    "power": pynvml.nvmlClocksThrottleReasonSwPowerCap,
    "heat": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown
    | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "power brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    "hardware": pynvml.nvmlClocksThrottleReasonHwSlowdown,
}


class Gpus:
    """Asks NVML; starts it when first asked, and again after the driver went away."""

    def __init__(self) -> None:
        self.known: tuple[GpuSpec, ...] = ()  # what ``specs`` said last
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._asking = asyncio.Lock()
        self._busy = False
        self._open = False  # used by the thread only, as is NVML
        self._absent = False

    async def specs(self) -> tuple[GpuSpec, ...]:
        """What the machine has now, without GPUs that are lost; none when NVML does not answer."""
        async with self._asking:  # one question at a time
            answer = await self._ask(_read_spec, SPECS_WAIT_S)
        self.known = tuple(spec for spec in answer or () if spec is not None)
        return self.known

    async def loads(self) -> tuple[GpuLoad, ...] | None:
        """What its GPUs do now; fields that this GPU or driver does not report are None.

        None when there is no answer this time, which says nothing about the GPUs.
        """
        if self._asking.locked():
            return None
        async with self._asking:
            return await self._ask(_read_load, LOADS_WAIT_S)

    def gone(self, loads: tuple[GpuLoad, ...] | None) -> tuple[GpuSpec, ...]:
        """GPUs of the last ``specs`` that these loads show to be lost, or no more there."""
        if loads is None:
            return ()
        by_uuid: dict[str | None, GpuLoad] = {
            load.uuid: load for load in loads if load.uuid is not None
        }
        by_index = {load.index: load for load in loads}

        def is_gone(spec: GpuSpec) -> bool:
            load = by_uuid.get(spec.uuid) or by_index.get(spec.index)
            if load is None or load.lost:
                return True
            # Another GPU at its index; one whose UUID cannot be read this time may still be it.
            return None not in (spec.uuid, load.uuid) and load.uuid != spec.uuid

        return tuple(spec for spec in self.known if is_gone(spec))

    def found(self, loads: tuple[GpuLoad, ...] | None) -> bool:
        """Whether there is a GPU now that ``specs`` did not know: after a reset, for instance."""
        known = {spec.uuid for spec in self.known}
        return any(not load.lost and load.uuid not in (None, *known) for load in loads or ())

    def change(self, loads: tuple[GpuLoad, ...] | None) -> tuple[str, frozenset[str]] | None:
        """What is not as ``specs`` said: in words, and the names of GPUs that are gone (none: one
        was found); None: nothing."""
        if gone := self.gone(loads):
            what = "the NVIDIA driver is gone, with" if not loads else "lost"
            which = ", ".join(f"GPU {gpu.index} ({gpu.name}, {gpu.id})" for gpu in gone)
            return f"{what} {which}", frozenset(gpu.id for gpu in gone)
        return ("a GPU was found", frozenset()) if self.found(loads) else None

    def kind(self, names: tuple[str, ...]) -> str:
        """The type of the GPUs that a decision calls by these names; empty: none."""
        kinds = {spec.name for spec in self.known if spec.id in names}
        return " + ".join(sorted(kinds))

    def close(self) -> None:
        """Let the thread end; it is a daemon, so a hanging driver keeps no process alive."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None

    async def _ask(
        self, read: Callable[[int, Any, bool], T], wait_s: float
    ) -> tuple[T, ...] | None:
        if self._absent:
            return ()
        if self._busy:  # an earlier question still hangs in the driver
            return None
        answer = self._start(read)
        try:
            async with asyncio.timeout(wait_s):
                return await answer
        except TimeoutError:
            log.warning("NVML has not answered for %g s; no GPU telemetry", wait_s)
            return None

    def _start(self, read: Callable[[int, Any, bool], T]) -> asyncio.Future[tuple[T, ...] | None]:
        """Hand the question to the thread; the future gets its answer."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="nvml", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[T, ...] | None] = loop.create_future()

        def deliver(values: tuple[T, ...] | None) -> None:
            self._busy = False
            if not answer.done():
                answer.set_result(values)

        def job() -> None:
            values = None
            try:
                values = self._read_all(read)
            except Exception:
                log.exception("reading GPUs failed; no GPU telemetry this time")
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

    def _read_all(self, read: Callable[[int, Any, bool], T]) -> tuple[T, ...] | None:
        try:
            if not self._open:
                pynvml.nvmlInit()
                self._open = True
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._absent = error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
            if self._open:
                log.warning("NVML stopped answering: %s", error)
                optional(pynvml.nvmlShutdown)
                self._open = False
            return () if error.value in _NO_DRIVER else None
        return tuple(read(index, *_handle(index)) for index in range(count))


def optional(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's answer, or None: any NVML call can be unsupported, or fail, on its own."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def _handle(index: int) -> tuple[Any, bool]:
    """A GPU's handle, None when it has none; and whether it is lost (it still counts then)."""
    handle = None
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        pynvml.nvmlDeviceGetUUID(handle)  # some drivers hand out handles of lost GPUs
    except pynvml.NVMLError as error:
        return handle, error.value in _LOST
    return handle, False


def _of(handle: Any, function: str, *arguments: Any) -> Any:
    """The answer of an NVML function about a GPU; None where it has none to give."""
    return None if handle is None else optional(getattr(pynvml, function), handle, *arguments)


def _read_spec(index: int, handle: Any, lost: bool) -> GpuSpec | None:
    if lost:
        return None
    memory = _of(handle, "nvmlDeviceGetMemoryInfo")
    capability = _of(handle, "nvmlDeviceGetCudaComputeCapability")
    cuda = optional(pynvml.nvmlSystemGetCudaDriverVersion)
    limit = _of(handle, "nvmlDeviceGetEnforcedPowerLimit")
    mig = _of(handle, "nvmlDeviceGetMigMode")
    ecc = _of(handle, "nvmlDeviceGetCurrentEccMode")
    return GpuSpec(
        index=index,
        name=_of(handle, "nvmlDeviceGetName") or "unknown",
        uuid=_of(handle, "nvmlDeviceGetUUID"),
        memory_mib=None if memory is None else memory.total // MIB,
        compute_capability=None if capability is None else float("{}.{}".format(*capability)),
        driver_version=optional(pynvml.nvmlSystemGetDriverVersion),
        cuda_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        power_limit_w=None if limit is None else limit / 1000,
        mig=None if mig is None else mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        ecc=None if ecc is None else ecc == pynvml.NVML_FEATURE_ENABLED,
        pcie_generation=_of(handle, "nvmlDeviceGetMaxPcieLinkGeneration"),
        pcie_width=_of(handle, "nvmlDeviceGetMaxPcieLinkWidth"),
    )


def _read_load(index: int, handle: Any, lost: bool) -> GpuLoad:
    if lost:
        return GpuLoad(index=index, lost=True)
    rates = _of(handle, "nvmlDeviceGetUtilizationRates")
    memory = _of(handle, "nvmlDeviceGetMemoryInfo")
    power = _of(handle, "nvmlDeviceGetPowerUsage")
    limit = _of(handle, "nvmlDeviceGetEnforcedPowerLimit")
    # By version: without one, pynvml raises what is no NVMLError where a driver lacks the third.
    running = _of(handle, "nvmlDeviceGetComputeRunningProcesses_v3")
    reasons = _of(handle, "nvmlDeviceGetCurrentClocksThrottleReasons")
    return GpuLoad(
        index=index,
        uuid=_of(handle, "nvmlDeviceGetUUID"),
        utilization=None if rates is None else rates.gpu / 100,
        memory_used_mib=None if memory is None else memory.used // MIB,
        temperature_c=_of(handle, "nvmlDeviceGetTemperature", pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / 1000,
        power_limit_w=None if limit is None else limit / 1000,
        processes=None if running is None else len(running),
        ecc_errors=_of(
            handle,
            "nvmlDeviceGetTotalEccErrors",
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        ),
        throttled=None
        if reasons is None
        else tuple(name for name, bits in _THROTTLED.items() if reasons & bits),
    )
