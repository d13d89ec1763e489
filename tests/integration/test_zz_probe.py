from __future__ import annotations
import asyncio, time
import pytest
from inprocess import conducting, declare, queue_holds, working
from jetfleet import subjects
pytestmark = pytest.mark.anyio

async def test_probe(client, settings):
    await declare(client, ack_wait_s=60, concurrency=4)
    async with working(settings) as agent:
        async with conducting(settings) as c:
            assert await client.run("echo", 0, wait_s=20) == 0
            (job,) = agent.jobs.values()
            shard = subjects.shard_of("echo", settings.shards)
            verb = f"CONSUMER.INFO.{subjects.queue_stream(shard)}.{subjects.job_consumer('default','echo','normal')}"
            async def info(what):
                i = await c.connection.api(verb)
                print(what, {k: i[k] for k in ("num_pending","num_ack_pending","num_waiting","num_redelivered")}, flush=True)
            await info("before")
            await job._pull.withdraw()
            await info("withdrawn")
            handles = [await client.submit("echo", n) for n in range(3)]
            for n in range(6):
                await asyncio.sleep(0.5)
                await info(f"after {n}")
