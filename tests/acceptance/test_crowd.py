"""The benchmark of many agents runs, with a few."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CROWD = Path(__file__).parents[1] / "benchmarks" / "crowd.py"
AGENTS = 3


def test_agents_join_over_websocket_and_all_serve(tmp_path: Path) -> None:
    out = tmp_path / "crowd.json"
    command = [sys.executable, str(CROWD), str(AGENTS), "--json", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert out.exists(), run.stderr
    result = json.loads(out.read_text())
    assert result["agents_that_served"] == AGENTS
    assert 0 < result["memory_mib_median"] < 100
    assert result["messages_in_per_s"] < 5
