"""What keeps web pages of other sites from acting through a browser that can reach the gateway.

There are no credentials yet, so being able to reach the gateway is the only right there is, and
every page that a person on this machine opens could send requests to loopback. Two checks, both on
headers that browsers set and pages cannot: a changing request must not come from another site, and
the host name must be ours (or a page could point its own name at 127.0.0.1).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from jetfleet_gateway.problems import problem_response
from jetfleet_gateway.refusals import ForeignOrigin, UnknownHost

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_LOCAL = frozenset({"localhost"})


class Guard:
    """ASGI middleware: refuses with 403 and 421 as the module says.

    Args:
        hosts: names it answers for besides ``localhost`` and IP addresses; None: any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self.app = app
        self.hosts = None if hosts is None else _LOCAL | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._refusal(scope)
            if refusal is not None:
                await problem_response(refusal, scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ForeignOrigin | UnknownHost | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"")
        origin, site = headers.get(b"origin", b""), headers.get(b"sec-fetch-site", b"")
        if self.hosts is not None and not self._ours(host):
            return UnknownHost()
        if (origin or site) and scope["method"] not in _SAFE and _foreign(host, origin, site):
            return ForeignOrigin()
        return None

    def _ours(self, host: bytes) -> bool:
        name = host_name(host)
        return self.hosts is None or name in self.hosts or is_address(name)


@lru_cache(maxsize=256)
def host_name(host: bytes) -> str:
    """The name in a Host header, without port and brackets; empty when it is none."""
    try:
        return urlsplit(f"//{host.decode('latin-1')}").hostname or ""
    except ValueError:
        return ""


@lru_cache(maxsize=256)
def is_address(name: str) -> bool:
    """Whether this is an IP address, which no page can point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _foreign(host: bytes, origin: bytes, site: bytes) -> bool:
    """Whether a page of another origin sends this (the rule of Go's CrossOriginProtection)."""
    if site:
        return site not in (b"same-origin", b"none")
    return urlsplit(origin.decode("latin-1")).netloc != host.decode("latin-1")
