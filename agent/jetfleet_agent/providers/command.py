"""Workers by any executable: ``start``, ``stop`` and ``list``, JSON in and out.

``docs/capacity.md`` is its manual. Standard input is one JSON document, standard output another;
status 0 is success; anything else is a failure, for the reason on standard error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jetfleet_agent.providers import CannotStart, CannotStop, Kind, Start

logger = logging.getLogger("jetfleet.provider")
UNKNOWN_VERB = 64  # EX_USAGE: the executable cannot list
OTHER_S = 120.0  # for stop and list
REASON_CHARS = 500


class _Failed(Exception):
    """The executable failed; the message says why."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True, eq=False)
class Commands:
    """``argv``: the executable and its own arguments; ``start_s``: longest time to start."""

    argv: Sequence[str]
    provider: str
    fleet: str
    start_s: float
    kind: Kind = "command"

    async def start(self, what: Start) -> str:
        """See ``Backend``."""
        request = {
            "worker": what.worker,
            "request": what.request,
            "shape": what.shape.model_dump(mode="json"),
            "agent": ["jetfleet", *what.agent],
            "environment": dict(what.environment),
            "script": script(what),
        }
        try:
            answer = await self._call("start", request, self.start_s)
        except _Failed as error:
            await self._undo(what.worker)
            raise CannotStart(str(error)) from error
        return str(answer.get("handle", ""))[:512]

    async def _undo(self, worker: str) -> None:
        """A start that failed may have left something."""
        try:
            await self.stop(worker, "")
        except CannotStop as error:
            logger.warning("! after a failed start: %s", error)

    async def stop(self, worker: str, handle: str) -> None:
        """See ``Backend``."""
        try:
            await self._call("stop", {"worker": worker, "handle": handle}, OTHER_S)
        except _Failed as error:
            raise CannotStop(str(error)) from error

    async def list(self) -> set[str] | None:
        """See ``Backend``."""
        try:
            answer = await self._call("list", {}, OTHER_S)
            return {str(worker) for worker in answer["workers"]}
        except _Failed as error:
            if error.status == UNKNOWN_VERB:
                return None
            raise CannotStop(str(error)) from error
        except (KeyError, TypeError) as error:
            raise CannotStop('list must answer {"workers": [NAME, ...]}') from error

    async def close(self, *, leave: bool) -> None:
        """Nothing runs between calls."""

    async def _call(
        self, verb: str, request: Mapping[str, Any], within_s: float
    ) -> Mapping[str, Any]:
        document = {"verb": verb, "provider": self.provider, "fleet": self.fleet, **request}
        try:
            process = await asyncio.create_subprocess_exec(
                *self.argv, verb,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, env=_environment(), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise _Failed(f"{self.argv[0]} cannot be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(within_s):
                out, err = await process.communicate(json.dumps(document).encode())
        except TimeoutError:
            raise _Failed(f"{verb} took longer than {within_s:g} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)  # what it called, too
                await process.wait()
        if process.returncode:
            lines = err.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise _Failed(
                f"{verb} ended with status {process.returncode}: {lines[-1][:REASON_CHARS]}",
                process.returncode,
            )
        try:
            answer = json.loads(out or b"{}")
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise _Failed(f"{verb} did not answer with a JSON object: {out[:80]!r}")
        return answer


def script(what: Start) -> str:
    """The agent as lines of a POSIX shell."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in what.environment.items()]
    return "\n".join([*exports, f"exec jetfleet {shlex.join(what.agent)}"])


def _environment() -> dict[str, str]:
    """Ours without what is ours alone: the executable needs no rights on the broker."""
    return {name: value for name, value in os.environ.items() if not name.startswith("JETFLEET_")}
