"""What the conductor makes anew for a broker that has lost what it held in memory."""

from __future__ import annotations

from typing import Any

import pytest

from inprocess import conducting, declare, working
from jetfleet import subjects
from jetfleet.connection import Connection
from jetfleet.errors import ApiError, Unavailable
from jetfleet.events import ReplicaAssigned
from jetfleet.streams import job_consumer
from jetfleet.telemetry import last_heartbeat
from stack import fleet_says
from waiting import until

pytestmark = pytest.mark.anyio


async def test_a_restarted_broker_gets_its_consumers_back(broker, client, settings):
    job = await declare(client)
    config = job_consumer("default", "echo", job, subjects.shard_of("echo", settings.shards))
    verb = f"Q{subjects.shard_of('echo', settings.shards)}.{config['name']}"

    async def there(connection: Connection) -> bool:
        try:
            info = await connection.api(f"CONSUMER.INFO.{verb}")
        except ApiError:
            return False
        return bool(info["config"]["filter_subject"] == config["filter_subject"])

    async with conducting(settings) as conductor, working(settings):
        await fleet_says(client, ReplicaAssigned, job="echo")
        await until(lambda: there(conductor.connection), "the job has its consumer")
        broker.kill()
        await broker.start()
        await until(lambda: conductor.connection.connected, "connected again")
        await until(lambda: _again(there, conductor.connection), "it has its consumer again")
        info = await conductor.connection.api(
            f"CONSUMER.INFO.FLEET.{subjects.worker_consumer('w1')}"
        )
        assert info["config"]["opt_start_seq"] == conductor.fleet.workers["w1"].joined_seq


async def test_a_restarted_broker_keeps_heartbeats_again(broker, client, settings):
    async with conducting(settings) as conductor, working(settings):
        broker.kill()
        await broker.start()
        await until(lambda: client.connected and conductor.connection.connected, "all are back")
        beat = await until(lambda: last_heartbeat(client.connection, "w1"), "a heartbeat is kept")
        assert beat.heartbeat.data.worker == "w1"


async def _again(there: Any, connection: Connection) -> bool:
    try:
        return bool(await there(connection))
    except Unavailable:
        return False  # JetStream is not up yet
