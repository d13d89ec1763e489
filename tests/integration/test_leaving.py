"""Workers that are told to leave: by a person, by a signal, by a notice that their machine ends."""

from __future__ import annotations

import asyncio
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from inprocess import connected, working
from jetfleet import subjects
from jetfleet.errors import StartupError
from jetfleet.events import (
    InvocationCompleted,
    ReplicaReady,
    WorkerDraining,
    WorkerLeft,
)
from jetfleet_agent import notices
from jetfleet_agent.replicas import Replica
from stack import all_joined, fleet_says, open_job, started
from waiting import until

pytestmark = pytest.mark.anyio
WAIT = 30.0
SLOW = "faulty.py:until_file"
LONG = {"ack_wait_s": 60, "timeout_s": 60}
PROMPTLY_S = 5.0  # less than a lease: what nobody handed back would take that


async def test_what_does_not_end_in_time_is_handed_to_another_at_once(
    client, conductor, settings, tmp_path
):
    async with working(settings, "w1") as first, working(settings, "w2"):
        await all_joined(client, "w1", "w2")
        await open_job(client, "slow", SLOW, min_replicas=2, concurrency=3, **LONG)
        handles = [await client.submit("slow", str(tmp_path / str(n))) for n in range(4)]
        ran = {(await started(client, h.invocation)).data.worker for h in handles}
        assert ran == {"w1", "w2"}
        first.leave("the test says so", 0.5)
        await fleet_says(client, WorkerLeft, worker="w1")
        for number in range(4):
            (tmp_path / str(number)).touch()
        outcomes = await asyncio.gather(*(h.outcome(PROMPTLY_S) for h in handles))
    assert all(isinstance(outcome, InvocationCompleted) for outcome in outcomes)
    assert {outcome.data.worker for outcome in outcomes} == {"w2"}
    assert max(outcome.data.attempt for outcome in outcomes) == 2


async def test_work_that_comes_while_the_only_worker_drains_loses_no_attempt(
    client, conductor, settings, tmp_path
):
    await open_job(client, "slow", SLOW, ready=False, concurrency=8, retry_limit=0, **LONG)
    async with working(settings, "w1") as first:
        running = await client.submit("slow", str(tmp_path / "a"))
        await started(client, running.invocation)
        first.leave("the test says so")
        await fleet_says(client, WorkerDraining, worker="w1")
        later = await client.submit("slow", str(tmp_path / "a"))
        await client.connection.flush()
        (tmp_path / "a").touch()
        assert isinstance(await running.outcome(WAIT), InvocationCompleted)
    async with working(settings, "w2"):
        outcome = await later.outcome(WAIT)
    assert isinstance(outcome, InvocationCompleted)
    assert outcome.data.attempt == 1


async def test_a_call_whose_model_is_being_started_again_is_handed_back_at_once(
    client, conductor, settings, monkeypatch
):
    await open_job(client, "bad", "faulty.py:misbehave", ready=False, **LONG)
    async with working(settings) as agent:
        await fleet_says(client, ReplicaReady, job="bad")
        forever = asyncio.Event()

        async def never(*_: object) -> None:
            await forever.wait()

        monkeypatch.setattr(Replica, "_start_once", never)
        await client.submit("bad", "exit")
        (job,) = agent.jobs.values()
        await until(lambda: job.waiting, "the call waits for its model")
        agent.leave("the test says so", 60)
        await fleet_says(client, WorkerLeft, worker="w1", within_s=PROMPTLY_S)


async def test_a_worker_asked_to_drain_says_so_and_leaves(client, conductor, settings):
    async with working(settings) as agent:
        await until(lambda: agent.joined_seq, "it has joined")
        async with connected(settings) as owner:
            body = json.dumps({"drain": True, "within_s": 1.5}).encode()
            await owner.publish(subjects.command("w1"), body)
            said = await fleet_says(client, WorkerDraining, worker="w1")
        await fleet_says(client, WorkerLeft, worker="w1")
    assert said.event.data.reason == "asked to"
    assert agent.drain_s == 1.5


async def test_the_first_reason_to_leave_is_the_one_that_is_told(client, conductor, settings):
    async with working(settings) as agent:
        await until(lambda: agent.joined_seq, "it has joined")
        agent.leave("first")
        agent.leave("second", 0.1)
        said = await fleet_says(client, WorkerDraining, worker="w1")
    assert said.event.data.reason == "first"
    assert agent.drain_s == 5.0


# -- notices


async def test_a_file_that_appears_is_a_notice(tmp_path):
    reasons: list[str] = []
    path = tmp_path / "notice"
    watching = asyncio.create_task(notices.watch(path, "", reasons.append))
    await asyncio.sleep(0)
    assert not reasons
    path.touch()
    async with asyncio.timeout(WAIT):
        await watching
    assert reasons == [f"spot notice: {path} is there"]


class Metadata(BaseHTTPRequestHandler):
    """A cloud's metadata service: path ``/<status>/<body>``."""

    def do_GET(self) -> None:
        _, status, body = self.path.split("/")
        if status == "noise":
            self.wfile.write(b"this is no HTTP\r\n")
            return
        self.send_response(int(status))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "notice"),
    [("404/none", False), ("500/x", False), ("200/", False), ("200/FALSE", False),
     ("noise/x", False), ("200/TRUE", True), ("200/terminate", True)],
)  # fmt: skip
def test_what_a_metadata_service_answers_is_a_notice_or_not(metadata, answer, notice):
    assert notices.answers(f"{metadata}/{answer}") is notice


async def test_a_url_that_answers_is_a_notice(metadata):
    reasons: list[str] = []
    async with asyncio.timeout(WAIT):
        await notices.watch(None, f"{metadata}/200/terminate", reasons.append)
    assert reasons == [f"spot notice: {metadata}/200/terminate answers"]


def test_silence_is_no_notice(metadata):
    gone = metadata.rsplit(":", 1)[0] + ":1"
    assert notices.answers(f"{gone}/200/x") is False


@pytest.mark.parametrize("url", ["file:///etc/passwd", "box", "ftp://x"])
def test_only_the_web_is_asked(url):
    with pytest.raises(StartupError, match="--spot-url"):
        notices.check(url)


def test_a_missing_folder_is_no_notice():
    assert asyncio.run(notices._noticed(Path("/nowhere/at/all"), "")) == ""
