"""Feeds of log lines: bounded messages, each line once, across restarts of a model."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from jetfleet_agent import logs
from jetfleet_agent.logs import Feed
from jetfleet_agent.runtimes.tail import MAX_LINE_BYTES, MAX_LINES, Tail


def replica(*said: bytes) -> Any:
    made = SimpleNamespace(instance=None, restarts=-1, on_instance=[])
    restarted(made)
    for piece in said:
        made.instance.output.feed(piece)
    return made


def restarted(made: Any) -> None:
    made.instance = SimpleNamespace(output=Tail())
    made.restarts += 1
    for listener in made.on_instance:
        listener()


def told(feed: Feed, room: int = 1000) -> list[tuple[int, int, list[str]]]:
    messages = [json.loads(body) for body in feed.messages(room)]
    return [(said["run"], said["first"], said["lines"]) for said in messages]


def test_what_is_kept_comes_first_and_then_what_is_new() -> None:
    model = replica(b"one\ntwo\n")
    feed = Feed(model)
    model.instance.output.feed(b"three\nfour")
    assert told(feed) == [(0, 1, ["one", "two", "three"])]
    assert told(feed) == []
    assert json.loads(feed.hello()) == {"run": 0, "first": 4, "lines": []}
    feed.unended = True
    assert json.loads(feed.hello())["unended"] == "four"


def test_a_second_reader_gets_what_is_kept_and_the_first_misses_nothing() -> None:
    model = replica()
    feed = Feed(model)
    output = b"".join(b"%d\n" % number for number in range(MAX_LINES + 10))
    model.instance.output.feed(output)
    feed.again()
    assert told(feed) == [(0, 1, output.decode().split())], "it all waits still"
    feed.again()
    ((_, first, lines),) = told(feed)
    assert (first, len(lines)) == (11, MAX_LINES)


def test_the_last_words_of_a_model_come_before_those_of_the_next() -> None:
    model = replica()
    feed = Feed(model)
    model.instance.output.feed(b"last words\n")
    restarted(model)
    model.instance.output.feed(b"hello again\n")
    assert told(feed) == [(0, 1, ["last words"]), (1, 1, ["hello again"])]


def test_messages_and_their_number_are_bounded_whatever_a_model_says() -> None:
    model = replica()
    feed = Feed(model)
    for letter in (b"\x01", b"x", "ü".encode()):
        model.instance.output.feed((letter * MAX_LINE_BYTES + b"\n") * 20)
    bodies = feed.messages(1000)
    assert max(map(len, bodies)) <= logs.MESSAGE_BYTES
    assert sum(len(json.loads(body)["lines"]) for body in bodies) == 60
    model.instance.output.feed(b"x\n" * 3000)
    assert told(feed, 100) == [(0, 60 + 2000 + 1, ["x"] * 100)], "the newest wait, and no more"


def test_a_feed_that_ended_leaves_nothing_behind() -> None:
    model = replica()
    feed = Feed(model)
    feed.end()
    assert model.on_instance == model.instance.output.listeners == []
