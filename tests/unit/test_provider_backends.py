"""Backends of providers, each by itself: what an executable is told and what it may answer."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from jetfleet.events import WorkerShape
from jetfleet_agent.providers import CannotStart, CannotStop, Start
from jetfleet_agent.providers.command import Commands, script
from jetfleet_agent.providers.process import Processes

WHAT = Start(
    "cloud-1", "q1", WorkerShape(memory_mib=4096), ("agent", "--name", "cloud-1"),
    {"JETFLEET_JOIN_TOKEN": "it's"},
)  # fmt: skip
pytestmark = pytest.mark.anyio


def executable(folder: Path, body: str) -> Commands:
    """A provider's executable: Python with ``verb`` and ``told``; it notes what it was told."""
    path = folder / "tool"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys, time\nverb = sys.argv[-1]\n"
        "told = json.load(sys.stdin)\n"
        f"open({str(folder / 'told')!r}, 'a').write(json.dumps([*sys.argv[1:], told]) + '\\n')\n"
        f"{body}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Commands([str(path), "region"], "cloud", "f1", 20)


def told(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "told").read_text().splitlines()]


async def test_start_hands_over_all_that_a_machine_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("JETFLEET_CREDENTIALS", "ours")
    body = "assert 'JETFLEET_CREDENTIALS' not in os.environ; print(json.dumps({'handle': 'i-7'}))"
    assert await executable(tmp_path, body).start(WHAT) == "i-7"
    (first,) = told(tmp_path)
    assert first[:2] == ["region", "start"]
    request = first[2]
    assert (request["verb"], request["provider"], request["fleet"]) == ("start", "cloud", "f1")
    assert (request["worker"], request["request"]) == ("cloud-1", "q1")
    assert request["shape"]["memory_mib"] == 4096
    assert request["agent"] == ["jetfleet", "agent", "--name", "cloud-1"]
    assert request["environment"] == {"JETFLEET_JOIN_TOKEN": "it's"}
    assert request["script"] == script(WHAT)


async def test_the_script_is_a_shell_s(tmp_path):
    tool = tmp_path / "jetfleet"
    tool.write_text('#!/bin/sh\necho "$JETFLEET_JOIN_TOKEN|$*"\n')
    tool.chmod(0o700)
    running = await asyncio.create_subprocess_exec(
        "sh", "-c", script(WHAT), stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    out, _ = await running.communicate()
    assert out == b"it's|agent --name cloud-1\n"


async def test_a_start_that_fails_is_undone_and_says_why(tmp_path):
    body = "verb == 'start' and sys.exit('first line\\nno machine is free')"
    with pytest.raises(CannotStart, match=r"status 1: no machine is free$"):
        await executable(tmp_path, body).start(WHAT)
    assert [each[1] for each in told(tmp_path)] == ["start", "stop"]


async def test_a_start_that_takes_too_long_is_ended_with_all_it_called(tmp_path):
    tool = executable(tmp_path, "verb == 'start' and os.system('sleep 600')")
    tool.start_s = 0.5
    with pytest.raises(CannotStart, match=r"longer than 0\.5 s"):
        await tool.start(WHAT)


@pytest.mark.parametrize("answer", ["nonsense", "[1]", "3"])
async def test_what_is_no_json_object_is_a_failure(tmp_path, answer):
    with pytest.raises(CannotStop, match="JSON object"):
        await executable(tmp_path, f"print({answer!r})").stop("cloud-1", "i-7")


async def test_stop_names_the_worker_and_its_handle(tmp_path):
    await executable(tmp_path, "").stop("cloud-1", "i-7")
    (first,) = told(tmp_path)
    assert (first[2]["worker"], first[2]["handle"]) == ("cloud-1", "i-7")


async def test_list_may_be_unknown_but_not_wrong(tmp_path):
    assert await executable(tmp_path, 'print(\'{"workers": ["a"]}\')').list() == {"a"}
    assert await executable(tmp_path, "sys.exit(64)").list() is None
    for wrong in ("print('{}')", "sys.exit(1)"):
        with pytest.raises(CannotStop):
            await executable(tmp_path, wrong).list()


async def test_an_executable_that_is_not_there_cannot_start_anything(tmp_path):
    with pytest.raises(CannotStart, match="cannot be run: No such file"):
        await Commands([str(tmp_path / "none")], "cloud", "f1", 5).start(WHAT)


async def test_processes_of_another_provider_or_installation_are_not_found():
    mine, others = Processes("p@f1"), Processes("p@f2")
    sleeping = Start("p-1", "q1", WHAT.shape, ("agent", "--help", "--name", "p-1"))
    assert await mine.list() == set()
    pid = await mine.start(sleeping)
    assert int(pid) > 0
    assert await others.list() == set()
    await mine.stop("p-1", pid)
    assert await mine.list() == set()
    await mine.stop("p-1", pid)  # once more does no harm
