"""The floors that jetfleet is measured against, each as lean as its kind allows.

* HTTP floor: a bare Starlette echo on uvicorn (uvloop, httptools), one process.
* Log floor: raw nats-py on JetStream: publish, pull, publish the result, receive it. The worker is
  a process of its own and pulls as jetfleet's agent does (one outstanding raw pull kept topped up,
  a task per message), because that is the fastest way known to us.
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


async def work(url: str) -> None:
    """The floor's worker: echo what is pulled; the outcome is stored before the ack."""
    nats = Nats()
    await nats.connect(url)
    jetstream = nats.jetstream()
    inbox = f"_INBOX.{secrets.token_hex(8)}"
    outstanding = running = 0
    background: set[asyncio.Task[None]] = set()

    async def ask() -> None:
        nonlocal outstanding
        missing = SLOTS - running - outstanding
        if missing > 0 and missing >= outstanding:
            outstanding += missing
            body = b'{"batch":%d,"expires":%d}' % (missing, 30 * SECOND)
            await nats.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}", body, inbox)

    async def echo(message: Msg) -> None:
        nonlocal running
        headers = {"Nats-Msg-Id": message.headers["Nats-Msg-Id"] + ".done"}
        running -= 1
        await ask()
        await jetstream.publish(RESULT, message.data, headers=headers)
        await nats.publish(message.reply, b"+ACK")

    async def take(message: Msg) -> None:
        nonlocal outstanding, running
        if not message.reply:
            outstanding = 0
            await ask()
            return
        outstanding -= 1
        running += 1
        task = asyncio.create_task(echo(message))
        background.add(task)
        task.add_done_callback(background.discard)

    await nats.subscribe(inbox, cb=take)
    await ask()
    print("READY", flush=True)
    await asyncio.Event().wait()


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
        uvloop.run(work(sys.argv[2]))
    else:
        http_floor(int(sys.argv[2]))
