"""Sockets inside a container's network namespace, for models that have no network at all.

A socket belongs to the namespace it was made in, for ever. So a throwaway thread enters the
container's namespace, makes the socket, and ends; the socket then reaches the container's loopback
from here, although no route leads there. Needs CAP_SYS_ADMIN (root). The namespace is named by a
path of the engine (``SandboxKey``), not by a process id, which could be somebody else's by now.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def socket_in(namespace: str, family: int = socket.AF_INET) -> socket.socket:
    """A stream socket that belongs to this namespace.

    Raises:
        OSError: the namespace is gone (the container ended), or may not be entered.
    """
    made: list[socket.socket | OSError] = []

    def make() -> None:
        try:
            handle = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(handle, CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), namespace)
                made.append(socket.socket(family, socket.SOCK_STREAM))
            finally:
                os.close(handle)
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def factory(namespace: str) -> Callable[[Any], socket.socket]:
    """For aiohttp's ``TCPConnector(socket_factory=...)``."""

    def make(address: tuple[Any, ...]) -> socket.socket:
        made = socket_in(namespace, address[0])
        made.setblocking(False)
        return made

    return make


def may_enter() -> bool:
    """Whether this process may enter namespaces: it is root, with the right to."""
    if os.geteuid() != 0:
        return False
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> 21 & 1)  # CAP_SYS_ADMIN
    return False
