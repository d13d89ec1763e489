"""Machine specs and load; control groups are folders of files made here."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from jetfleet.specs import GpuSpec
from jetfleet_agent.machine import (
    MIB,
    Limits,
    LoadMeter,
    describe_machine,
    read_limits,
    usable_cpus,
)


def groups(tmp_path: Path, membership: str, **files: str) -> tuple[Path, Path]:
    """A tree of control groups; ``__`` in a name is ``/``, a single ``_`` after it stays."""
    for name, text in files.items():
        file = tmp_path / "fs" / name.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    own = tmp_path / "own"
    own.write_text(membership)
    return tmp_path / "fs", own


def test_this_machine_is_described(tmp_path: Path) -> None:
    gpu = GpuSpec(index=0, name="one")
    machine = describe_machine(tmp_path / "not" / "there" / "yet", (gpu,))
    assert machine.hostname
    assert machine.architecture == os.uname().machine
    assert 1 <= machine.cpu_count <= (os.cpu_count() or 1)
    assert 1 <= machine.memory_mib <= psutil.virtual_memory().total // MIB
    assert machine.disk_free_mib > 0
    assert machine.gpus == (gpu,)


def test_this_machine_has_a_load() -> None:
    meter = LoadMeter()
    load = meter.read()
    assert load.cpu is not None
    assert 0 <= load.cpu <= 1
    assert load.memory_used_mib is not None
    assert load.memory_used_mib > 0


def test_without_control_groups_there_are_no_limits(tmp_path: Path) -> None:
    assert read_limits(tmp_path / "nothing", tmp_path / "nothing") == Limits()


def test_version_2_limits_are_read_and_the_tightest_of_all_levels_holds(tmp_path: Path) -> None:
    root, own = groups(
        tmp_path,
        "0::/pod/box\n",
        pod__cpuDOTmax="150000 100000",
        pod__box__cpuDOTmax="max 100000",
        pod__memoryDOTmax="max",
        pod__box__memoryDOTmax=str(512 * MIB),
    )
    limits = read_limits(root, own)
    assert limits == Limits(1.5, root / "pod/cpu.stat", 512 * MIB, root / "pod/box/memory.current")


def test_version_1_limits_are_read(tmp_path: Path) -> None:
    root, own = groups(
        tmp_path,
        "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n",
        cpu__box__cpuDOTcfs_quota_us="-1",
        cpu__cpuDOTcfs_quota_us="50000",
        cpu__cpuDOTcfs_period_us="100000",
        memory__box__memoryDOTlimit_in_bytes=str(64 * MIB),
        memory__memoryDOTlimit_in_bytes="9223372036854771712",
    )
    limits = read_limits(root, own)
    assert limits == Limits(
        0.5, root / "cpu/cpuacct.usage", 64 * MIB, root / "memory/box/memory.usage_in_bytes"
    )


@pytest.mark.parametrize(("quota", "count"), [(None, 10**6), (0.2, 1), (1.0, 1), (1.5, 2)])
def test_cpus_are_whole_and_at_least_one_and_no_more_than_allowed(
    quota: float | None, count: int
) -> None:
    allowed = len(os.sched_getaffinity(0))
    assert usable_cpus(Limits(cpus=quota)) == min(count, allowed)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("cpu.stat", "usage_usec 1000000\nuser_usec 5\n", "usage_usec 1500000\nuser_usec 6\n"),
        ("cpuacct.usage", "1000000000\n", "1500000000\n"),
    ],
)
def test_cpu_load_in_a_limited_group_is_that_of_the_group(
    tmp_path: Path, name: str, before: str, after: str
) -> None:
    now = 100.0
    file = tmp_path / name
    file.write_text(before)
    meter = LoadMeter(Limits(cpus=1.0, cpu_usage=file), monotonic=lambda: now)
    file.write_text(after)
    now += 2.0
    assert meter.read().cpu == pytest.approx(0.25)
    assert meter.read().cpu is None, "no time has passed"
    file.unlink()
    now += 2.0
    assert meter.read().cpu is not None, "the whole machine's, when the group's is not to be had"


def test_memory_of_a_limited_group_counts_without_the_cache_that_can_go(tmp_path: Path) -> None:
    usage = tmp_path / "memory.current"
    usage.write_text(f"{300 * MIB}\n")
    limits = Limits(memory=512 * MIB, memory_usage=usage)
    assert LoadMeter(limits).read().memory_used_mib == 300
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {100 * MIB}\n")
    assert LoadMeter(limits).read().memory_used_mib == 200
    usage.unlink()
    assert LoadMeter(limits).read().memory_used_mib is None
