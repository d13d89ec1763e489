"""Writes what `make bench` measured into docs/benchmarks.md, between its markers.

Run: python docs/bench_table.py [bench-results/bench.json] [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("benchmarks.md")
RESULTS = Path(__file__).parents[1] / "bench-results" / "bench.json"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
SUBJECTS = {
    "log": "log floor",
    "raw": "raw floor",
    "client": "jetfleet, client",
    "http_floor": "HTTP floor",
    "run_sync": "jetfleet, HTTP run_sync",
    "in_process": "client, function in a process",
    "in_container": "client, function in a container",
}
# heading, end of the figure's name, digits
COLUMNS = (
    ("p50, ms", "p50_ms", 2),
    ("p95, ms", "p95_ms", 2),
    ("p99, ms", "p99_ms", 2),
    ("64 callers, /s", "64_per_s", 0),
    ("enqueue, /s", "enqueue_per_s", 0),
    ("drain, /s", "drain_per_s", 0),
)
# of the conductor: heading, end of the figure's name, digits
SIZES = (100, 300, 1_000)
ROUNDS = (
    ("nothing to do, ms", "steady_ms", 0),
    ("50 replicas to place, ms", "placing_ms", 0),
    ("50 that fit nowhere, ms", "starved_ms", 0),
    ("50 in the place of others, ms", "urgent_ms", 0),
    ("folding an event, µs", "fold_us", 0),
)
# Workers of 5, 20 and 100 ms, calls at 60/s and a queue that all of them drain.
BALANCING = {"plain_pull": "plain pull", "balanced": "balanced"}
BALANCING_COLUMNS = (
    ("5, 20 and 100 ms at 60/s: p50, ms", "p50_ms", 1),
    ("p90, ms", "p90_ms", 1),
    ("p99, ms", "p99_ms", 1),
    ("saturated, /s", "drain_per_s", 0),
)


def section(result: Mapping[str, Any]) -> str:
    """The tables, with when and where they were measured."""
    machine = result["machine"]
    quick = " (quick run: a tenth of the work)" if result["quick"] else ""
    return "\n\n".join(
        (
            f"Measured {result['at']}{quick} on {machine['processor']}, {machine['cpus']} cores, "
            f"Linux {machine['kernel']}, Python {machine['python']}. Median, and in brackets the "
            "least and the most of the rounds.",
            figures(result["figures"]),
            rounds(result["figures"]),
            figures(result["figures"], BALANCING, BALANCING_COLUMNS),
            ratios(result["ratios"]),
        )
    )


def figures(
    measured: Mapping[str, Mapping[str, float]],
    subjects: Mapping[str, str] = SUBJECTS,
    columns: Sequence[tuple[str, str, int]] = COLUMNS,
) -> str:
    """A row per subject."""
    rows = [_row("", *(heading for heading, *_ in columns)), _row("---", *["---:"] * len(columns))]
    for subject, words in subjects.items():
        cells = (_cell(measured.get(f"{subject}_{name}"), digits) for _, name, digits in columns)
        rows.append(_row(words, *cells))
    return "\n".join(rows)


def rounds(measured: Mapping[str, Mapping[str, float]]) -> str:
    """A row per size of the fleet."""
    head = _row("a round of the conductor", *(heading for heading, *_ in ROUNDS))
    rows = [head, _row("---", *["---:"] * len(ROUNDS))]
    for size in SIZES:
        cells = (_cell(measured.get(f"rounds_{size}_{name}"), digits) for _, name, digits in ROUNDS)
        rows.append(_row(f"{size:,} jobs, {size:,} workers", *cells))
    return "\n".join(rows)


def ratios(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per ratio, and whether it keeps its bound."""
    rows = [_row("ratio", "value", "bound", ""), _row("---", "---:", "---", "---")]
    for name, ratio in measured.items():
        small, value, bound = ratio["smaller_is_better"], ratio["value"], ratio["bound"]
        held = value <= bound if small else value >= bound
        sign = "≤" if small else "≥"
        rows.append(_row(name, f"{value:.2f}", f"{sign} {bound:g}", "holds" if held else "missed"))
    return "\n".join(rows)


def _cell(figure: Mapping[str, float] | None, digits: int) -> str:
    if figure is None:
        return ""
    median, least, most = (f"{figure[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def page(text: str, result: Mapping[str, Any]) -> str:
    """The page with what lies between its markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{section(result)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="fail when the page is stale")
    options = parser.parse_args()
    text = PAGE.read_text()
    wanted = page(text, json.loads(options.results.read_text()))
    if not options.check:
        PAGE.write_text(wanted)
    elif text != wanted:
        sys.exit("docs/benchmarks.md is stale: run python docs/bench_table.py")


if __name__ == "__main__":
    main()
