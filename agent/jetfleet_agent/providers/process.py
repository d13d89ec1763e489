"""Workers as processes of this machine, started the way ``jetfleet up`` starts its own.

They end when the provider does, however it ends: the kernel tells them (``processes.launched``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from jetfleet import processes
from jetfleet_agent.providers import Kind, Start

logger = logging.getLogger("jetfleet.provider")
MARK = "JF_PROVIDER"  # in the environment of an agent: which provider's, of which installation
DRAIN_S = 35.0  # an agent finishes what it runs within 30 s


@dataclass(slots=True, eq=False)
class Processes:
    """``mark``: of this provider on this installation, the same after a restart."""

    mark: str
    kind: Kind = "process"
    drain_s: float = DRAIN_S
    _running: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    async def start(self, what: Start) -> str:
        """See ``Backend``; the handle is the process id."""
        known = self._find().get(what.worker)
        if known is not None:
            return str(known)
        argv = [sys.executable, "-m", "jetfleet", *what.agent]
        process = await asyncio.create_subprocess_exec(
            *processes.launched(argv),
            stdin=asyncio.subprocess.DEVNULL,
            env={**_environment(), **what.environment, MARK: self.mark},
            start_new_session=True,
        )
        self._running[what.worker] = process
        return str(process.pid)

    async def stop(self, worker: str, handle: str) -> None:
        """See ``Backend``: SIGTERM, and SIGKILL once it had time to drain."""
        pid = self._find().get(worker)
        if pid is not None:
            processes.end([pid], signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.drain_s):
                    await self._gone(worker)
            if worker in self._find():
                logger.warning("! %s did not end within %g s: killed", worker, self.drain_s)
                processes.end([pid], signal.SIGKILL)
                await self._gone(worker)
        known = self._running.pop(worker, None)
        if known is not None:
            await known.wait()

    async def list(self) -> set[str]:
        """See ``Backend``."""
        return set(self._find())

    async def close(self, *, leave: bool) -> None:
        """Ends all of them, in any case."""
        await asyncio.gather(*(self.stop(worker, "") for worker in self._find()))

    async def _gone(self, worker: str) -> None:
        while worker in self._find():  # noqa: ASYNC110 - it may be no child of ours
            await asyncio.sleep(0.05)

    def _find(self) -> dict[str, int]:
        """Our agents that live, by worker: started by this run or one before it."""
        found, mark = {}, f"{MARK}={self.mark}\0".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if "agent" not in argv or mark not in (entry / "environ").read_bytes():
                    continue  # a model that it started has the mark, too
            except OSError:
                continue  # it ended meanwhile, or is somebody else's
            if "--name" in argv:
                found[argv[argv.index("--name") + 1]] = int(entry.name)
        return found


def _environment() -> dict[str, str]:
    """Ours without our own credentials, which are no worker's."""
    return {name: value for name, value in os.environ.items() if name != "JETFLEET_CREDENTIALS"}
