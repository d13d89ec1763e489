"""The documentation is whole, fresh, and names only what there is. What it shows is run in
tests/acceptance/test_docs_run.py."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jetfleet import access, cli, streams
from jetfleet.agreement import disagreement
from jetfleet.events import EVENT_TYPES, Event, decode, encode
from jetfleet.settings import Settings
from jetfleet_projections import statements
from nats_rules import matches

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("decisions/*.md")])
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = ("core", "projections", "agent", "gateway", "simulations", "tests", "docs")


def tool(name: str) -> ModuleType:
    """A script of docs/."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


generate, bench_table, event_examples = map(tool, ("generate", "bench_table", "event_examples"))
EXAMPLES: list[Event] = list(event_examples.examples())


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# -- events


def test_the_page_of_events_is_fresh() -> None:
    assert (DOCS / "events.md").read_text() == generate.page(), "run python docs/generate.py"


def test_every_event_is_described_with_an_example() -> None:
    page = (DOCS / "events.md").read_text()
    for kind in EVENT_TYPES.values():
        assert f"\n## {kind.__name__}\n" in page
    assert set(generate.PUBLISHED) == {each.removeprefix("jetfleet.") for each in EVENT_TYPES}
    shown = [text for language, text in BLOCK.findall(page) if language == "json"]
    assert [decode(text).type for text in shown] == list(EVENT_TYPES)


def published(example: Event) -> tuple[str, str]:
    """The stream and the subject that this example would have."""
    stream, subject, _ = generate.PUBLISHED[example.type.removeprefix("jetfleet.")]
    data = json.loads(encode(example))["data"]
    tokens = {
        "tenant": example.tenant,
        "shard": data.get("shard", 2),
        "class": "normal",
        "origin": event_examples.ORIGIN,
        "worker": data.get("worker", "-"),
        "job": data["job"]["name"] if isinstance(data.get("job"), dict) else data.get("job"),
        "model": data["model"]["name"] if isinstance(data.get("model"), dict) else None,
        "token": data.get("token"),
        "provider": data.get("provider"),
    }
    return stream, re.sub(r"<(\w+)>", lambda found: str(tokens[found[1]]), subject)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.type)
def test_an_example_agrees_with_its_subject_and_its_subject_with_its_stream(example: Event) -> None:
    stream, subject = published(example)
    (config,) = (each for each in streams.all_streams(4) if each["name"] == stream)
    assert any(matches(pattern, subject) for pattern in config["subjects"])
    if stream != streams.TELEMETRY:  # folded by nobody
        assert not disagreement(stream, subject, example)


# -- benchmarks


def bench_result() -> dict[str, Any]:
    figure = {"median": 1.5, "min": 1.0, "max": 2.0}
    ratio = {"value": 1.2, "bound": 1.5, "smaller_is_better": True}
    return {
        "at": "2026-01-31T12:00:00+00:00", "quick": False,
        "machine": {"cpus": 2, "processor": "a CPU", "python": "3.11.7", "kernel": "6.1"},
        "figures": {
            "client_p50_ms": figure, "client_64_per_s": {**figure, "median": 4321.0},
            "rounds_300_steady_ms": {"median": 34.5, "min": 30.0, "max": 40.0},
        },
        "ratios": {"client / floor": ratio, "drain / floor": {**ratio, "smaller_is_better": False}},
    }  # fmt: skip


def test_the_table_of_the_bench_goes_between_its_markers() -> None:
    before = (DOCS / "benchmarks.md").read_text()
    after = bench_table.page(before, bench_result())
    assert "| jetfleet, client | 1.50 (1.00 to 2.00) |  |  | 4,321 (1 to 2) |  |  |" in after
    assert "| 300 jobs, 300 workers | 34 (30 to 40) |  |  |  |  |" in after
    assert "| client / floor | 1.20 | ≤ 1.5 | holds |" in after
    assert "| drain / floor | 1.20 | ≥ 1.5 | missed |" in after
    assert bench_table.page(after, bench_result()) == after
    assert after.count("## The floors") == 1


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="bench:begin"):
        bench_table.page("# Benchmarks\n", bench_result())


def test_the_bench_page_names_every_subject_that_is_measured() -> None:
    source = (ROOT / "tests" / "benchmarks" / "bench.py").read_text()
    measured = set(
        re.findall(r'"(\w+?)(?:_p50_ms|_\d+_per_s|_enqueue_per_s|_drain_per_s)"', source)
    )
    assert measured <= {*bench_table.SUBJECTS, *bench_table.BALANCING}


# -- the README


def test_the_first_screen_says_what_it_is_and_the_two_commands() -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    for words in ("one inference service", "make demo", "make test", "<!-- demo:begin -->"):
        assert words in first


def test_the_demo_output_in_the_readme_has_the_steps_of_the_demo() -> None:
    readme = (ROOT / "README.md").read_text()
    source = (DOCS / "examples" / "demo" / "demo.py").read_text()
    steps = re.findall(r'^ +step\("(.+)"\)$', source, re.MULTILINE)
    assert sorted(re.findall(r"^▸ (.+)$", readme, re.MULTILINE)) == sorted(steps)


def test_every_page_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert f"(docs/{page.name}" in readme, page
    assert "(docs/decisions)" in readme
    assert "(CHANGELOG.md)" in readme


# -- what pages name is there


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*\w)/?`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_and_commands_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    settings = {f"JETFLEET_{each.upper()}" for each in Settings.model_fields}
    assert set(re.findall(r"JETFLEET_[A-Z]+(?:_[A-Z]+)*", text)) <= settings
    commands = {*cli.CORE, *cli.OTHERS}
    assert set(re.findall(r"(?:`|\$ |bin/)jetfleet ([a-z]+)", text)) <= commands


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_of_python_compile_and_of_json_parse(page: Path) -> None:
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python":
            ast.parse(text)
        elif language == "json":
            json.loads(text)


def test_every_stream_role_and_setting_of_a_reader_is_described() -> None:
    architecture = (DOCS / "architecture.md").read_text()
    rights = (DOCS / "access.md").read_text()
    for config in streams.all_streams(0):
        assert f"| {config['name']} |" in architecture
    for role in access.ROLES:
        assert f"\n| `{role}`" in rights
    for account in (access.FLEET_ACCOUNT, access.WORKERS_ACCOUNT, access.SYSTEM_ACCOUNT):
        assert f"\n| `{account}` |" in rights


def test_decisions_are_numbered_without_a_gap() -> None:
    for number, page in enumerate(sorted(DOCS.glob("decisions/*.md")), start=1):
        assert page.name.startswith(f"{number:04}-"), page.name
        assert page.read_text().startswith(f"# {number}. "), page.name


@pytest.mark.parametrize("query", statements.load("queries.sql").values(), ids=lambda q: q.name)
def test_every_named_query_says_what_it_answers(query: statements.Statement) -> None:
    assert query.description.strip().endswith("."), query.name
