"""W3C trace context: the request's ``traceparent``, or a new one."""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping
from typing import Any

from jetfleet_gateway.problems import TRACE_KEY

# https://www.w3.org/TR/trace-context/#traceparent-header ; ids of zeros only are invalid.
_VALID = re.compile(r"^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")


def trace_of(scope: MutableMapping[str, Any], header: str) -> str:
    """The trace this request belongs to, remembered in its scope for error answers.

    A header that is no valid traceparent (an empty one too) is ignored, as the standard asks.
    """
    if _VALID.match(header):
        trace = header
    else:
        random = secrets.token_hex(24)
        trace = f"00-{random[:32]}-{random[32:]}-01"
    scope[TRACE_KEY] = trace
    return trace
