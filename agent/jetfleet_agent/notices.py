"""Being told that this machine will be taken away soon: a file that appears, or a URL that answers.

Clouds tell a spot machine by their metadata service, tens of seconds ahead: 404 until then, 200
with a body from then on. A file is what a script of one's own can touch.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import urllib.request
from collections.abc import Callable
from pathlib import Path

from jetfleet.errors import StartupError

logger = logging.getLogger("jetfleet.agent")
POLL_S = 1.0
ANSWER_S = 2.0
# One cloud wants this header and answers FALSE instead of 404; others do not mind.
HEADERS = {"Metadata-Flavor": "Google"}
NO = (b"", b"false", b"none")


def check(url: str) -> None:
    """Raises StartupError when this is not an http or https URL."""
    if not url.startswith(("http://", "https://")):
        raise StartupError(f"--spot-url {url!r}: it must begin with http:// or https://")


async def watch(path: Path | None, url: str, leave: Callable[[str], None]) -> None:
    """Look each second; call ``leave`` once, with the reason, when there is a notice."""
    while True:
        reason = await _noticed(path, url)
        if reason:
            logger.warning("! %s", reason)
            leave(reason)
            return
        await asyncio.sleep(POLL_S)


async def _noticed(path: Path | None, url: str) -> str:
    """What the notice is; empty: there is none."""
    if path is not None and path.exists():
        return f"spot notice: {path} is there"
    if not url:
        return ""
    found = await asyncio.to_thread(answers, url)
    return f"spot notice: {url} answers" if found else ""


def answers(url: str) -> bool:
    """Whether a URL answers 200 with a body that is not "false"; silence is no notice."""
    request = urllib.request.Request(url, headers=HEADERS)  # noqa: S310 - http(s): see check
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310 - as above
            body = answer.read(1024).strip().lower()
            return bool(answer.status == 200 and body not in NO)
    except (OSError, ValueError, http.client.HTTPException):  # what answers may not be HTTP
        return False
