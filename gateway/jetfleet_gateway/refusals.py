"""Refusals that only HTTP knows; everything else that can go wrong is in ``jetfleet.errors``."""

from __future__ import annotations

from collections.abc import Sequence

from jetfleet.errors import Conflict, InvalidRequest, JetfleetError, NotFound, Refused


class NotJson(InvalidRequest):
    """The body is not JSON."""

    code = "not_json"


class InvalidFields(InvalidRequest):
    """Fields of the request are wrong; `errors` names each of them."""

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        """``fields``: pairs of a field's name and what is wrong with it."""
        first = f"{fields[0][0]}: {fields[0][1]}"
        more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
        super().__init__(first + more, field=fields[0][0])
        self.fields = tuple(fields)


class UnsupportedMedia(Refused):
    """The body must be JSON, sent with `Content-Type: application/json`."""

    code = "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMedia):
    """The body may be compressed with gzip or deflate, and with nothing else."""

    code = "unsupported_content_encoding"


class RouteNotFound(NotFound):
    """There is nothing at this address; /docs lists what there is."""

    code = "route_not_found"


class MethodNotAllowed(Refused):
    """This address does not take this method."""

    code = "method_not_allowed"

    def __init__(self, message: str | None = None, *, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class HttpRefused(Refused):
    """The request cannot be served."""

    code = "http_refused"

    def __init__(self, status: int, message: str | None = None) -> None:
        super().__init__(message)
        self.status = status


class ForeignOrigin(Refused):
    """A web page of another site may not act here."""

    code = "foreign_origin"


class UnknownHost(Refused):
    """This gateway does not answer for that host name; see `--allow-host`."""

    code = "unknown_host"


class InvocationEnded(Conflict):
    """The invocation has ended already; nothing is left to cancel."""

    code = "invocation_ended"


class InternalError(JetfleetError):
    """Something went wrong here; it has been logged, with this request's trace."""

    code = "internal_error"
