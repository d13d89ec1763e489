"""The host process as it runs in a container: the agent comes to it, and may come again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import free_ports
from jetfleet_agent.contracts import wire
from jetfleet_agent.contracts.function_host import Channel
from jetfleet_agent.contracts.wire import FrameReader, frame
from models.serving import MODELS
from waiting import eventually

TOKEN = "secret"


class Host:
    """A host process that waits at a port."""

    def __init__(self, name: str) -> None:
        self.port = free_ports(1)[0]
        host = "jetfleet_agent.contracts.function_host"
        file = str(MODELS / "behaviours.py")
        env = os.environ | {"JETFLEET_PORT": str(self.port), "JETFLEET_TOKEN": TOKEN}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", host, file, name, "2", "1000000"], env=env
        )

    def connect(self, token: str = TOKEN) -> socket.socket:
        def tried() -> socket.socket | None:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 10)
            except ConnectionRefusedError:
                return None

        connection = eventually(tried)
        connection.sendall(token.encode())
        return connection

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["acount", "count"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    running = Host(request.param)
    yield running
    running.close()


def told(connection: socket.socket) -> tuple[int, int, Any]:
    """The next frame."""
    reader = FrameReader()
    while True:  # a byte more each time, so that nothing of the next frame is taken
        data = connection.recv(1)
        assert data, "the connection was closed"
        for kind, call, payload in reader.feed(data):
            return kind, call, json.loads(payload)


def test_the_next_agent_is_greeted_and_answered(host: Host) -> None:
    for number in range(2):
        with host.connect() as connection:
            assert told(connection) == (wire.READY, 0, {"cancellable": True})
            connection.sendall(frame(wire.CALL, number, b'{"to": 2}'))
            assert told(connection) == (wire.RESULT, number, [0, 1])


def test_who_does_not_know_the_token_is_turned_away(host: Host) -> None:
    with host.connect("guess!") as connection:
        assert connection.recv(1) == b""
    with host.connect() as connection:
        assert told(connection)[0] == wire.READY


@pytest.mark.parametrize("host", ["acount"], indirect=True)
def test_calls_of_an_agent_that_is_gone_are_stopped(host: Host, tmp_path: Path) -> None:
    """The next one makes them again: both would be more than the concurrency at once."""
    closed = tmp_path / "closed"
    value = {"to": 10**6, "pause": 0.01, "closed": str(closed)}
    with host.connect() as connection:
        told(connection)
        connection.sendall(frame(wire.CALL_STREAM, 1, json.dumps(value).encode()))
        assert told(connection) == (wire.CHUNK, 1, 0)
    eventually(closed.exists)


def test_a_reply_that_finds_nobody_never_gives_up_the_connection_that_came_meanwhile() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    channel, held = Channel(ours), []
    channel._lose = lambda: held.append(channel._sending.locked())
    channel.send(wire.RESULT, 1, b"1")
    ours.close()
    assert held == [True]
