"""The floors that jetfleet is measured against, each as lean as its kind allows.

* HTTP floor: a bare Starlette echo on uvicorn (uvloop, httptools), one process.
* Log floor: raw nats-py on JetStream: publish, pull, publish the result, receive it. The worker is
  a process of its own, uses nats-py's pull API (``fetch`` for its free slots) and gives every
  message a task.
* Raw floor: the same with the requests to the pull API written by hand, kept outstanding and topped
  up, as jetfleet's agent does it: the fastest way known to us. Reported beside the log floor.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys

import uvloop
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

STREAM, CONSUMER = "FLOOR", "floor"
WORK, RESULT = "floor.work", "floor.done"
SLOTS = 128  # above the callers of every measurement, for the floor as for us
SECOND = 1_000_000_000


async def make_stream(nats: Nats) -> None:
    """One stream for work and results, one durable consumer, as a plain user would make them."""
    jetstream = nats.jetstream()
    await jetstream.add_stream(name=STREAM, subjects=["floor.>"], duplicate_window=600)
    config = {
        "durable_name": CONSUMER,
        "ack_policy": "explicit",
        "filter_subject": WORK,
        "max_ack_pending": 20_000,
        "max_waiting": 20_000,
        "ack_wait": 30 * SECOND,
    }
    reply = await nats.request(
        f"$JS.API.CONSUMER.CREATE.{STREAM}.{CONSUMER}.{WORK}",
        json.dumps({"stream_name": STREAM, "config": config, "action": "create"}).encode(),
        timeout=5,
    )
    answer = json.loads(reply.data)
    if "error" in answer:
        raise RuntimeError(answer["error"])


class Worker:
    """What both workers do with a message: store the outcome, then acknowledge."""

    def __init__(self, nats: Nats) -> None:
        self.nats = nats
        self.jetstream = nats.jetstream()
        self.running = 0
        self.background: set[asyncio.Task[None]] = set()
        self.freed = asyncio.Event()

    def begin(self, message: Msg) -> None:
        self.running += 1
        task = asyncio.create_task(self.echo(message))
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def echo(self, message: Msg) -> None:
        self.running -= 1
        self.freed.set()
        headers = {"Nats-Msg-Id": (message.headers or {})["Nats-Msg-Id"] + ".done"}
        await self.jetstream.publish(RESULT, message.data, headers=headers)
        await self.nats.publish(message.reply, b"+ACK")


async def fetch(worker: Worker) -> None:
    """The log floor's way: nats-py's own pull API."""
    subscription = await worker.jetstream.pull_subscribe_bind(CONSUMER, STREAM)
    print("READY", flush=True)
    while True:
        if worker.running >= SLOTS:
            worker.freed.clear()
            await worker.freed.wait()
        try:
            messages = await subscription.fetch(SLOTS - worker.running, timeout=30)
        except TimeoutError:
            continue
        for message in messages:
            worker.begin(message)


async def topped_up(worker: Worker) -> None:
    """The raw floor's way: one inbox, requests outstanding for the free slots."""
    inbox = f"_INBOX.{secrets.token_hex(8)}"
    outstanding = 0

    async def ask() -> None:
        nonlocal outstanding
        missing = SLOTS - worker.running - outstanding
        if missing > 0 and missing >= outstanding:
            outstanding += missing
            body = b'{"batch":%d,"expires":%d}' % (missing, 30 * SECOND)
            await worker.nats.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}", body, inbox)

    async def take(message: Msg) -> None:
        nonlocal outstanding
        if not message.reply:
            outstanding = 0
        else:
            outstanding -= 1
            worker.begin(message)
        await ask()

    await worker.nats.subscribe(inbox, cb=take)
    await ask()
    print("READY", flush=True)
    await asyncio.Event().wait()


async def work(url: str, way: str) -> None:
    """A floor's worker process."""
    nats = Nats()
    await nats.connect(url)
    await {"fetch": fetch, "raw": topped_up}[way](Worker(nats))


def http_floor(port: int) -> None:
    """POST / echoes its JSON body."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def echo(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", http="httptools",
                access_log=False, log_level="warning")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "work":
        uvloop.run(work(sys.argv[2], sys.argv[3]))
    else:
        http_floor(int(sys.argv[2]))
