"""``jetfleet logs``: models' output from anywhere, once or as it comes, while somebody listens."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from inprocess import background, connected, declare, working
from jetfleet import subjects
from jetfleet.client import Client
from jetfleet.events import ReplicaReady
from jetfleet.logs import Line, LogFeed
from stack import all_joined, fleet_says
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("conductor")]
WAIT = 30.0


def feed(client: Client, **whose: object) -> LogFeed:
    return LogFeed(client.connection, "default", **whose)  # type: ignore[arg-type]


async def now(client: Client, **whose: object) -> list[str]:
    """The lines that are there."""
    return [line.text async for line in feed(client, **whose).lines()]


@asynccontextmanager
async def following(client: Client, **whose: object) -> AsyncIterator[list[Line]]:
    """A list that grows."""
    heard: list[Line] = []

    async def listen() -> None:
        async with aclosing(feed(client, follow=True, **whose).lines()) as lines:
            async for line in lines:
                heard.append(line)

    async with background(listen()):
        yield heard


async def test_the_last_lines_are_printed_and_the_one_still_being_written(client, settings):
    await declare(client, "says", behaves="says")
    async with working(settings):
        await client.run("says", ["one", "two"], wait_s=WAIT)
        assert await now(client, job="says") == ["one", "two"]
        assert await now(client, worker="w1") == ["one", "two"]
        assert await now(client, worker="w2") == []


async def test_following_tells_what_was_and_each_new_line_once(client, settings, monkeypatch):
    monkeypatch.setattr("jetfleet.logs.RENEW_S", 0.1)
    await declare(client, "says", behaves="says")
    async with working(settings) as agent:
        await client.run("says", ["before"], wait_s=WAIT)
        async with following(client, job="says") as heard:
            await until(lambda: heard, "what was")
            for number in range(20):
                await client.run("says", [f"line {number}"], wait_s=WAIT)
            async with following(client, job="says") as other:
                await until(lambda: len(other) == 21, "a second reader has all too")
                await client.run("says", ["after"], wait_s=WAIT)
                await until(lambda: len(heard) == len(other) == 22, "both hear the last")
        texts = [line.text for line in heard]
        assert texts == ["before", *(f"line {number}" for number in range(20)), "after"]
        assert not any(line.missing for line in heard)
        assert {(line.worker, line.job) for line in heard} == {("w1", "says")}
        assert agent.connection.denied == []


async def test_lines_of_all_replicas_come_and_of_those_that_begin_later(client, settings):
    async with working(settings, "w1"), working(settings, "w2"):
        await all_joined(client, "w1", "w2")
        await declare(client, "says", behaves="says", min_replicas=2, max_replicas=2)
        async with following(client, job="says") as heard:
            for name in ("w1", "w2"):
                await fleet_says(client, ReplicaReady, worker=name)

            async def both() -> bool:
                await client.run("says", ["x"], wait_s=WAIT)
                return {line.worker for line in heard} == {"w1", "w2"}

            await until(both, "lines of both")


async def test_a_restarted_model_is_followed(client, settings):
    await declare(client, "act", behaves="act", retry_limit=0)
    async with working(settings) as agent, following(client, job="act") as heard:
        await fleet_says(client, ReplicaReady, job="act")
        await until(lambda: any(f.tail for f in agent.logs.feeds.values()), "it is followed")
        await (await client.submit("act", "os._exit")).outcome(WAIT)
        await until(lambda: "last words" in [line.text for line in heard], "the first's words")
        await (await client.submit("act", "os._exit")).outcome(WAIT)
        await until(lambda: [li.text for li in heard].count("last words") == 2, "the second's")


async def test_a_flood_is_bounded_and_says_what_is_left_out(client, settings):
    await declare(client, "says", behaves="says")
    async with working(settings), following(client, job="says") as heard:
        await client.run("says", ["first"], wait_s=WAIT)
        await until(lambda: heard, "it is followed")
        await client.run("says", [f"{n} " + "x" * 1000 for n in range(5000)], wait_s=WAIT)
        await client.run("says", ["last"], wait_s=WAIT)
        await until(lambda: heard[-1].text == "last", "it is caught up with")
        assert sum(line.missing for line in heard) == 5002 - len(heard) > 0
        assert [line.number for line in heard] == sorted({line.number for line in heard})


async def test_nothing_is_sent_when_nobody_listens(client, settings):
    await declare(client, "says", behaves="says")
    async with working(settings) as agent, connected(settings) as listener:
        heard = []
        any_ = subjects.ANY
        await listener.subscribe(subjects.log(any_, any_, any_, any_), heard.append)
        await client.run("says", ["one"], wait_s=WAIT)
        ask = json.dumps({"logs": {"tenant": "default", "job": "says", "for_s": 0.3}}).encode()
        await client.connection.publish(subjects.command("w1"), ask)
        await until(lambda: heard, "it is asked")
        await until(lambda: not agent.logs.feeds, "the lease ends")
        (replica,) = agent.replicas.values()
        assert replica.instance is not None
        assert replica.instance.output.listeners == []
        heard.clear()
        await client.run("says", ["two"], wait_s=WAIT)
        await agent.jobs["default", "says"].link.connection.flush()  # no feed is left to send later
        await listener.flush()
        assert (heard, agent.logs.feeds) == ([], {})


@pytest.mark.parametrize("request_", [{}, {"for_s": "x"}, {"tenant": 1, "for_s": -5}, {"job": []}])
async def test_a_damaged_request_disturbs_nobody(client, settings, request_):
    await declare(client, "says", behaves="says")
    async with working(settings):
        nudge = json.dumps({"logs": request_}).encode()
        await client.connection.publish(subjects.command("w1"), nudge)
        assert await client.run("says", [], wait_s=WAIT) is None


async def test_the_command_prints_lines_json_and_what_is_wrong(client, settings):
    async def cli(*arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "jetfleet", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "JETFLEET_NATS_URL": settings.nats_url,
                 "JETFLEET_DATA_DIR": str(settings.data_dir)},
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    await declare(client, "says", behaves="says")
    status, out, err = await cli("logs", "says")
    assert (status, out) == (0, "")
    assert "nothing of says runs now" in err
    async with working(settings):
        await client.run("says", ["one", "two"], wait_s=WAIT)
        assert await cli("logs", "says") == (0, "one\ntwo\n", "")
        assert await cli("logs", "w1") == (0, "one\ntwo\n", "")
        status, out, _ = await cli("logs", "says", "--json")
        told = [json.loads(line) for line in out.splitlines()]
        assert [(line["worker"], line["job"], line["text"]) for line in told] == [
            ("w1", "says", "one"), ("w1", "says", "two"),
        ]  # fmt: skip
    status, _, err = await cli("logs", "nobody")
    assert status == 1
    assert "no job or worker 'nobody'" in err
    status, _, err = await cli("logs", "--worker", "says", "--json")
    assert json.loads(err)["error"]["code"] == "worker_not_found"


async def test_a_worker_may_not_speak_in_the_logs_of_another(client, settings):
    await declare(client, "says", behaves="says")
    async with working(settings) as agent:
        await fleet_says(client, ReplicaReady, job="says")
        link = agent.jobs["default", "says"].link.connection
        for subject in (
            subjects.log("default", "says", "w2", "r"),
            subjects.log("default", "other", "w1", "r"),
        ):
            link.send(subject, b"{}")
        await link.flush()
        await until(lambda: len(link.denied) == 2, "both are refused")
