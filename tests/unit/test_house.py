"""The rules of the house, checked: sizes, folders, documentation, no paths of a machine."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jetfleet.errors import JetfleetError

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


def every_error() -> list[type[JetfleetError]]:
    """All errors of ours, in whichever package."""
    for path in PYTHON:
        if path.is_relative_to(ROOT / "tests") or path.is_relative_to(ROOT / "docs"):
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])
        if "jetfleet.errors import" in path.read_text():
            importlib.import_module(module.removesuffix(".__init__"))
    found, todo = [], [JetfleetError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return found


def test_every_error_has_words() -> None:
    for kind in every_error():
        assert (vars(kind).get("__doc__") or "").strip(), kind


def test_no_file_names_a_path_of_a_machine() -> None:
    machine = re.compile(r"(?<![\w.$}])/(?:work|farm|home/\w+|root)(?![\w-])")
    named = [
        f"{path}: {found[0]}"
        for path in tracked()
        if path != Path(__file__) and (found := machine.search(path.read_text(errors="ignore")))
    ]
    assert not named


def test_locks_name_no_registry() -> None:
    for lock in ROOT.glob("*.lock"):
        assert "://" not in lock.read_text(), lock
