"""Answers questions about the projections: ``jf.ask.query``, request and reply over NATS.

A request is ``{"name": ..., "params": {...}}`` (a named query of ``queries.sql``) or
``{"sql": ...}`` (a SELECT of a user); the answer is one document or more, see ``pages``. Whoever
asks sees everything that was stored before the question, as long as folding it does not take too
long; ``position`` says how far the answer goes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import duckdb
from nats.aio.msg import Msg

from jetfleet import access, subjects
from jetfleet.connection import Connection, Subscription
from jetfleet.errors import BrokerUnavailable
from jetfleet_projections import statements
from jetfleet_projections.pages import failure, pages
from jetfleet_projections.projector import Projector
from jetfleet_projections.sandboxes import Sandbox

logger = logging.getLogger("jetfleet.projections.service")

QUEUE = "projector"  # where several projectors run, one of them answers
THREADS = 2
DEADLINE_S = 10.0
MOST_ROWS = 10_000
MOST_ASKED = 256  # at once; more are turned away
FRESH_S = 2.0  # longest wait for what was stored before a named query
FRESH_SQL_S = 5.0  # and before SQL
REPLIES = access.inbox("")  # what every reply subject begins with


class Rejected(ValueError):
    """The request is malformed; the message says how."""


@dataclass(slots=True, eq=False)
class Service:
    """See the module; ``start``, then ``stop``."""

    connection: Connection
    projector: Projector
    sandbox: Sandbox
    _threads: ThreadPoolExecutor = field(init=False)
    _subscription: Subscription | None = None
    _answering: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "query")

    async def start(self) -> None:
        await self.sandbox.start()
        self._subscription = await self.connection.subscribe(
            subjects.ask_query(), self._on_request, queue=QUEUE
        )

    async def stop(self) -> None:
        """Answer what was asked, within reason, and end."""
        if self._subscription is not None:
            await self._subscription.stop()
        if self._answering:
            _, late = await asyncio.wait(self._answering, timeout=2)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.sandbox.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _on_request(self, message: Msg) -> None:
        # The reply is ours to choose a subject for only among inboxes: a question must not be a way
        # to publish elsewhere in our name.
        if not message.reply.startswith(REPLIES):
            logger.warning("a question with the reply subject %r is not answered", message.reply)
            return
        task = asyncio.get_running_loop().create_task(self._answer(message.reply, message.data))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, reply: str, body: bytes) -> None:
        try:
            if len(self._answering) > MOST_ASKED:
                answer = [failure("unavailable", "too many questions at once; try again later")]
            else:
                answer = await self.ask(json.loads(body))
        except ValueError as error:  # Rejected and RowTooLarge among them
            answer = [failure("query_failed", str(error))]
        except Exception:
            logger.exception("a question could not be answered")
            answer = [failure("unavailable", "the projector failed to answer; its log says why")]
        try:
            for page in answer:
                await self.connection.publish(reply, page)
                if len(answer) > 1:
                    await self.connection.flush()  # the connection buffers 2 MB
        except BrokerUnavailable as error:
            logger.info("an answer is lost: %s", error)

    async def ask(self, request: Any) -> list[bytes]:
        """The pages that answer a request.

        Raises:
            Rejected: it is malformed, or names no query.
        """
        if not isinstance(request, dict) or not {"name", "sql"} & set(request):
            raise Rejected('a question is {"name": ..., "params": {...}} or {"sql": ...}')
        if "sql" in request:
            if not isinstance(request["sql"], str):
                raise Rejected("sql must be text")
            await self.projector.catch_up(FRESH_SQL_S)
            return await self.sandbox.run(request["sql"])
        query = statements.load("queries.sql").get(str(request["name"]))
        if query is None:
            known = ", ".join(sorted(statements.load("queries.sql")))
            raise Rejected(f"there is no query {request['name']!r}; there are {known}")
        values = bind(query, request.get("params") or {})
        if query.notes.get("fresh") != "no":
            await self.projector.catch_up(FRESH_S)
        return await self._named(query, values)

    async def _named(self, query: statements.Statement, values: dict[str, Any]) -> list[bytes]:
        position = self.projector.position  # the rows may be of a moment later, never earlier
        cursor = self.projector.warehouse.cursor()
        work = asyncio.get_running_loop().run_in_executor(
            self._threads, _run, cursor, query.sql, values, position
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await work  # what no thread has begun by then is not begun
        except TimeoutError:
            cursor.interrupt()
            return [failure("query_failed", f"{query.name} was stopped after {DEADLINE_S:g} s")]


def _run(
    cursor: duckdb.DuckDBPyConnection, sql: str, values: dict[str, Any], position: dict[str, int]
) -> list[bytes]:
    try:
        result = cursor.execute(sql, values)
        described = result.description
        rows = result.fetchall()
    except duckdb.Error as error:
        return [failure("query_failed", str(error))]
    finally:
        cursor.close()
    return list(
        pages(
            [column[0] for column in described],
            [str(column[1]) for column in described],
            rows,
            most=MOST_ROWS,
            position=position,
        )
    )


def bind(query: statements.Statement, given: Any) -> dict[str, Any]:
    """The values of a query's parameters; None and defaults for those not given.

    Raises:
        Rejected: one is unknown, missing, or not of its type.
    """
    if not isinstance(given, dict):
        raise Rejected("params must be an object")
    known = {parameter.name for parameter in query.parameters}
    if unknown := set(given) - known:
        raise Rejected(
            f"{query.name} takes no {', '.join(sorted(unknown))}; "
            f"it takes {', '.join(sorted(known)) or 'nothing'}"
        )
    values = {}
    for parameter in query.parameters:
        value = given.get(parameter.name)
        if value is None:
            if parameter.required:
                raise Rejected(f"{query.name} needs {parameter.name}")
            value = parameter.default
        elif not _IS[parameter.type](value):
            raise Rejected(f"{parameter.name} must be {_KINDS[parameter.type]}, got {value!r}")
        if parameter.name == "limit":
            value = max(0, min(int(value or 0), MOST_ROWS))
        values[parameter.name] = value
    return values


_KINDS = {"BIGINT": "a number", "VARCHAR": "text", "UUID": "a UUID"}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_IS: dict[str, Callable[[Any], bool]] = {
    "BIGINT": lambda value: isinstance(value, int) and abs(value) < 2**63,
    "VARCHAR": lambda value: isinstance(value, str),
    "UUID": lambda value: isinstance(value, str) and bool(_UUID.fullmatch(value)),
}
