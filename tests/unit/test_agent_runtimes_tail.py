"""The bounded tail of a process's output, and exit statuses in words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.runtimes import describe_exit
from jetfleet_agent.runtimes.tail import MAX_LINE_BYTES, MAX_LINES, Tail


def tail_of(*pieces: bytes) -> tuple[str, ...]:
    tail = Tail()
    for piece in pieces:
        tail.feed(piece)
    return tail.lines()


def test_lines_are_put_together_from_pieces() -> None:
    assert tail_of(b"one\nt", b"w", b"o\n\nfo") == ("one", "two", "", "fo")
    assert tail_of() == ()
    assert tail_of(b"\n") == ("",)


def test_only_the_last_lines_are_kept() -> None:
    numbers = [str(n) for n in range(1000)]
    text = "\n".join(numbers).encode()
    assert tail_of(text) == tuple(numbers[-MAX_LINES:])
    assert tail_of(text + b"\n") == tuple(numbers[-MAX_LINES:])
    assert tail_of(*(f"{n}\n".encode() for n in numbers)) == tuple(numbers[-MAX_LINES:])


def test_long_line_is_cut_and_says_how_long_it_was() -> None:
    (line,) = tail_of(b"x" * MAX_LINE_BYTES)
    assert line == "x" * MAX_LINE_BYTES
    (line,) = tail_of(*[b"x" * 1000] * 10)
    assert line == "x" * MAX_LINE_BYTES + " ... (10000 bytes)"
    assert tail_of(b"y" * 5000 + b"\nz")[1] == "z"


def test_progress_bar_is_its_last_state() -> None:
    assert tail_of(b"10%\r50%\r100%\r\ndone\r\n") == ("100%", "done")


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert tail_of(b"\xff\x00a\n") == ("\ufffd\x00a",)


@given(st.lists(st.text("ab\n", max_size=200), max_size=20))
def test_how_output_is_cut_into_pieces_makes_no_difference(pieces: list[str]) -> None:
    whole = "".join(pieces)
    lines = whole.split("\n")
    expected = lines if lines[-1] else lines[:-1]
    assert tail_of(*(p.encode() for p in pieces)) == tuple(expected[-MAX_LINES:])


@given(st.lists(st.text("ab\n", max_size=200), max_size=20), st.integers(0, 20))
def test_who_listens_hears_every_line_that_ends_with_its_number(
    pieces: list[str], begins: int
) -> None:
    tail, heard = Tail(), []
    for number, piece in enumerate(pieces):
        if number == begins:
            before = tail.ended
            tail.listeners.append(lambda *line: heard.append(line))
        tail.feed(piece.encode())
    ended = "".join(pieces).split("\n")[:-1]
    assert tail.ended == len(ended)
    if begins < len(pieces):
        assert heard == list(enumerate(ended, 1))[before:]


def test_the_line_that_is_still_written_is_told_apart() -> None:
    tail = Tail()
    tail.feed(b"one\ntw")
    assert (tail.whole_lines(), tail.unended()) == (("one",), "tw")
    tail.feed(b"o\n")
    assert (tail.whole_lines(), tail.unended()) == (("one", "two"), None)


def test_a_line_that_was_begun_does_not_run_into_one_much_later() -> None:
    lines = [str(n) for n in range(MAX_LINES + 1)]
    assert tail_of(b"begun", "\n".join(["", *lines]).encode()) == tuple(lines[-MAX_LINES:])


def test_exit_status_is_put_into_words() -> None:
    assert describe_exit(3) == "exited with status 3"
    assert describe_exit(-11) == "was killed by SIGSEGV"
    assert describe_exit(-40) == "was killed by signal 40"
