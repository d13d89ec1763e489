"""The command line on a whole installation: work goes in, and everything about it can be asked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from up_process import Up
from waiting import eventually

MODEL = """\
import time

def double(value):
    return value * 2

def count(value):
    for n in range(value):
        yield n

def fail(value):
    raise ValueError("this input is not liked")

def slow(value):
    time.sleep(value)
    return "done"
"""
FUNCTIONS = ("double", "count", "fail", "slow")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    (folder / "models.py").write_text(MODEL)
    documents = [
        f"{{kind: model, name: {name}, function: models.py:{name}}}\n---\n"
        f"{{kind: job, name: {name}, model: {name}, timeout_s: 30}}\n"
        for name in FUNCTIONS
    ]
    (folder / "fleet.yaml").write_text("---\n".join(documents))
    running = Up.start(folder)
    try:
        running.wait_ready()
        applied = running.cli("apply", str(folder / "fleet.yaml"))
        assert applied.stdout.count("created") == 2 * len(FUNCTIONS), applied.stderr
        yield running
    finally:
        running.close()


def test_run_prints_the_output_and_nothing_else(up: Up) -> None:
    result = up.cli("run", "double", "--input", "-", stdin="21")
    assert (result.returncode, result.stdout, result.stderr) == (0, "42\n", "")


def test_run_with_json_tells_the_whole_outcome(up: Up) -> None:
    outcome = json.loads(up.cli("run", "double", "-i", "[1]", "--json").stdout)
    assert (outcome["state"], outcome["output"], outcome["worker"]) == (
        "completed",
        [1, 1],
        "local",
    )
    assert outcome["run_s"] >= 0


def test_a_stream_is_printed_chunk_by_chunk_and_ends_with_the_outcome(up: Up) -> None:
    plain = up.cli("run", "count", "--input", "3", "--stream")
    assert plain.stdout.split() == ["0", "1", "2"]
    lines = up.cli("run", "count", "--input", "3", "--stream", "--json").stdout.splitlines()
    assert [json.loads(line).get("chunk") for line in lines] == [0, 1, 2, None]
    assert json.loads(lines[-1])["state"] == "completed"


def test_a_model_that_streams_nothing_still_prints_its_output(up: Up) -> None:
    assert up.cli("run", "double", "--input", "4", "--stream").stdout == "8\n"


def test_a_model_that_raises_is_one_line_on_stderr_and_status_1(up: Up) -> None:
    result = up.cli("run", "fail", "--input", "1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: model_error: ")
    assert "this input is not liked" in result.stderr
    outcome = json.loads(up.cli("run", "fail", "--json").stdout)
    assert (outcome["state"], outcome["error"]["code"]) == ("failed", "model_error")


def test_a_timeout_ends_the_attempt(up: Up) -> None:
    result = up.cli("run", "slow", "--input", "30", "--timeout", "0.5")
    assert result.returncode == 1
    assert result.stderr.startswith("error: timeout: ")


def test_a_running_invocation_can_be_watched_cancelled_and_looked_up(up: Up) -> None:
    invocation = up.cli("run", "slow", "--input", "25", "--no-wait").stdout.strip()

    def state() -> str:
        return str(json.loads(up.cli("invocation", invocation, "--json").stdout)["state"])

    eventually(lambda: state() == "started")
    assert up.cli("cancel", invocation, "--reason", "enough").returncode == 0
    eventually(lambda: state() == "cancelled")
    shown = up.cli("invocation", invocation).stdout
    assert "started on local after" in shown
    assert "cancelled" in shown
    assert "enough" in shown


def test_ctrl_c_leaves_the_invocation_running_and_names_it(up: Up) -> None:
    def started() -> list[str]:
        lines = up.cli("events", "--type", "started", "--json").stdout.splitlines()
        data = [json.loads(line)["event"]["data"] for line in lines]
        return [d["invocation"] for d in data if d["job"] == "slow"]

    before = started()
    command = [sys.executable, "-m", "jetfleet", "run", "slow", "--input", "25"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(up.data_dir)], stderr=subprocess.PIPE, text=True
    )
    eventually(lambda: len(started()) > len(before) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    [invocation] = set(started()) - set(before)
    assert f"{invocation} goes on" in err
    assert up.cli("cancel", invocation).returncode == 0


def test_ps_shows_replicas_ready_of_those_wanted(up: Up) -> None:
    def rows() -> dict[str, dict[str, object]]:
        return {row["job"]: row for row in json.loads(up.cli("ps", "--json").stdout)}

    assert set(rows()) == set(FUNCTIONS)
    eventually(lambda: all(row["ready"] == row["wanted"] == 1 for row in rows().values()))
    assert up.cli("ps").stdout.splitlines()[0].split()[0] == "job"


def test_workers_are_listed_and_shown(up: Up) -> None:
    [worker] = json.loads(up.cli("worker", "list", "--json").stdout)
    assert worker["worker"] == "local"
    assert json.loads(up.cli("worker", "show", "local").stdout)["worker"] == "local"
    assert up.cli("worker", "show", "nobody").returncode == 1


def test_sql_is_answered_as_a_table_or_as_json(up: Up) -> None:
    sql = "SELECT job FROM jobs ORDER BY job"
    assert up.cli("query", sql).stdout.split() == ["job", *sorted(FUNCTIONS)]
    assert json.loads(up.cli("query", sql, "--json").stdout) == [
        {"job": name} for name in sorted(FUNCTIONS)
    ]
    refused = up.cli("query", "DROP TABLE jobs")
    assert (refused.returncode, refused.stdout) == (1, "")


def test_following_the_log_prints_new_events_as_they_come(up: Up) -> None:
    follow = [sys.executable, "-m", "jetfleet", "events", "--follow", "--from", "new", "--json"]
    process = subprocess.Popen(
        [*follow, "--data-dir", str(up.data_dir)], stdout=subprocess.PIPE, text=True
    )
    seen: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        seen.extend(json.loads(line)["event"]["type"] for line in process.stdout)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        # What is new begins when it has connected; so runs are made until it shows one.
        eventually(lambda: up.cli("run", "double", "--input", "1") and seen)
        eventually(lambda: "jetfleet.invocation.completed" in seen)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        reader.join(20)
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == 130
