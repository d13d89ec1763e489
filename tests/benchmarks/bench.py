"""``make bench``: jetfleet beside its floors, interleaved in one run; medians, spread and ratios.

Every figure is taken several times in turn (floor, jetfleet, floor, ...), so that noise of the
machine falls on both. 1 KiB JSON, a no-op model in a replica process of its own.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import container_path
import measured as measure
import rounds as conductor
import uvloop
from fleet import Fleet, start
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parents[2] / "bench-results" / "bench.json"
Samples = dict[str, list[float]]

# name of the ratio, its figure, its floor, the bound, and whether smaller is better
GOALS = (
    ("client p50 / log floor p50", "client_p50_ms", "log_p50_ms", 1.5, True),
    ("64 callers / log floor", "client_64_per_s", "log_64_per_s", 0.6, False),
    ("enqueue / log floor", "client_enqueue_per_s", "log_enqueue_per_s", 0.8, False),
    ("drain / log floor", "client_drain_per_s", "log_drain_per_s", 0.5, False),
)


async def rounds(
    samples: Samples, count: int, *subjects: Callable[[], Awaitable[dict[str, float]]]
) -> None:
    """Take every subject in turn, ``count`` times."""
    for number in range(count):
        for subject in subjects:
            for name, value in (await subject()).items():
                samples.setdefault(name, []).append(value)
        Console(stderr=True).print(f"  round {number + 1} of {count}", style="dim")


async def run(quick: bool) -> dict[str, Any]:
    """All measurements; returns the results document."""
    samples: Samples = {}
    calls, many, queue = (100, 1_000, 2_000) if quick else (400, 6_000, 20_000)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fleet = await start(stack, folder)
        floor = await stack.enter_async_context(
            measure.LogFloor.open(fleet.floor_url, "log", "fetch")
        )
        raw = await stack.enter_async_context(measure.LogFloor.open(fleet.floor_url, "raw", "raw"))
        client = measure.JetfleetClient(fleet.client)
        http = await stack.enter_async_context(
            measure.Http.open(fleet.http_floor, "http_floor", "/")
        )
        gateway = await stack.enter_async_context(
            measure.Http.open(fleet.gateway, "run_sync", "/v1/inference_jobs/noop/run_sync")
        )
        for subject in (floor, raw, client, http, gateway):
            await subject.one_caller(calls)  # warm-up, not counted
        gc.collect()
        gc.freeze()  # what is loaded by now stays; collecting it again and again measures nothing
        console = Console(stderr=True)
        console.print("one caller", style="bold")
        await rounds(
            samples, 3 if quick else 7,
            lambda: floor.one_caller(calls), lambda: raw.one_caller(calls),
            lambda: client.one_caller(calls),
            lambda: http.one_caller(calls), lambda: gateway.one_caller(calls),
        )  # fmt: skip
        console.print("64 callers", style="bold")
        await rounds(
            samples, 2 if quick else 5,
            lambda: floor.callers(64, many), lambda: raw.callers(64, many),
            lambda: client.callers(64, many),
            lambda: http.callers(64, many), lambda: gateway.callers(64, many // 2),
        )  # fmt: skip
        await in_containers(samples, fleet, folder, calls, 2 if quick else 5)
        console.print(f"enqueue {queue:,} and drain", style="bold")
        await rounds(
            samples, 1 if quick else 3,
            lambda: floor.enqueue_and_drain(queue), lambda: raw.enqueue_and_drain(queue),
            lambda: client.enqueue_and_drain(queue),
        )  # fmt: skip
    gc.unfreeze()
    console.print("rounds of the conductor", style="bold")
    samples |= await conductor.samples(2 if quick else 10)
    return document(samples, quick)


async def in_containers(
    samples: Samples, fleet: Fleet, folder: Path, calls: int, count: int
) -> None:
    """What a container costs over a process; says so where there is no Docker engine."""
    console = Console(stderr=True)
    if (reason := container_path.why_not()) is not None:
        console.print(f"containers are not measured: {reason}", style="bold")
        return
    console.print("one caller, in a process and in a container", style="bold")
    async with container_path.jobs(fleet, folder) as ways:
        for way in ways.values():
            await way(calls)  # warm-up, not counted
        await rounds(samples, count, *(functools.partial(way, calls) for way in ways.values()))


def document(samples: Samples, quick: bool) -> dict[str, Any]:
    """Medians with their spread, the ratios, and what they were measured on."""
    figures = {
        name: {"median": statistics.median(v), "min": min(v), "max": max(v), "samples": v}
        for name, v in samples.items()
    }
    median = {name: figure["median"] for name, figure in figures.items()}
    ratios = {
        name: {"value": median[ours] / median[floor], "bound": bound, "smaller_is_better": small}
        for name, ours, floor, bound, small in GOALS
    }
    budget = median["http_floor_p50_ms"] + 1.7 * median["log_p50_ms"]
    ratios["run_sync p50 / (HTTP floor + 1.7 log floor)"] = {
        "value": median["run_sync_p50_ms"] / budget, "bound": 1.0, "smaller_is_better": True,
    }  # fmt: skip
    ratios["conductor, 1,000 jobs and workers, 50 to place, ms"] = {
        "value": median["rounds_1000_placing_ms"], "bound": 250.0, "smaller_is_better": True,
    }  # fmt: skip
    if "in_container_p50_ms" in median:
        ratios["container p50 - process p50, ms"] = {
            "value": median["in_container_p50_ms"] - median["in_process_p50_ms"],
            "bound": 1.0, "smaller_is_better": True,
        }  # fmt: skip
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": {
            "cpus": os.cpu_count(),
            "processor": _processor(),
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
        "figures": figures,
        "ratios": ratios,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def show(result: dict[str, Any]) -> bool:
    """Print the tables; True when every ratio is within its bound."""
    console = Console()
    table = Table(title=f"Measured {result['at']} on {result['machine']['processor']}, "
                        f"{result['machine']['cpus']} cores")  # fmt: skip
    for heading in ("figure", "median", "min", "max"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, figure in result["figures"].items():
        digits = ",.0f" if name.endswith("per_s") else ".3f"
        table.add_row(name, *(format(figure[k], digits) for k in ("median", "min", "max")))
    console.print(table)
    ratios = Table(title="Ratios")
    for heading in ("ratio", "value", "bound", ""):
        ratios.add_column(heading)
    fine = True
    for name, ratio in result["ratios"].items():
        small = ratio["smaller_is_better"]
        held = ratio["value"] <= ratio["bound"] if small else ratio["value"] >= ratio["bound"]
        fine = fine and held
        sign = "<=" if small else ">="
        ratios.add_row(name, f"{ratio['value']:.2f}", f"{sign} {ratio['bound']}",
                       "holds" if held else "MISSED")  # fmt: skip
    console.print(ratios)
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, to try it out")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    began = time.monotonic()
    result = uvloop.run(run(options.quick))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=1))
    fine = show(result)
    print(f"{time.monotonic() - began:.0f} s; results in {options.json}")
    if not fine:
        print("some ratios missed their bound: machines are noisy, look at min and max")


if __name__ == "__main__":
    main()
