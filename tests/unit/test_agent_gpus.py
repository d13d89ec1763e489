"""GPU telemetry: without a driver, and with a fake driver library compiled here."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
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

SOURCE = Path(__file__).parents[1] / "models" / "fake_nvml.c"

PROBE = """
import asyncio, json, sys
from jetfleet_agent import gpus

async def main():
    gpus.ANSWER_TIMEOUT_S = float(sys.argv[1])
    ours = gpus.Gpus()
    for line in sys.stdin:
        values, _ = await asyncio.gather(getattr(ours, line.strip())(), ours.specs())
        print(json.dumps([v.model_dump() for v in values]), flush=True)
    ours.close()

asyncio.run(main())
"""


class Driver:
    """A process that asks the fake driver, whose state we write."""

    def __init__(self, library: Path, state: Path, timeout_s: float) -> None:
        self._state = state
        self.set()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROBE, str(timeout_s)],
            env=os.environ | {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": str(state)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def set(self, **values: int) -> None:
        self._state.write_text("".join(f"{key} {value}\n" for key, value in values.items()))

    def ask(self, what: str) -> list[dict[str, Any]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return list(json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a compiled fake ``libnvidia-ml.so.1``."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make the fake NVML with")
    folder = tmp_path_factory.mktemp("nvml")
    target = str(folder / "libnvidia-ml.so.1")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, str(SOURCE)], check=True)
    return folder


@pytest.fixture(params=[5.0])
def driver(library: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    running = Driver(library, tmp_path / "state", request.param)
    yield running
    _, errors = running.process.communicate(timeout=10)
    assert running.process.returncode == 0, errors


def test_specs_hold_what_each_gpu_reports_and_none_for_the_rest(driver: Driver) -> None:
    common = {"driver_version": "570.1", "cuda_version": "12.8"}
    assert driver.ask("specs") == [
        {
            "index": 0,
            "name": "Fake H100",
            "uuid": "GPU-0",
            "memory_mib": 81920,
            "compute_capability": 9.0,
            **common,
        },
        {
            "index": 1,
            "name": "Fake Old",
            "uuid": "GPU-1",
            "memory_mib": None,
            "compute_capability": None,
            **common,
        },
    ]


def test_loads_follow_the_gpu(driver: Driver) -> None:
    driver.set(utilization=75, used_mib=1024)
    first, second = driver.ask("loads")
    assert first == {
        "index": 0,
        "uuid": "GPU-0",
        "utilization": 0.75,
        "memory_used_mib": 1024,
        "temperature_c": 40.0,
        "power_w": 123.5,
    }
    assert second["memory_used_mib"] is None
    assert second["power_w"] is None
    assert second["temperature_c"] == 41.0
    driver.set(utilization=10)
    assert driver.ask("loads")[0]["utilization"] == 0.1


def test_gpu_that_fell_off_the_bus_is_there_without_facts(driver: Driver) -> None:
    driver.ask("loads")
    driver.set(lost=0)
    lost, other = driver.ask("loads")
    assert set(lost.values()) == {0, None}
    assert other["uuid"] == "GPU-1"
    assert [spec["name"] for spec in driver.ask("specs")] == ["unknown", "Fake Old"]


def test_driver_that_goes_away_and_comes_back_is_asked_again(driver: Driver) -> None:
    assert len(driver.ask("loads")) == 2
    driver.set(unloaded=1)
    assert driver.ask("loads") == []
    driver.set()
    assert len(driver.ask("loads")) == 2


@pytest.mark.parametrize("driver", [0.1], indirect=True)
def test_driver_that_hangs_costs_an_answer_but_no_time(driver: Driver) -> None:
    assert len(driver.ask("specs")) == 2
    driver.set(delay_ms=150)
    assert driver.ask("loads") == []
    assert driver.ask("loads") == [], "the thread still hangs; no second question is queued"


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
    assert await ours.loads() == ()
    assert "unheard of" in caplog.text
    assert await ours.loads() == ()
    ours.close()
    thread = next((t for t in threading.enumerate() if t.name == "nvml"), None)
    if thread is not None:
        await asyncio.to_thread(thread.join, 5)
