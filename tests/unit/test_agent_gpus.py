"""GPU telemetry: without a driver, and with a fake driver library compiled here."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from jetfleet_agent import gpus
from jetfleet_agent.gpus import Gpus
from nvml import FakeDriver, compile_library

PROBE = """
import asyncio, json, sys
from jetfleet_agent import gpus

async def main():
    gpus.LOADS_WAIT_S = gpus.SPECS_WAIT_S = float(sys.argv[1])
    ours = gpus.Gpus()
    for line in sys.stdin:
        if line.strip() == "changes":
            loads = await ours.loads()
            told = [[gpu.id for gpu in ours.gone(loads)], ours.found(loads)]
        else:
            values = await getattr(ours, line.strip())()
            told = None if values is None else [v.model_dump() for v in values]
        print(json.dumps(told), flush=True)
    ours.close()

asyncio.run(main())
"""


class Driver:
    """A process that asks the fake driver, whose state we write."""

    def __init__(self, fake: FakeDriver, timeout_s: float) -> None:
        self.set = fake.set
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROBE, str(timeout_s)],
            env=os.environ | fake.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a compiled fake ``libnvidia-ml.so.1``."""
    return compile_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(params=[5.0])
def driver(library: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    running = Driver(FakeDriver(library, tmp_path / "state"), request.param)
    yield running
    _, errors = running.process.communicate(timeout=10)
    assert running.process.returncode == 0, errors


def test_specs_hold_what_each_gpu_reports_and_none_for_the_rest(driver: Driver) -> None:
    common = {"driver_version": "570.1", "cuda_version": "12.8"}
    facts = ("memory_mib", "compute_capability", "power_limit_w", "mig", "ecc",
             "pcie_generation", "pcie_width")  # fmt: skip
    assert driver.ask("specs") == [
        {
            "index": 0,
            "name": "Fake H100",
            "uuid": "GPU-0",
            **dict(zip(facts, (81920, 9.0, 700.0, False, True, 5, 16), strict=True)),
            **common,
        },
        {"index": 1, "name": "Fake Old", "uuid": "GPU-1", **dict.fromkeys(facts), **common},
    ]


def test_loads_follow_the_gpu(driver: Driver) -> None:
    driver.set(utilization=75, used_mib=1024, processes=2, ecc_errors=3, throttle=0x4 | 0x40)
    first, second = driver.ask("loads")
    assert first == {
        "index": 0,
        "uuid": "GPU-0",
        "utilization": 0.75,
        "memory_used_mib": 1024,
        "temperature_c": 40.0,
        "power_w": 123.5,
        "power_limit_w": 700.0,
        "processes": 2,
        "ecc_errors": 3,
        "throttled": ["power", "heat"],
        "lost": False,
    }
    unknown = (
        "memory_used_mib",
        "power_w",
        "power_limit_w",
        "processes",
        "ecc_errors",
        "throttled",
    )
    assert {second[name] for name in unknown} == {None}
    assert second["temperature_c"] == 41.0
    driver.set(utilization=10)
    assert driver.ask("loads")[0]["utilization"] == 0.1


def test_gpu_that_fell_off_the_bus_is_told_apart_and_is_no_part_of_the_machine(
    driver: Driver,
) -> None:
    driver.ask("specs")
    assert driver.ask("changes") == [[], False]
    driver.set(lost=0)
    assert driver.ask("changes") == [["GPU-0"], False]
    lost, other = driver.ask("loads")
    assert lost.pop("lost")
    assert set(lost.values()) == {0, None}
    assert other["uuid"] == "GPU-1"
    assert [spec["name"] for spec in driver.ask("specs")] == ["Fake Old"]
    assert driver.ask("changes") == [[], False], "it is not missed any more"
    driver.set()
    assert driver.ask("changes") == [[], True], "and found when it is back"


def test_driver_that_goes_away_and_comes_back_is_asked_again(driver: Driver) -> None:
    assert len(driver.ask("specs")) == len(driver.ask("loads")) == 2
    driver.set(unloaded=1)
    assert driver.ask("changes") == [["GPU-0", "GPU-1"], False]
    assert driver.ask("loads") == driver.ask("specs") == []
    driver.set()
    assert driver.ask("changes") == [[], True]


def test_an_error_of_the_moment_loses_no_gpu(driver: Driver) -> None:
    assert len(driver.ask("specs")) == 2
    driver.set(error=999)
    assert driver.ask("loads") is None
    driver.set()
    assert driver.ask("changes") == [[], False]


def test_another_gpu_in_the_place_of_one_is_another(driver: Driver) -> None:
    driver.set(count=1)
    driver.ask("specs")
    driver.set(count=1, first=7)
    assert driver.ask("changes") == [["GPU-0"], True]


@pytest.mark.parametrize("driver", [0.1], indirect=True)
def test_driver_that_hangs_costs_an_answer_but_no_time(driver: Driver) -> None:
    assert len(driver.ask("specs")) == 2
    driver.set(delay_ms=150)
    assert driver.ask("loads") is None
    assert driver.ask("changes") == [[], False], "still hanging; no second question is queued"


@pytest.mark.anyio
async def test_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def init() -> None:
        asked.append(1)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(gpus.pynvml, "nvmlInit", init)
    ours = Gpus()
    assert await ours.specs() == ()
    assert await ours.loads() == ()
    assert len(asked) == 1, "a library that is not installed is looked for once"
    ours.close()


@pytest.mark.anyio
async def test_unexpected_error_in_the_thread_costs_one_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ValueError("unheard of")

    monkeypatch.setattr(gpus.pynvml, "nvmlInit", broken)
    ours = Gpus()
    assert await ours.loads() is None
    assert "unheard of" in caplog.text
    assert await ours.specs() == ()
    ours.close()
    thread = next((t for t in threading.enumerate() if t.name == "nvml"), None)
    if thread is not None:
        await asyncio.to_thread(thread.join, 5)
