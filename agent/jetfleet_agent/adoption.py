"""Containers outlive the agent that started them; the next one goes on with them.

What an agent was assigned lies in the replica's folder, so that its successor can say in its first
event which replicas run on, before it has heard anything.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from jetfleet.events import InvalidEvent, ReplicaAssigned, decode, encode
from jetfleet.specs import RuntimeName

logger = logging.getLogger("jetfleet.adoption")
FILE = "assigned.json"


def remember(folder: Path, event: ReplicaAssigned) -> None:
    """Keep the assignment of a replica that may outlive us."""
    if event.data.spec.model.runtime is RuntimeName.DOCKER:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(encode(event))


def remembered(workdir: Path) -> list[ReplicaAssigned]:
    """The assignments in the folders of an earlier agent, oldest first."""
    found = []
    for file in workdir.glob(f"*/{FILE}"):
        with contextlib.suppress(OSError, InvalidEvent):  # cut short when its writer died
            event = decode(file.read_bytes())
            if isinstance(event, ReplicaAssigned):
                found.append(event)
    return sorted(found, key=lambda event: event.id)


async def running(events: Iterable[ReplicaAssigned]) -> list[ReplicaAssigned]:
    """Those whose containers run."""
    events = list(events)
    if not events:
        return []
    from jetfleet_agent.runtimes.docker import docker_runtime

    alive = await docker_runtime().running()
    return [event for event in events if event.data.replica in alive]


async def sweep(owner: str, keep: Collection[str]) -> None:
    """Remove what an earlier agent of this name and folder left and nobody adopted."""
    from jetfleet_agent.runtimes.engine import APIError, EngineAway, engine_present, explain

    if not engine_present():
        return
    from jetfleet_agent.runtimes.docker import docker_runtime

    try:
        removed = await docker_runtime().sweep(owner, keep)
    except (EngineAway, APIError) as error:
        logger.info("nothing is swept: %s", explain(error))
    else:
        if removed:
            logger.info("removed %d containers of an earlier run", removed)


def tidy(workdir: Path, before: float, keep: Collection[str]) -> None:
    """Remove the folders of replicas that an earlier agent left, last changed before this time."""
    for folder in workdir.glob("*/"):
        with contextlib.suppress(OSError):
            if folder.name not in keep and folder.stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)
