"""The rules of the house, checked: sizes, folders, documentation, no paths of a machine."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jetfleet import errors

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "core": "jetfleet",
    "projections": "jetfleet_projections",
    "agent": "jetfleet_agent",
    "gateway": "jetfleet_gateway",
    "simulations": "jetfleet_simulations",
}
MODULE_LINES, FUNCTION_LINES = 400, 60


def tracked() -> list[Path]:
    """Files of the repository; outside a checkout, what lies in the folders."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    folders = [*PACKAGES, "tests", "docs"]
    return [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()]


PYTHON = [path for path in tracked() if path.suffix == ".py"]


def test_no_module_is_longer_than_one_sitting() -> None:
    long = {str(p): n for p in PYTHON if (n := len(p.read_text().splitlines())) > MODULE_LINES}
    assert not long


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{path}:{node.lineno} {node.name}"
        for path in PYTHON
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES
    ]
    assert not long


@pytest.mark.parametrize(("folder", "package"), PACKAGES.items())
def test_each_folder_holds_its_one_package(folder: str, package: str) -> None:
    inside = {
        p.relative_to(ROOT / folder).parts[0] for p in tracked() if p.is_relative_to(ROOT / folder)
    }
    assert inside == {package}


def test_the_import_rules_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_error_has_a_docstring_and_stands_in_the_tree() -> None:
    tree = errors.__doc__ or ""
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, Exception):
            assert (kind.__doc__ or "").strip(), name
            assert name in tree, f"{name} is missing in the tree at the top of errors.py"


def test_no_file_names_a_path_of_a_machine() -> None:
    machine = re.compile(r"(?<![\w.])/(?:work|farm|home/\w+|root)/")
    named = [
        str(path)
        for path in tracked()
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".conf", ".sql", ""}
        and path != Path(__file__)
        and machine.search(path.read_text(errors="ignore"))
    ]
    assert not named


def test_the_page_of_events_is_fresh_and_names_all() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        generate = importlib.import_module("generate")
    finally:
        sys.path.pop(0)
    assert (ROOT / "docs" / "events.md").read_text() == generate.page()
