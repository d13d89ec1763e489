"""A machine as its owner starts it: one command, one token, over WebSocket; and how it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from jetfleet.events import WorkerDraining, WorkerLeft
from stack import MARK, Program, Stack, fleet_says, open_job, stack
from waiting import WITHIN_S, until

pytestmark = pytest.mark.anyio


async def cli(fleet: Stack, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """``jetfleet`` on the operator's machine."""
    with anyio.fail_after(WITHIN_S):
        return await anyio.run_process(
            [sys.executable, "-m", "jetfleet", *arguments],
            check=False,
            env={
                **os.environ,
                "JETFLEET_DATA_DIR": str(fleet.broker.data_dir),
                "JETFLEET_NATS_URL": fleet.broker.url,
            },
        )


def owner_starts(fleet: Stack, home: Path, name: str, token: str, *more: str) -> Program:
    """``jetfleet agent`` on a machine that has nothing of the installation but the token."""
    home.mkdir()
    (home / "token").write_text(token + "\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JETFLEET_")}
    log = fleet.folder / f"agent-{name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "jetfleet", "agent", "--name", name, "--heartbeat-s", "0.5",
             "--join", fleet.broker.websocket_url, "--token-file", "token", "--drain-s", "10",
             *more],
            env={**environment, MARK: str(fleet.folder)}, cwd=home, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    program = Program(f"agent-{name}", process, log)
    fleet.programs.append(program)
    return program


async def token_for(fleet: Stack, *options: str) -> Any:
    made = await cli(fleet, "worker", "token", *options, "--json")
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


async def test_from_a_token_to_an_answer_and_back(tmp_path: Path) -> None:
    async with stack(tmp_path / "stack", agents=()) as fleet:
        fleet.projector()
        client = await fleet.client()
        token = await token_for(fleet, "--owner", "ada", "--label", "zone=attic", "--for", "1h")
        box = owner_starts(fleet, tmp_path / "home", "box", token["token"])
        await open_job(client, "echo", "behaviours.py:echo")
        assert await client.run("echo", 5, wait_s=WITHIN_S) == 5

        listed = json.loads((await cli(fleet, "worker", "list", "--json")).stdout)
        (row,) = listed
        assert (row["worker"], row["owner"], row["trusted"]) == ("box", "ada", False)
        shown = json.loads((await cli(fleet, "worker", "show", "box", "--json")).stdout)
        assert shown["heartbeat"]["jobs"][0]["job"] == "echo"
        table = (await cli(fleet, "worker", "list")).stdout.decode()
        assert "zone=attic" in table

        nobody = await cli(fleet, "worker", "drain", "nobody")
        assert nobody.returncode == 1
        assert b"there is no worker 'nobody'" in nobody.stderr
        drained = await cli(fleet, "worker", "drain", "box", "--within", "5")
        assert drained.returncode == 0, drained.stderr
        assert b"box has left" in drained.stdout
        assert await box.ended() == 0
        again = await cli(fleet, "worker", "drain", "box")
        assert b"is not at work: it is left" in again.stderr

        revoked = await cli(fleet, "worker", "token", "--revoke", token["id"])
        assert revoked.returncode == 0, revoked.stderr
        (tmp_path / "home" / ".jetfleet" / "joined" / "box.creds").unlink()
        late = owner_starts(fleet, tmp_path / "again", "box2", token["token"])
        assert await late.ended() == 1
        assert "was revoked" in late.log.read_text()


async def test_a_spot_notice_drains_it_and_it_ends_well(tmp_path: Path) -> None:
    async with stack(tmp_path / "stack", agents=()) as fleet:
        client = await fleet.client()
        token = await token_for(fleet)
        notice = tmp_path / "notice"
        box = owner_starts(
            fleet, tmp_path / "home", "box", token["token"], "--spot-file", str(notice)
        )
        await open_job(client, "echo", "behaviours.py:echo")
        notice.touch()
        said = await fleet_says(client, WorkerDraining, worker="box")
        assert said.event.data.reason == f"spot notice: {notice} is there"
        await fleet_says(client, WorkerLeft, worker="box")
        assert await box.ended() == 0


async def test_a_token_is_made_only_where_the_keys_are(tmp_path: Path) -> None:
    made = await anyio.run_process(
        [sys.executable, "-m", "jetfleet", "worker", "token", "--data-dir", str(tmp_path)],
        check=False,
    )
    assert made.returncode == 1
    assert b"no key at" in made.stderr


async def test_it_ends_at_once_when_told_to_before_it_could_join(tmp_path: Path) -> None:
    async with stack(tmp_path / "stack", agents=()) as fleet:
        token = await token_for(fleet)
        conductor = fleet.folder / "conductor.log"
        await until(lambda: "folded" in conductor.read_text(), "the conductor is there")
        await fleet.broker.stop()
        box = owner_starts(fleet, tmp_path / "home", "box", token["token"])
        await until(lambda: "Connect" in box.log.read_text(), "it has tried to connect")
        assert await box.stop() == 0
        assert box.log.read_text().count("Connect") == 1  # said once, not with every try
