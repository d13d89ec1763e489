"""The measured path around FastAPI: ``POST /v1/<kind>/{name}/<verb>``, answered directly.

The same functions are routes of the application too, for its documentation and for every request
that is not plainly one of these. What is left out is what they do not use: parameter solving, exit
stacks, middleware and the routing table; together 35 us of 60 (a bare Starlette echo takes 16).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from jetfleet.errors import JetfleetError
from jetfleet_gateway.problems import problem_response, unexpected

Endpoint = Callable[[Request, str], Awaitable[Response]]


class Direct:
    """ASGI middleware: answers POST requests to these routes, and leaves all others to ``app``.

    Args:
        routes: of the shape above, their functions taking the request and the name.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[APIRoute]) -> None:
        self.app = app
        self.endpoints: dict[tuple[str, str], Endpoint] = {}
        for route in routes:
            empty, version, kind, _name, verb = route.path.split("/")
            if (empty, version) != ("", "v1"):
                raise ValueError(f"{route.path} is no /v1/<kind>/{{name}}/<verb>")
            self.endpoints[kind, verb] = route.endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            parts = scope["path"].split("/")
            if len(parts) == 5 and parts[1] == "v1" and parts[3]:
                endpoint = self.endpoints.get((parts[2], parts[4]))
                if endpoint is not None:
                    await _answer(endpoint, parts[3], scope, receive, send)
                    return
        await self.app(scope, receive, send)


async def _answer(
    endpoint: Endpoint, name: str, scope: Scope, receive: Receive, send: Send
) -> None:
    try:
        response = await endpoint(Request(scope, receive, send), name)
    except JetfleetError as error:
        response = problem_response(error, scope)
    except ClientDisconnect:
        return  # in the middle of its body; nobody reads an answer
    except Exception as error:
        await unexpected(error, scope)(scope, receive, send)
        raise  # for the server's log
    await response(scope, receive, send)
