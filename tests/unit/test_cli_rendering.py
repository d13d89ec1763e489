"""What the command line makes of values: inputs, chunks, timelines, log lines."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import given
from jetfleet.commands import events, up, work
from jetfleet.commands.output import Output, cell, note
from jetfleet.errors import InvalidRequest
from jetfleet.events import Event, InvocationCompleted, InvocationStarted, encode
from jetfleet.log import Record
from jetfleet.settings import Settings
from jetfleet.stamp import Stamp
from jetfleet.supervisor import Journal
from jetfleet.views import InvocationView

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
STAMP = Stamp("worker/w1")


def test_input_is_json_from_the_option_a_file_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.json").write_text('{"a": "ü"}')
    monkeypatch.setattr("sys.stdin", io.StringIO("[1, 2]"))
    assert work.read_input('"hello"') == "hello"
    assert work.read_input(f"@{tmp_path}/in.json") == {"a": "ü"}
    assert work.read_input("-") == [1, 2]


def test_text_that_is_not_json_is_refused_with_a_hint_about_quotes() -> None:
    with pytest.raises(InvalidRequest, match="text needs its quotes"):
        work.read_input("hello")


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        ("Hel", "Hel"),
        ({"choices": [{"delta": {"content": "lo"}}]}, "lo"),
        ({"choices": [{"delta": {"role": "assistant", "content": None}}]}, ""),
        ({"choices": [{"text": "completion"}]}, "completion"),
        ({"choices": []}, ""),
        ({"n": 1}, '{"n": 1}\n'),
        ([1], "[1]\n"),
        (None, "null\n"),
    ],
)
def test_chunks_are_printed_as_people_read_them(chunk: object, text: str) -> None:
    assert work.chunk_text(chunk) == text


def completed(run_s: float = 0.25) -> InvocationCompleted:
    return InvocationCompleted(
        **STAMP("default"),
        data=InvocationCompleted.Data(
            invocation="i", job="j", worker="w1", attempt=2, run_s=run_s, output={"x": 1}
        ),
    )


def test_a_timeline_says_how_long_it_waited_and_ran() -> None:
    view = InvocationView(
        "i", "default", "j", "completed", 1, "o", False, NOW,
        started_at=NOW + timedelta(seconds=1.5), finished_at=NOW + timedelta(seconds=2),
        worker="w1", attempts=2, outcome=completed(),
    )  # fmt: skip
    assert [text for _, text in work.timeline(view)] == [
        "queued",
        "started on w1 after 1.500 s, attempt 2",
        "completed in 0.250 s",
    ]
    document = json.loads(json.dumps(work.view_document(view), default=str))
    assert (document["state"], document["queued_at"]) == ("completed", str(NOW))


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("all", "all"),
        ("new", "new"),
        ("17", 17),
        ("2026-03-01T12:00:00+00:00", NOW),
        ("2026-03-01T13:00:00+01:00", NOW),
    ],
)
def test_a_position_is_all_new_a_sequence_or_a_time(text: str, position: object) -> None:
    assert events.parse_start(text) == position


def test_an_event_type_may_be_given_by_its_last_parts() -> None:
    assert events.matching_types(None) is None
    assert events.matching_types("completed") == {"jetfleet.invocation.completed"}
    assert events.matching_types("job.created") == {"jetfleet.job.created"}
    assert events.matching_types("failed") == {
        "jetfleet.invocation.failed",
        "jetfleet.replica.failed",
    }


def record_of(event: Event) -> Record:
    return Record("INVOCATIONS", 7, "jf.inv.x", NOW, encode(event), event)


def test_a_log_line_shows_the_mark_the_job_the_invocation_and_the_details() -> None:
    line = events.line(record_of(completed()))
    assert " ← invocation.completed " in line
    assert line.endswith("i worker=w1 attempt=2 run_s=0.250")


def test_a_second_attempt_is_marked_as_a_retry() -> None:
    data = InvocationStarted.Data(invocation="i", job="j", worker="w1", replica="r", attempt=2)
    assert " ↻ " in events.line(record_of(InvocationStarted(**STAMP("default"), data=data)))


def test_a_decision_shows_its_reason_and_a_scaling_what_it_changes() -> None:
    event = given.scaled("echo", 0)
    event = event.model_copy(update={"data": event.data.model_copy(update={"before": 2})})
    assert events.line(record_of(event)).endswith("before=2 desired=0 reason=the test says so")
    assigned = given.assigned("r1", "w1", given.job("echo"))
    assert events.line(record_of(assigned)).endswith("worker=w1 replica=r1 reason=the test says so")


def test_what_is_no_event_is_shown_with_the_reason() -> None:
    record = Record("FLEET", 3, "jf.fleet.w.x", NOW, b"\xff{", None, "not JSON")
    assert events.line(record).endswith("? jf.fleet.w.x: set aside: not JSON")
    assert events.document(record)["error"] == "not JSON"


def test_tables_in_a_pipe_have_one_whole_line_for_each_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = "x" * 500
    Output().table(("name", "n"), [(long, 1), ("two\nlines [bold]", None)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["name", "n"],
        [long, "1"],
        ["two⏎lines", "[bold]", "-"],
    ]


def test_an_empty_table_says_so_on_stderr_and_is_an_empty_list_in_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Output().table(("a",), [], empty="no jobs yet")
    Output(as_json=True).table(("a",), [])
    assert capsys.readouterr() == ("[]\n", "no jobs yet\n")


def test_cells_are_short() -> None:
    assert [cell(v) for v in (None, True, 1.5, 2.0, {"a": 1})] == [
        "-",
        "yes",
        "1.5",
        "2",
        '{"a": 1}',
    ]


def test_routine_lines_of_the_broker_are_hidden_and_others_shortened() -> None:
    head = "[4949] 2026/11/24 08:25:28.123456"
    assert up.broker_line(f"{head} [INF] Server is ready") is None
    assert up.broker_line(f"{head} [INF]") is None
    assert up.broker_line(f"{head} [WRN] slow consumer") == "[WRN] slow consumer"
    assert up.broker_line("nats-server: no such file") == "nats-server: no such file"


def test_free_ports_are_chosen_where_none_is_wanted() -> None:
    ports = up.Ports.choose(0, 4222, 0, 0)
    assert ports.nats == 4222
    assert len({ports.http, ports.nats, ports.ws, ports.monitor}) == 4


def test_what_a_model_says_does_not_steer_the_terminal_and_goes_whole_into_a_pipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "\x1b[2Jred\x1b[31m\ttext\x07\nsecond"
    for tty, written in ((True, "red\ttext\nsecond\n"), (False, f"{said}\n")):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda tty=tty: tty)
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", out)
        Output().text(said)
        Output().raw(said)
        note(said)
        assert out.getvalue() == written + written.removesuffix("\n") + written


def test_the_journal_goes_on_when_nobody_reads_it_any_more() -> None:
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    journal = Journal(Closed(), ["a"])
    journal.write("a", "one")
    journal.write("a", "two")
    assert journal.broken


def test_durable_means_that_the_broker_syncs_before_it_answers(tmp_path: Path) -> None:
    promises = {}
    for durable in (False, True):
        ports = up.Ports(1, 2, 3, 4)
        local = up.Local(Settings(data_dir=tmp_path), ports, 2, durable, verbose=False)
        broker = local.broker()
        promises[broker.sync_interval] = local.endpoints(pid=7).durability
        broker.prepare()
        names = [program.name for program in local.programs(broker, tmp_path / "nats.conf")]
    assert "every second" in promises["1s"]
    assert "a power cut loses nothing" in promises["always"]
    assert names == [
        "broker", "projector", "conductor", "gateway", "agent local", "agent local-2",
    ]  # fmt: skip
    assert (tmp_path / "creds" / "worker-local-2.creds").exists()
