"""`jetfleet up` with workers on demand: none at first, one for a job, and it ends with the rest."""

from __future__ import annotations

import json
from pathlib import Path

from up_process import Up, processes_of

FLEET = """\
{kind: model, name: shout, function: shout.py:shout}
---
{kind: job, name: shout, model: shout}
"""


def test_a_job_brings_its_worker_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text("def shout(value):\n    return value.upper()\n")
    (tmp_path / "fleet.yaml").write_text(FLEET)
    up = Up.start(tmp_path, "--agents", "0")
    try:
        up.wait_ready()
        assert "agent" not in up.pids()
        assert up.cli("apply", str(tmp_path / "fleet.yaml")).returncode == 0
        result = up.cli("run", "shout", "--input", '"echo"')
        assert result.returncode == 0, result.stderr + up.log.read_text()
        assert result.stdout.strip() == "ECHO"
        shown = json.loads(up.cli("capacity", "--json").stdout)
        assert [(p["provider"], p["most"], p["in_use"]) for p in shown["providers"]] == [
            ("process", 1, 1)
        ]
        (worker,) = shown["workers"]
        assert (worker["state"], worker["jobs"], worker["replicas"]) == ("joined", ["shout"], 1)
        assert up.stop() == 0
        assert not processes_of(up.data_dir)
    finally:
        up.close()
