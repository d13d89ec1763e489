"""Workers as containers of a Docker engine, each an agent in an image that has jetfleet.

Which they are is in their labels, so the engine knows it when nobody else does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import docker

from jetfleet_agent.providers import CannotStart, CannotStop, Kind, Start
from jetfleet_agent.runtimes.engine import APIError, Engine, EngineAway, NotFound, explain

logger = logging.getLogger("jetfleet.provider")
WORKER, PROVIDER, FLEET = "jetfleet.worker", "jetfleet.provider", "jetfleet.fleet"  # labels
GONE = ("exited", "dead")
TAIL = 5  # lines of an agent that ended by itself


@dataclass(slots=True, eq=False)
class Containers:
    """``image``: its ``jetfleet`` is what runs; ``network``: as ``docker run --network`` has it."""

    engine: Engine
    image: str
    provider: str
    fleet: str
    network: str = "bridge"
    drain_s: int = 35
    kind: Kind = "docker"

    async def start(self, what: Start) -> str:
        """See ``Backend``; the handle is the container's id."""
        try:
            return await self.engine.call(lambda api: self._start(api, what))
        except NotFound as error:
            text = f"{explain(error)}; build or pull the image (docs/capacity.md)"
            raise CannotStart(text) from error
        except (APIError, EngineAway) as error:
            raise CannotStart(explain(error)) from error

    def _start(self, api: docker.APIClient, what: Start) -> str:
        name = _container(what.worker)
        try:
            made: dict[str, Any] = api.inspect_container(name)
            if made["State"]["Running"]:
                return str(made["Id"])
            api.remove_container(name, force=True, v=True)
        except NotFound:
            pass
        gpus = docker.types.DeviceRequest(count=what.shape.gpus, capabilities=[["gpu"]])
        host = api.create_host_config(
            mem_limit=f"{what.shape.memory_mib}m",
            network_mode=self.network,
            init=True,
            device_requests=[gpus] if what.shape.gpus else None,
        )
        made = api.create_container(
            self.image,
            entrypoint=["jetfleet"],
            command=[*what.agent],
            environment=dict(what.environment),
            name=name,
            labels={WORKER: what.worker, PROVIDER: self.provider, FLEET: self.fleet},
            host_config=host,
        )
        api.start(made["Id"])
        return str(made["Id"])

    async def stop(self, worker: str, handle: str) -> None:
        """See ``Backend``: SIGTERM, and SIGKILL once it had time to drain; then it is removed."""

        def stop(api: docker.APIClient) -> None:
            try:
                api.stop(_container(worker), timeout=self.drain_s)
                api.remove_container(_container(worker), force=True, v=True)
            except NotFound:
                pass

        try:
            await self.engine.call(stop)
        except (APIError, EngineAway) as error:
            raise CannotStop(explain(error)) from error

    async def list(self) -> set[str]:
        """See ``Backend``. Those that ended are removed: their last lines are told."""
        try:
            return await self.engine.call(self._list)
        except (APIError, EngineAway) as error:
            raise CannotStop(explain(error)) from error

    def _list(self, api: docker.APIClient) -> set[str]:
        labels = [f"{PROVIDER}={self.provider}", f"{FLEET}={self.fleet}"]
        found = set()
        for each in api.containers(all=True, filters={"label": labels}):
            worker = each["Labels"][WORKER]
            if each["State"] not in GONE:
                found.add(worker)
                continue
            lines = api.logs(each["Id"], tail=TAIL).decode(errors="replace").strip()
            logger.info("%s ended: %s", worker, lines)
            api.remove_container(each["Id"], force=True, v=True)
        return found

    async def close(self, *, leave: bool) -> None:
        """Containers need nobody."""
        if not leave:
            for worker in await self.list():
                await self.stop(worker, "")


def _container(worker: str) -> str:
    return f"jetfleet-{worker}"
