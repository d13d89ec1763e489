"""The broker is killed (-9) and started again: under load, and while nothing happens."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from story import all_ended

from jetfleet import subjects
from jetfleet.client import Client, Handle
from jetfleet.connection import Connection, Stored
from jetfleet.events import InvocationCompleted
from stack import Gateway, Stack, accept, open_job, stack
from waiting import WITHIN_S, until

SUBMITS = 1_000
OVER_HTTP = 200
CALLERS = 64


@dataclass
class Burst:
    """Many submits by many callers at once; what was answered, by way."""

    handles: list[Handle] = field(default_factory=list)
    over_http: list[str] = field(default_factory=list)
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CALLERS))

    @property
    def answered(self) -> int:
        return len(self.handles) + len(self.over_http)

    async def run(self, client: Client, gateway: Gateway) -> None:
        """All of them accepted in the end: a refused one is made again."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(SUBMITS):
                one = self._http if number % (SUBMITS // OVER_HTTP) == 0 else self._client
                tasks.create_task(one(client, gateway, number))

    async def _client(self, client: Client, _: Gateway, number: int) -> None:
        async with self._room:
            self.handles.append(await accept(client, lambda: client.submit("job", number)))

    async def _http(self, _: Client, gateway: Gateway, number: int) -> None:
        async def taken() -> httpx.Response | None:
            answer = await gateway.run("job", number)
            if answer.status_code == 503:
                assert answer.headers["retry-after"]
                return None
            return answer

        async with self._room:
            answer = await until(taken, "the gateway accepts again")
        assert answer.status_code == 202, answer.text
        self.over_http.append(answer.json()["id"])


async def restart(fleet: Stack) -> float:
    """SIGKILL and start again; seconds it was away."""
    began = time.monotonic()
    fleet.broker.kill()
    await fleet.broker.start()
    return time.monotonic() - began


@pytest.mark.anyio
async def test_every_answered_submit_of_a_burst_survives_a_killed_broker(tmp_path: Path) -> None:
    burst = Burst()
    async with stack(tmp_path / "stack") as fleet:
        client, gateway = await fleet.client(), await fleet.gateway()
        await gateway.ready()
        await open_job(client, "job", "faulty.py:echo", concurrency=32)
        running = asyncio.create_task(burst.run(client, gateway))
        await until(lambda: burst.answered > SUBMITS // 4, "a quarter is answered")
        await restart(fleet)
        assert not running.done(), "the burst was over before the broker was killed"
        await running
        accepted = [handle.invocation for handle in burst.handles] + burst.over_http
        story = await all_ended(client, accepted)
        # Whoever waits hears of it too, whenever the outcome came.
        outcomes = await asyncio.gather(*(h.outcome(wait_s=WITHIN_S) for h in burst.handles))
        shown = await gateway.http.get(f"/v1/invocations/{burst.over_http[-1]}")
        # Nothing that was refused, or never answered, is left without an end.
        await all_ended(client, story.queued)
    assert len(set(accepted)) == SUBMITS
    assert all(isinstance(story.counting(each), InvocationCompleted) for each in accepted)
    assert [story.counting(h.invocation).id for h in burst.handles] == [o.id for o in outcomes]
    assert shown.json()["state"] == "completed"


@pytest.mark.anyio
async def test_a_broker_killed_while_idle_and_in_a_task_costs_nothing(tmp_path: Path) -> None:
    release = tmp_path / "release"
    async with stack(tmp_path / "stack") as fleet:
        client = await fleet.client()
        await open_job(client, "job", "faulty.py:echo")
        await open_job(client, "slow", "faulty.py:until_file")
        assert await client.run("job", 1, wait_s=WITHIN_S) == 1
        await restart(fleet)
        began = time.monotonic()
        again = await accept(client, lambda: client.run("job", 2, wait_s=WITHIN_S))
        took = time.monotonic() - began
        handle = await client.submit("slow", str(release))
        await until((tmp_path / "release.begun").exists, "the task runs")
        await restart(fleet)
        release.touch()
        outcome = await handle.outcome(wait_s=WITHIN_S)
        await all_ended(client, [handle.invocation])
    assert again == 2
    assert took < 10
    assert isinstance(outcome, InvocationCompleted)
    assert (outcome.data.output, outcome.data.attempt) == ("released", 1)


@pytest.mark.anyio
async def test_what_a_crash_kept_out_of_its_queue_is_put_back_however_young(
    tmp_path: Path,
) -> None:
    async with stack(tmp_path / "stack") as fleet:
        client = await fleet.client()
        spec = await open_job(
            client, "job", "faulty.py:echo", ready=False, assignment="manual", workers=("nobody",)
        )
        handle = await client.submit("job", 1)
        # The crash cannot be timed to the microsecond, so its damage is done by hand.
        queue = subjects.queue_stream(subjects.shard_of("job", client.settings.shards))
        conductor = await Connection.open(
            fleet.broker.url,
            fleet.settings.credentials_of("conductor"),
            user="conductor",
            name="damage",
        )

        async def copied() -> int:
            state = (await conductor.api(f"STREAM.INFO.{queue}"))["state"]
            return int(state["last_seq"]) if state["messages"] else 0

        seq = await until(copied, "the queue has its copy")
        await conductor.api(f"STREAM.MSG.DELETE.{queue}", {"seq": seq, "no_erase": True})
        await conductor.close()
        await restart(fleet)
        await accept(
            client,
            lambda: client.apply_job(spec.model_copy(update={"assignment": "auto", "workers": ()})),
        )
        assert await handle.output(wait_s=WITHIN_S) == 1
        story = await all_ended(client, [handle.invocation])
    assert len(story.outcomes[handle.invocation]) == 1


@pytest.mark.anyio
async def test_an_outcome_is_heard_that_came_before_the_submit_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker dies with the acknowledgement, and the agent is back before the caller is."""
    async with stack(tmp_path / "stack") as fleet:
        client, other = await fleet.client(), await fleet.client()
        await open_job(other, "job", "faulty.py:echo")
        store = client.connection.store  # slots: an instance cannot be patched, its class can
        (hearing,) = [
            s for s in client.connection.subscriptions if f".{client.origin}." in s.subject
        ]

        async def stored_twice(subject: str, body: bytes, **options: Any) -> Stored:
            await hearing.handle.unsubscribe()
            await client.connection.flush()
            await store(subject, body, **options)  # its acknowledgement is lost
            await all_ended(other, [options["msg_id"]])
            await hearing.start()
            return await store(subject, body, **options)  # sent again once connected

        monkeypatch.setattr(Connection, "store", lambda _, *a, **kw: stored_twice(*a, **kw))
        handle = await client.submit("job", 1)
        monkeypatch.undo()
        assert await handle.output(wait_s=5) == 1
