"""``jetfleet gateway``: one process that serves HTTP."""

from __future__ import annotations

import gc
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Annotated

import typer
import uvicorn

from jetfleet.commands.common import State, command
from jetfleet.errors import StartupError
from jetfleet.settings import Settings
from jetfleet_gateway.app import create_app
from jetfleet_gateway.one_write import OneWriteProtocol

GRACE_S = 8  # less than `jetfleet up` gives before it kills
BACKLOG = 2048


def register(app: typer.Typer) -> None:
    """Add the command ``gateway``."""
    command(app, "gateway")(gateway)


def gateway(
    state: State,
    host: Annotated[str | None, typer.Option(help="Where to listen; default: loopback.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Default: 8787. 0: any free one.", min=0, max=65535)
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Answer for this host name too (on loopback).")
    ] = None,
    grace: Annotated[
        int, typer.Option(help="Seconds that open requests have when it stops.", min=0)
    ] = GRACE_S,
) -> None:
    """Serve the HTTP API, in one process; as many of them as you like may run at once.

    It starts without a broker too, and answers 503 until there is one. SIGTERM stops it.
    """
    settings = state.settings()
    logging.getLogger("jetfleet").setLevel(logging.DEBUG if state.debug else logging.INFO)
    listener = listen(
        settings.http_host if host is None else host, settings.http_port if port is None else port
    )

    def announce(url: str) -> None:
        if state.as_json:
            state.output.line({"url": url})
        else:
            state.output.text(f"jetfleet gateway: {url} (its documentation: {url}/docs)")

    serve(settings, listener, announce, hosts=allow_host or [], grace_s=grace)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        StartupError: the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise StartupError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; "
            "stop what listens there, or choose another with --port"
        ) from error
    listener.set_inheritable(False)
    return listener


def serve(
    settings: Settings,
    listener: socket.socket,
    announce: Callable[[str], None],
    *,
    hosts: list[str],
    grace_s: int,
) -> None:
    """Serve until SIGTERM or SIGINT; open requests then have ``grace_s`` seconds to finish.

    ``announce`` is called with the URL once it answers.
    """
    address, port = listener.getsockname()[:2]
    loopback = address in ("127.0.0.1", "::1")
    app = create_app(settings, hosts=hosts if loopback else None)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=OneWriteProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        proxy_headers=False,  # nothing here depends on who asks, and nobody has to be trusted
        server_header=False,
        log_config=None,
        backlog=BACKLOG,
        timeout_graceful_shutdown=grace_s,
    )
    shown = f"[{address}]" if ":" in address else address
    server = _Server(config, lambda: announce(f"http://{shown}:{port}"))
    # uvicorn hands the signal that ended it on to us: having shut down in order is success.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Calls back once it listens."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is loaded by now stays; collections need not look at it (it cuts their pauses).
        gc.collect()
        gc.freeze()
        self.on_started()


def _leave(_signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
