"""Why an invocation that waits is not started, in words."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from jetfleet.commands import hints
from jetfleet.errors import QueryUnavailable
from jetfleet.specs import JobSpec, ModelSpec, Resources

IDLE = {"job": "echo", "ready": 0, "wanted": 1, "preparing": 0, "failure": None}


class FakeClient:
    def __init__(self, job: dict[str, Any] | None, *workers: str, **spec: Any) -> None:
        self.settings = SimpleNamespace(tenant="default")
        model = ModelSpec(
            name="echo", function="/m.py:echo", resources=Resources(gpu_memory_mib=40_000)
        )
        state = SimpleNamespace(spec=JobSpec(name="echo", model=model, **spec))
        self.registry = SimpleNamespace(job=lambda *_: state)
        self.answers = {
            "ps": [] if job is None else [job],
            "workers": [{"worker": f"w{n}", "state": state} for n, state in enumerate(workers)],
        }
        self.asked = 0

    async def query(self, name: str, **_: Any) -> Any:
        self.asked += 1
        if self.asked == 1 and self.answers.get("down"):
            raise QueryUnavailable
        return SimpleNamespace(dicts=lambda: self.answers[name])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("row", "workers", "words"),
    [
        (None, (), ""),
        ({**IDLE, "ready": 1}, (), ""),
        ({**IDLE, "failure": "Traceback\nImportError: no torch\n"}, ("joined",),
         "does not start: ImportError: no torch"),
        ({**IDLE, "preparing": 1}, ("joined",), "being prepared"),
        (IDLE, ("left", "lost"), "no worker has joined"),
        (IDLE, ("joined", "joined", "lost"), "none of 2 workers has room for it; its model needs "
         "gpu_memory_mib 40000"),
        (IDLE, ("joined", "lost"), "the only worker has no room for it"),
        ({**IDLE, "wanted": 0}, ("joined",), "wants no replicas"),
    ],
)  # fmt: skip
async def test_the_reason_is_what_the_projection_knows(row, workers, words):
    why = await hints.why_waiting(FakeClient(row, *workers), "echo")
    assert words in why if words else why == ""


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"assignment": "manual", "workers": ("w1", "w7")}, "are not at work: w1, w7"),
        ({"assignment": "manual", "workers": ("w0", "w7")}, "has no room"),
    ],
)
async def test_the_reason_is_what_the_job_asks_for(spec, words):
    assert words in await hints.why_waiting(FakeClient(IDLE, "joined", "lost", **spec), "echo")


@pytest.mark.anyio
async def test_each_reason_is_said_once_and_silence_of_the_projector_is_borne(monkeypatch, capsys):
    monkeypatch.setattr(hints, "FIRST_S", 0.001)
    monkeypatch.setattr(hints, "AGAIN_S", 0.001)
    client = FakeClient(IDLE)
    client.answers["down"] = [{}]
    async with hints.explaining(client, "echo"):
        async with asyncio.timeout(10):
            while client.asked < 9:
                await asyncio.sleep(0.002)
    said = capsys.readouterr().err.splitlines()
    assert said == ["echo: still waiting: no worker has joined; `jetfleet agent` starts one"]
