"""Lifting events of old versions: one small function per step, applied on reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

# (type, dataversion) -> function from the document of that version to the next version's.
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
UPCASTERS: dict[tuple[str, int], Upcaster] = {}


def upcaster(event_type: str, from_version: int) -> Callable[[Upcaster], Upcaster]:
    """Register how a document of ``from_version`` becomes one of ``from_version + 1``."""

    def register(function: Upcaster) -> Upcaster:
        UPCASTERS[event_type, from_version] = function
        return function

    return register


@upcaster("jetfleet.invocation.queued", 0)
def _queued_0_to_1(document: dict[str, Any]) -> dict[str, Any]:
    """Version 0 gave the deadline as ``deadline`` and had no priority class or origin."""
    data = dict(document["data"])
    data["expires_at"] = data.pop("deadline")
    data.setdefault("origin", "-")
    return {**document, "data": data}


def lift(body: bytes | str) -> dict[str, Any] | None:
    """The document with its upcasters applied; None when there is none to apply."""
    try:
        document = from_json(body)
        key = (document["type"], document.get("dataversion", 1))
        if key not in UPCASTERS:
            return None
        while key in UPCASTERS:
            document = {**UPCASTERS[key](document), "dataversion": key[1] + 1}
            key = (key[0], key[1] + 1)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(document)
