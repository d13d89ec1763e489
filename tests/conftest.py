"""Fixtures shared by all tests: a real broker per test, on free ports."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from jetfleet.server import Broker
from jetfleet.settings import Settings

if TYPE_CHECKING:  # fixtures import what they start, so that a test needs no more than it uses
    from jetfleet.client import Client
    from jetfleet.connection import Connection
    from jetfleet_projections.conductor import Conductor
    from jetfleet_projections.service import Service
    from jetfleet_projections.warehouse import Warehouse


# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Integration tests run on asyncio; mark them ``@pytest.mark.anyio``.

    Of the session, so that fixtures of a module may share a stack.
    """
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI everything that a test needs is there, so a skip is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be: {report.longrepr}"
    return report


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def new_broker(data_dir: Path) -> Broker:
    client, websocket, monitor = free_ports(3)
    return Broker(data_dir, port=client, websocket_port=websocket, monitor_port=monitor)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    """A running nats-server with its own store, accounts and streams."""
    from jetfleet.setup import ensure_streams

    running = new_broker(tmp_path / "broker")
    await running.start()
    try:
        await ensure_streams(settings_for(running))
        yield running
    finally:
        await running.stop()


def settings_for(broker: Broker, **overrides: object) -> Settings:
    """Settings that point at this broker."""
    values: dict[str, object] = {"nats_url": broker.url, "data_dir": broker.data_dir, **overrides}
    return Settings(**values)  # type: ignore[arg-type]  # pydantic validates them


@pytest.fixture
def settings(broker: Broker) -> Iterator[Settings]:
    yield settings_for(broker)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    """A client of the broker, as an operator."""
    from jetfleet.client import Client

    async with await Client.connect(settings) as connected:
        yield connected


@pytest.fixture
async def conductor(settings: Settings) -> AsyncIterator[Conductor]:
    """Somebody who places, in the test's own loop."""
    from inprocess import conducting

    async with conducting(settings) as running:
        yield running


@pytest.fixture
async def fleet(conductor: Conductor, settings: Settings) -> AsyncIterator[None]:
    """Somebody who places, and a worker ``w1``."""
    from inprocess import working

    async with working(settings):
        yield


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    """A projector that answers queries."""
    from inprocess import answering

    async with answering(settings) as running:
        yield running


@pytest.fixture
async def put(broker: Broker) -> AsyncIterator[Connection]:
    """A connection that may write anything into the log."""
    from projections_made import writer

    connection = await writer(broker)
    yield connection
    await connection.close()


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    """An empty one."""
    from jetfleet_projections.warehouse import Warehouse

    opened = Warehouse.open(tmp_path / "warehouse.duckdb")
    yield opened
    opened.close()
