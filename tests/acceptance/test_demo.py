"""The demo as `make demo` runs it, and its parts on their own."""

from __future__ import annotations

import base64
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from up_process import processes_of

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "docs" / "examples" / "demo"


@pytest.mark.timeout(170)
def test_the_demo_streams_tokens_ends_with_the_table_and_leaves_nothing(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, str(DEMO / "demo.py")],
        env={**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    out = finished.stdout
    assert finished.returncode == 0, out + finished.stderr
    assert "+ model smollm2:1 created" in out
    assert re.search(r"first token after \d+\.\d\d s, \d+ tokens/s", out)
    files = re.search(r"(\d+) files in", out)
    assert files is not None
    assert int(files[1]) >= 50
    assert re.search(r"^ *chat +1 +1 +0 +0 +0 ", out, re.MULTILINE)
    assert re.search(rf"^ *filetype +{files[1]} +{files[1]} +0 +0 +0 ", out, re.MULTILINE)
    assert "all stopped" in out
    assert not list(tmp_path.glob("jetfleet*"))  # onnxruntime leaves a note of its own
    assert not processes_of(tmp_path)


def test_magika_tells_what_content_is() -> None:
    identify = runpy.run_path(str(DEMO / "filetype.py"))["identify"]
    source = Path(__file__).read_bytes()
    found = identify({"base64": base64.b64encode(source).decode()})
    assert (found["label"], found["group"]) == ("python", "code")
    assert identify({"path": str(DEMO / "fleet.yaml")})["label"] == "yaml"
    with pytest.raises(ValueError, match="give base64"):
        identify({})
