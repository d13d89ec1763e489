"""Asking the projections: one request, pages of rows in answer."""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from nats.aio.msg import Msg

from jetfleet import access, subjects
from jetfleet.connection import Connection
from jetfleet.errors import QueryFailed, QueryUnavailable

ANSWER_S = 15.0  # longest silence between two pages; the service ends a query itself after 10 s


@dataclass(frozen=True, slots=True)
class Rows:
    """A result table. ``position``: the last event of each stream that it reflects."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool = False
    position: dict[str, int] = field(default_factory=dict)

    def dicts(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


async def ask(connection: Connection, request: dict[str, Any]) -> Rows:
    """Send a query and collect its pages.

    Raises:
        QueryFailed: it was refused, or ended with an error.
        QueryUnavailable: nobody answers.
    """
    if not connection.connected:
        raise QueryUnavailable("the broker cannot be reached, so no projector can be asked")
    pages: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = f"{access.inbox(connection.user)}.q{secrets.token_hex(8)}"
    subscription = await connection.subscribe(inbox, pages.put_nowait)
    try:
        await connection.publish(
            subjects.ask_query(), json.dumps(request, default=str).encode(), reply=inbox
        )
        return await _collect(pages)
    finally:
        await subscription.stop()


async def _collect(pages: asyncio.Queue[Msg]) -> Rows:
    columns: list[str] = []
    rows: list[list[Any]] = []
    position: dict[str, int] = {}
    while True:
        try:
            async with asyncio.timeout(ANSWER_S):
                message = await pages.get()
        except TimeoutError:
            raise QueryUnavailable(f"the projector gave no answer in {ANSWER_S:.0f} s") from None
        if not message.data:
            raise QueryUnavailable
        page = json.loads(message.data)
        if "error" in page:
            error = page["error"]
            if error.get("code") == "unavailable":
                raise QueryUnavailable(error["message"])
            raise QueryFailed(error["message"])
        columns = columns or page.get("columns", [])
        position = position or page.get("position", {})
        rows += page["rows"]
        if not page.get("more"):
            return Rows(columns, rows, page.get("truncated", False), position)
