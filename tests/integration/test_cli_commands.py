"""The command line against a real broker: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from jetfleet.server import Broker

pytestmark = pytest.mark.anyio

FLEET = """\
kind: model
name: echo
function: echo.py:echo
---
kind: job
name: echo
model: echo
concurrency: {concurrency}
"""


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Cli:
    """``jetfleet`` as a child process, pointed at one installation."""

    data_dir: Path
    nats_url: str
    folder: Path

    async def __call__(self, *arguments: str, stdin: str = "") -> Result:
        finished = await anyio.run_process(
            [sys.executable, "-m", "jetfleet", *arguments],
            input=stdin.encode(),
            check=False,
            cwd=self.folder,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "JETFLEET_DATA_DIR": str(self.data_dir),
                "JETFLEET_NATS_URL": self.nats_url,
            },
        )
        return Result(finished.returncode, finished.stdout.decode(), finished.stderr.decode())

    def write(self, concurrency: int = 1) -> str:
        (self.folder / "echo.py").write_text("def echo(value):\n    return value\n")
        (self.folder / "fleet.yaml").write_text(FLEET.format(concurrency=concurrency))
        return "fleet.yaml"


@pytest.fixture
def cli(broker: Broker, tmp_path: Path) -> Cli:
    return Cli(broker.data_dir, broker.url, tmp_path)


async def test_apply_says_what_changed_and_repeating_it_changes_nothing(cli: Cli) -> None:
    file = cli.write()
    first = await cli("apply", file)
    assert first.out == "+ model echo:1 created\n+ job echo created\n", first
    assert (await cli("apply", file)).out == "= model echo:1 unchanged\n= job echo unchanged\n"
    cli.write(concurrency=4)
    assert (await cli("apply", file, "--json")).lines == [
        {"kind": "model", "name": "echo:1", "change": "unchanged", "fields": []},
        {"kind": "job", "name": "echo", "change": "updated", "fields": ["concurrency"]},
    ]


async def test_a_mistake_in_a_manifest_is_one_line_and_registers_nothing(cli: Cli) -> None:
    cli.write()
    (cli.folder / "fleet.yaml").write_text(FLEET.format(concurrency="many"))
    result = await cli("apply", "fleet.yaml")
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("error: fleet.yaml:8: job echo: concurrency: ")
    assert result.err.count("\n") == 1
    assert (await cli("model", "list", "--json")).json == []


async def test_what_was_applied_can_be_listed_and_shown(cli: Cli) -> None:
    await cli("apply", cli.write())
    listed = await cli("job", "list")
    assert listed.out.splitlines()[0].split()[:3] == ["job", "model", "enabled"]
    assert listed.out.splitlines()[1].split()[:3] == ["echo", "echo:1", "yes"]
    model = (await cli("--json", "model", "show", "echo")).json
    assert model["function"] == f"{cli.folder}/echo.py:echo"
    job = (await cli("job", "show", "echo", "--json")).json
    assert (job["name"], job["enabled"], job["model"]["name"]) == ("echo", True, "echo")


async def test_a_disabled_job_refuses_and_an_enabled_one_accepts(cli: Cli) -> None:
    await cli("apply", cli.write())
    disabled = await cli("job", "disable", "echo", "--reason", "repairs")
    assert disabled.out == "job echo disabled\n"
    refused = await cli("run", "echo", "--no-wait")
    assert (refused.status, refused.out) == (1, "")
    assert "disabled" in refused.err
    assert (await cli("job", "enable", "echo")).out == "job echo enabled\n"
    assert (await cli("run", "echo", "--no-wait")).status == 0


async def test_an_invocation_can_be_submitted_looked_up_cancelled_and_read_in_the_log(
    cli: Cli,
) -> None:
    await cli("apply", cli.write())
    began = await cli("run", "echo", "--input", "-", "--no-wait", stdin='{"a": 1}')
    invocation = began.out.strip()
    shown = (await cli("invocation", invocation, "--json")).json
    assert (shown["state"], shown["job"]) == ("queued", "echo")
    cancelled = await cli("cancel", invocation, "--reason", "a test", "--json")
    assert cancelled.status == 0, cancelled
    events = (await cli("events", "--json")).lines
    assert [each["event"]["type"] for each in events] == [
        "jetfleet.invocation.queued",
        "jetfleet.invocation.cancel_requested",
    ]
    assert events[0]["event"]["data"]["input"] == {"a": 1}
    assert [each["seq"] for each in (await cli("events", "--json", "--from", "2")).lines] == [2]
    only = await cli("events", "--type", "cancel_requested")
    assert only.out.split()[0] == "2"
    assert "a test" in only.out


async def test_what_waits_is_explained_from_the_log_alone(cli: Cli) -> None:
    await cli("apply", cli.write())
    invocation = (await cli("run", "echo", "--no-wait")).out.strip()
    found = (await cli("explain", invocation, "--json")).json
    assert (found["invocation"], found["state"]) == (invocation, "queued")
    assert found["code"] == "no_worker"
    assert [event["text"] for event in found["timeline"]] == ["the job was created", "queued"]
    said = await cli("explain", "echo")
    assert said.out.splitlines()[:3] == [
        "echo  enabled",
        "  no worker has joined; `jetfleet agent` starts one",
        "    1 waiting, 0 running",
    ]
    for nobody in (("nobody",), ("echo", "--worker"), ("0192f0c1-2345-7abc-8def-0123456789ab",)):
        refused = await cli("explain", *nobody)
        assert (refused.status, refused.out) == (1, "")
        assert refused.err.startswith("error: there is no ")


async def test_the_same_idempotency_key_gives_the_same_invocation(cli: Cli) -> None:
    await cli("apply", cli.write())
    submit = ("run", "echo", "--no-wait", "--json", "--idempotency-key", "k")
    first, second = (await cli(*submit)).json, (await cli(*submit)).json
    assert first["invocation"] == second["invocation"]
    assert (first["duplicate"], second["duplicate"]) == (False, True)


REFUSALS: list[tuple[tuple[str, ...], str]] = [
    (("run", "nope"), "nope"),
    (("run", "echo", "--input", "{"), "--input is not JSON"),
    (("run", "echo", "--input", "@gone.json"), "cannot read gone.json"),
    (("events", "--from", "yesterday"), "neither all, new, a sequence"),
    (("events", "--stream", "Q0"), "there is no stream 'Q0'"),
    (("events", "--type", "nope"), "there is no event type 'nope'"),
    (("model", "show", "nope"), "there is no model 'nope'"),
    (("apply", "gone.yaml"), "cannot read gone.yaml"),
    (("query", "SELECT 1"), "projector"),
]


async def test_a_refusal_is_one_line_on_stderr_with_status_1(cli: Cli) -> None:
    async def check(arguments: tuple[str, ...], message: str) -> None:
        result = await cli(*arguments)
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith("error: ")
        assert message in result.err
        assert result.err.count("\n") == 1
        as_json = json.loads((await cli(*arguments, "--json")).err)
        assert message in as_json["error"]["message"]

    async with anyio.create_task_group() as tasks:
        for arguments, message in REFUSALS:
            tasks.start_soon(check, arguments, message)
