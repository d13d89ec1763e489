"""What this machine has, and how busy it is: what the agent may use, limits of containers counted.

An agent in a container sees the whole host in /proc; what counts is its CPU affinity and the
limits of its control groups (version 1 or 2), of its own group and of those above it.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from jetfleet.specs import GpuSpec, Machine

MIB = 1024**2
CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the machine is; None: not known."""

    cpu: float | None  # 0 to 1 of all that may be used
    memory_used_mib: int | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of our control groups, and the files that tell their use; None: no limit."""

    cpus: float | None = None
    cpu_usage: Path | None = None
    memory: int | None = None  # bytes
    memory_usage: Path | None = None


def describe_machine(disk: Path, gpus: tuple[GpuSpec, ...] = ()) -> Machine:
    """The specs of this machine; ``disk`` is a path on the disk whose free space counts."""
    limits = read_limits()
    memory = min(psutil.virtual_memory().total, limits.memory or math.inf)
    return Machine(
        hostname=socket.gethostname(),
        cpu_count=usable_cpus(limits),
        memory_mib=max(1, int(memory) // MIB),
        disk_free_mib=shutil.disk_usage(_existing(disk)).free // MIB,
        gpus=gpus,
        architecture=platform.machine(),
        python=platform.python_version(),
    )


def usable_cpus(limits: Limits) -> int:
    """Whole CPUs that this process may keep busy, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, math.ceil(limits.cpus or allowed)))


class LoadMeter:
    """Measures between one ``read`` and the next."""

    def __init__(
        self, limits: Limits | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = read_limits() if limits is None else limits
        self._monotonic = monotonic
        self._cpus = usable_cpus(self._limits)
        self._before = self._cpu_clock()
        psutil.cpu_percent()  # the first answer of psutil means nothing

    def read(self) -> Load:
        """CPU use since the last time; memory use now. Costs about 0.1 ms."""
        return Load(self._cpu(), self._memory())

    def _cpu(self) -> float | None:
        before, self._before = self._before, self._cpu_clock()
        if before is None or self._before is None:
            return min(1.0, psutil.cpu_percent() / 100)
        passed = self._before[0] - before[0]
        if passed <= 0:
            return None
        used = (self._before[1] - before[1]) / passed / self._cpus
        return min(1.0, max(0.0, used))

    def _cpu_clock(self) -> tuple[float, float] | None:
        """Now, and CPU seconds that our group has used; None: there is no group with a limit."""
        file = self._limits.cpu_usage
        if self._limits.cpus is None or file is None:
            return None
        text = _read(file)
        if text is None:
            return None
        if file.name == "cpu.stat":
            return self._monotonic(), int(text.split()[1]) / 1e6  # usage_usec N
        return self._monotonic(), int(text) / 1e9

    def _memory(self) -> int | None:
        if self._limits.memory is not None and self._limits.memory_usage is not None:
            used = _group_memory(self._limits.memory_usage)
            return None if used is None else used // MIB
        memory = psutil.virtual_memory()
        return int(memory.total - memory.available) // MIB


def read_limits(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> Limits:
    """The tightest limits of the control groups that this process is in."""
    cpus, cpu_usage = _tightest(_cpu_limits(root, own))
    memory, memory_usage = _tightest(_memory_limits(root, own))
    return Limits(cpus, cpu_usage, None if memory is None else int(memory), memory_usage)


def _tightest(limits: Iterator[tuple[float, Path]]) -> tuple[float | None, Path | None]:
    return min(limits, default=(None, None), key=lambda limit: limit[0])


def _cpu_limits(root: Path, own: Path) -> Iterator[tuple[float, Path]]:
    for group in _groups(root, own, "cpu"):
        quota, period = _words(group / "cpu.max", 2)  # version 2
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period), group / "cpu.stat"
        (quota,), (period,) = (  # version 1: -1 is no limit
            _words(group / f"cpu.cfs_{name}_us", 1) for name in ("quota", "period")
        )
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period), group / "cpuacct.usage"


def _memory_limits(root: Path, own: Path) -> Iterator[tuple[float, Path]]:
    physical = psutil.virtual_memory().total
    for group in _groups(root, own, "memory"):
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            (most,) = _words(group / limit, 1)
            if most.isdigit() and int(most) < physical:  # version 1 has a huge number for none
                yield int(most), group / usage


def _groups(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """Our group of this controller and all above it; in a container some are not to be seen."""
    for line in (_read(own) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root if not controllers else root / controller
        group = top / path.lstrip("/")
        while group != top:
            yield group
            group = group.parent
        yield top


def _group_memory(usage: Path) -> int | None:
    """Bytes in use, without the file cache that the kernel gives back when asked."""
    used = _read(usage)
    if used is None:
        return None
    stat = _read(usage.with_name("memory.stat")) or ""
    values = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    cache = values.get("total_inactive_file") or values.get("inactive_file") or "0"
    return max(0, int(used) - int(cache))


def _words(file: Path, count: int) -> list[str]:
    words = (_read(file) or "").split()[:count]
    return words + [""] * (count - len(words))


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above that is there already."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
