"""The command line as a whole: how it starts, refuses, and explains what is missing."""

from __future__ import annotations

import socket
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jetfleet import cli
from jetfleet.commands.common import State, command
from jetfleet.errors import LogFull, MissingExtra

POINT = EntryPoint("gateway", "not_installed_anywhere.cli:register", cli.GROUP)


def jetfleet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jetfleet", *arguments],
        env=environment or None,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_every_command_without_importing_what_is_slow() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from jetfleet import cli\n"
        "print(CliRunner().invoke(cli.app, ['--help']).output)\n"
        "print([m for m in ('nats', 'pydantic', 'yaml', 'fastapi', 'duckdb') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    for name in (
        "up",
        "apply",
        "run",
        "events",
        "query",
        "worker",
        "gateway",
        "projector",
        "agent",
    ):
        assert f" {name} " in out
    assert out.endswith("[]\n")


def test_wrong_usage_is_status_2() -> None:
    result = jetfleet("run")
    assert result.returncode == 2
    assert "Missing argument" in result.stderr


def test_a_missing_installation_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    result = jetfleet("job", "list", "--data-dir", str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: no credentials at {tmp_path}/creds/operator.creds")
    assert "jetfleet up" in result.stderr
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = jetfleet("--debug", "job", "list", "--data-dir", str(tmp_path))
    assert "Traceback" in result.stderr


def test_a_wrong_setting_is_named() -> None:
    result = jetfleet("job", "list", JETFLEET_SHARDS="many")
    assert result.returncode == 1
    assert result.stderr.startswith("error: setting JETFLEET_SHARDS: ")


def test_a_command_whose_package_is_not_installed_names_the_extra() -> None:
    commands = cli.load(POINT)
    assert list(commands) == ["gateway"]
    app = typer.Typer(cls=cli.Group)
    app.callback()(lambda: None)
    root = typer.main.get_command(app)
    root.commands.update(commands)  # type: ignore[attr-defined]  # a callback makes it a group
    with pytest.raises(MissingExtra, match=r"`jetfleet gateway` needs .* 'jetfleet\[gateway\]'"):
        commands["gateway"].main(["--port", "1"], prog_name="gateway", standalone_mode=False)


def test_a_missing_module_names_the_extra_that_has_it() -> None:
    error = cli.missing_extra(ModuleNotFoundError(name="duckdb.typing"), "all", "this")
    assert error.extra == "projections"


def test_global_options_are_taken_before_and_after_the_command() -> None:
    app = typer.Typer()
    app.callback()(cli.options)
    seen: list[State] = []

    async def show(state: State, word: str) -> None:
        seen.append(state)

    command(app, "show")(show)
    runner = CliRunner()
    for arguments in (["--json", "show", "x"], ["show", "x", "--json"]):
        assert runner.invoke(app, arguments).exit_code == 0
    assert [state.as_json for state in seen] == [True, True]


def test_settings_take_the_broker_from_what_up_wrote_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JETFLEET_NATS_URL", raising=False)
    (tmp_path / "up.json").write_text('{"nats_url": "nats://127.0.0.1:1234"}')
    state = State(data_dir=tmp_path)
    assert state.settings().nats_url == "nats://127.0.0.1:1234"
    monkeypatch.setenv("JETFLEET_NATS_URL", "nats://elsewhere:4222")
    assert state.settings().nats_url == "nats://elsewhere:4222"
    assert State(data_dir=tmp_path, nats_url="nats://x:1").settings().nats_url == "nats://x:1"


def test_an_error_inside_a_group_of_one_is_told_as_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ExceptionGroup("tasks", [ExceptionGroup("tasks", [LogFull()])])

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"error: {LogFull()}\n"


def test_a_file_that_is_not_there_is_named_before_any_broker_is_asked(tmp_path: Path) -> None:
    done = jetfleet("--data-dir", str(tmp_path), "apply", str(tmp_path / "missing.yaml"))
    assert done.returncode == 1
    assert "missing.yaml: No such file" in done.stderr


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("/proc/x", str(tmp_path / "file")):
        done = jetfleet("--data-dir", folder, "up")
        assert done.returncode == 1
        assert f"cannot keep data in {folder}" in done.stderr
        assert "Error" not in done.stderr


def test_a_refused_up_leaves_no_folder(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for option, words in ((str(port), "is taken"), ("99999", "no port"), ("-1", "no port")):
            done = jetfleet("--data-dir", str(tmp_path / "new"), "up", "--http-port", option)
            assert done.returncode == 1
            assert words in done.stderr
            assert not (tmp_path / "new").exists()
