"""How fast a projector that starts on old events catches up: the real process on a real stream.

``python tests/benchmarks/catchup.py [EVENTS]`` fills a log of its own with invocations (queued,
started, outcome), starts ``jetfleet projector`` beside it and watches its position.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import uvloop

from jetfleet import access, jwt, subjects
from jetfleet.clock import new_id, utc_now
from jetfleet.connection import Connection
from jetfleet.errors import QueryUnavailable
from jetfleet.events import (
    Failure,
    InvocationCompleted,
    InvocationFailed,
    InvocationQueued,
    InvocationStarted,
    compose,
    encode,
)
from jetfleet.queries import ask
from jetfleet.server import Broker
from jetfleet.settings import Settings
from jetfleet.setup import ensure_streams
from jetfleet.stamp import Stamp
from jetfleet.streams import INVOCATIONS

EVENTS = 200_000
JOBS, WORKERS, IN_FLIGHT = 8, 16, 64
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
FILL_S = CATCH_UP_S = 120.0
NOBODY = "00000000-0000-0000-0000-000000000000"
Message = tuple[str, bytes, str | None]  # subject, body, message id


def invocation(chance: random.Random, number: int, shards: int) -> Iterator[Message]:
    """The three events of one invocation, as gateway and agent write them; one in fifty fails."""
    one, job, worker = new_id(), f"job{number % JOBS}", f"worker{chance.randrange(WORKERS)}"
    shard, stamp = subjects.shard_of(job, shards), Stamp("gateway/bench")
    envelope = stamp("default", correlation=one, trace=TRACE)
    queued = {
        "invocation": one, "job": job, "input": {"prompt": "x" * chance.randrange(100, 400)},
        "origin": "bench", "stream": False, "timeout_s": 300.0,
        "expires_at": utc_now() + timedelta(hours=1), "priority_class": "normal",
    }  # fmt: skip
    yield (
        subjects.queued(shard, "default", job),
        compose(InvocationQueued, envelope, queued),
        one,
    )
    facts = {
        "invocation": one,
        "job": job,
        "worker": worker,
        "replica": f"r{number % 32}",
        "attempt": 1,
    }
    cause = {"causationid": envelope["id"]}
    yield (
        subjects.started(shard, "default", job, worker),
        compose(
            InvocationStarted, {**stamp("default", correlation=one, trace=TRACE), **cause}, facts
        ),
        None,
    )
    facts |= {"run_s": chance.expovariate(8), "chunks": 0}
    envelope = {**stamp("default", correlation=one, trace=TRACE), **cause}
    if number % 50 == 0:
        error = Failure(code="model_error", message="ValueError: no", detail="Traceback: line 1")
        failed = InvocationFailed(**envelope, data=InvocationFailed.Data(**facts, error=error))
        body = encode(failed)
    else:
        output = {"text": "y" * chance.randrange(100, 400), "tokens": chance.randrange(500)}
        body = compose(InvocationCompleted, envelope, {**facts, "output": output})
    yield subjects.done(shard, "default", job, "bench", worker), body, f"{one}.done"


def messages(events: int, shards: int) -> Iterator[Message]:
    """So many events, those of ``IN_FLIGHT`` invocations interleaved."""
    chance, number, made = random.Random(1), 0, 0
    running: list[Iterator[Message]] = []
    while made < events:
        while len(running) < IN_FLIGHT:
            running.append(invocation(chance, number, shards))
            number += 1
        lane = chance.randrange(IN_FLIGHT)
        message = next(running[lane], None)
        if message is None:
            running[lane] = invocation(chance, number, shards)
            number += 1
        else:
            yield message
            made += 1


async def fill(broker: Broker, settings: Settings, events: int) -> None:
    """Put made events into INVOCATIONS, with a right that no role has."""
    seed = jwt.new_seed("user")
    everything = access.Permissions((">",), (">",))
    token = access.user_token(
        everything, account_seed=broker.secrets.seed(access.FLEET_ACCOUNT),
        user=jwt.public_key(seed), name="fill", issued_at=int(time.time()),
    )  # fmt: skip
    credentials = broker.data_dir / "fill.creds"
    credentials.write_text(jwt.credentials_text(token, seed))
    connection = await Connection.open(settings.nats_url, credentials, user="fill", name="fill")
    for count, (subject, body, msg_id) in enumerate(messages(events, settings.shards), 1):
        headers = {"Nats-Msg-Id": msg_id} if msg_id else None
        await connection.nats.publish(subject, body, headers=headers)
        if count % 500 == 0:
            await connection.flush()
    async with asyncio.timeout(FILL_S):
        while (await stream_state(connection))["messages"] < events:
            await asyncio.sleep(0.05)
    await connection.close()


async def stream_state(connection: Connection) -> dict[str, Any]:
    state: dict[str, Any] = (await connection.api(f"STREAM.INFO.{INVOCATIONS}"))["state"]
    return state


async def measure(folder: Path, events: int = EVENTS) -> dict[str, float]:
    """Fill a log in ``folder``, let a new projector catch up, return the rates (events a second).

    ``catch_up_per_s`` counts from its first answer, ``catch_up_with_start_per_s`` from the start of
    the process, interpreter and all.
    """
    broker = Broker(folder / "broker", *free_ports())
    settings = Settings(nats_url=broker.url, data_dir=broker.data_dir)
    await broker.start()
    try:
        await ensure_streams(settings)
        began = time.perf_counter()
        await fill(broker, settings, events)
        filled = time.perf_counter() - began
        size = await _bytes(settings)
        return {
            "events": float(events),
            "bytes_per_event": size / events,
            "fill_per_s": events / filled,
            **await _catch_up(settings, events),
        }
    finally:
        await broker.stop()


async def _bytes(settings: Settings) -> int:
    connection = await Connection.open(
        settings.nats_url, settings.credentials_of("operator"), user="operator", name="size"
    )
    try:
        return int((await stream_state(connection))["bytes"])
    finally:
        await connection.close()


async def _catch_up(settings: Settings, events: int) -> dict[str, float]:
    command = [sys.executable, "-m", "jetfleet", "projector", "--data-dir", str(settings.data_dir)]
    connection = await Connection.open(
        settings.nats_url, settings.credentials_of("operator"), user="operator", name="watch"
    )
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--nats-url", settings.nats_url])
    try:
        async with asyncio.timeout(CATCH_UP_S):
            # This one is answered at once, with how far it is ...
            while (at_first := await _position(connection, "invocation")) < 0:
                await asyncio.sleep(0.02)
            first = time.perf_counter()
            # ... and this one when all is folded, or after two seconds.
            while await _position(connection, "positions") < events:
                pass
        ended = time.perf_counter()
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 20)
        await connection.close()
    return {
        "catch_up_per_s": (events - at_first) / (ended - first),
        "catch_up_with_start_per_s": events / (ended - started),
    }


async def _position(connection: Connection, query: str) -> int:
    """How far the projector is; -1 while it does not answer."""
    params = {"invocation": NOBODY} if query == "invocation" else {}
    try:
        return (await ask(connection, {"name": query, "params": params})).position[INVOCATIONS]
    except QueryUnavailable:
        return -1


def free_ports() -> list[int]:
    probes = [socket.socket() for _ in range(3)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        with closing(probe):
            pass
    return ports


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    with tempfile.TemporaryDirectory() as temporary:
        print(json.dumps(uvloop.run(measure(Path(temporary), wanted)), indent=2))
