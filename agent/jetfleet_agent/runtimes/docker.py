"""The Docker runtime: a replica is a container that may do next to nothing (``hardening``).

How it is called: where the agent is root on the engine's machine, the model has no network at all
and the agent makes its sockets inside the container's namespace (``netns``). Otherwise the
container is on an internal network of its own, from which it cannot reach the internet or other
containers, but can reach ports of the host. The ready event says which.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import docker

from jetfleet_agent.runtimes import Launch, Place, StartFailed, netns
from jetfleet_agent.runtimes import hardening as hard
from jetfleet_agent.runtimes.container import Container
from jetfleet_agent.runtimes.engine import (
    APIError,
    Engine,
    EngineAway,
    NotFound,
    explain,
    on_thread,
)
from jetfleet_agent.runtimes.pull import MIB, RESERVE_MIB, STALL_S, Pull, is_moving, too_large

logger = logging.getLogger("jetfleet.docker")
ENGINE_WAIT_S = 60.0  # a restart of the engine is waited for
NO_NETWORK = "none: it reaches nothing; called inside its namespace"
INTERNAL = "internal: it reaches ports of this host, nothing else; called by address"
OPEN = "bridge: it reaches the network, as its model allows; called by address"


class Way(NamedTuple):
    """A network for a container: the engine's name of it, and in words."""

    network: str
    words: str


@functools.cache
def docker_runtime() -> DockerRuntime:
    """The runtime of this agent."""
    return DockerRuntime()


@dataclass(slots=True, eq=False)
class DockerRuntime:
    """See the module."""

    engine: Engine = field(default_factory=Engine)
    stall_s: float = STALL_S
    reserve_mib: int = RESERVE_MIB
    _enters: bool = field(default_factory=netns.may_enter)
    _as_root: set[str] = field(default_factory=set)  # ids of images that do not run as nobody
    _pulls: dict[str, asyncio.Lock] = field(default_factory=dict)
    _images: dict[str, str] = field(default_factory=dict)  # id of the image, by replica

    async def start(self, launch: Launch, place: Place) -> Container:
        """Get the image and start a container of it.

        Raises:
            StartFailed: no engine, no image, no room, or it refuses to start; with the cause.
        """
        try:
            # A replica that is started again is what it was, whatever its tag means by now.
            before = self._images.get(place.replica, "")
            image = await self._inspect(before) if before else None
            if image is None:
                image = await self._image(place)
            self._images[place.replica] = image["Id"]
            return await self._start(launch, place, image)
        except EngineAway as error:
            raise StartFailed(f"cannot run {place.model.image}: {error}") from error

    # -- the image

    async def _image(self, place: Place) -> dict[str, Any]:
        """The engine's description of the image, pulled when it is not here or may have moved."""
        name = place.model.image or ""
        async with self._pulls.setdefault(name, asyncio.Lock()):
            image = await self._inspect(name)
            if image is None or is_moving(name):
                try:
                    await self._pull(name, place)
                except StartFailed as error:
                    if image is None:
                        raise
                    logger.warning("! using the image that is here: %s", error.reason)
                image = await self._inspect(name)
        if image is None:
            raise StartFailed(f"image {name} is not here although it was pulled")
        if image["Size"] > place.model.container.max_image_mib * MIB:
            raise too_large(name, image["Size"], place.model.container.max_image_mib)
        return image

    async def _inspect(self, name: str) -> dict[str, Any] | None:
        try:
            return await self.engine.call(
                lambda api: dict(api.inspect_image(name)), wait_s=ENGINE_WAIT_S
            )
        except NotFound:
            return None
        except APIError as error:
            raise StartFailed(f"{name} names no image: {explain(error)}") from error

    async def _pull(self, name: str, place: Place) -> None:
        info = await self.engine.call(lambda api: api.info())
        root = Path(info.get("DockerRootDir") or "/nowhere")
        loop, wanted = asyncio.get_running_loop(), True

        def report(words: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(place.report, words)

        pull = Pull(
            name, place.model.container.max_image_mib, root if root.is_dir() else None, report,
            lambda: wanted, self.stall_s, self.reserve_mib,
        )  # fmt: skip
        place.report("pulling")
        logger.info("pulling %s", name)
        try:
            await on_thread(pull.run, "pull")
        finally:
            wanted = False  # when we are cancelled, the thread ends with its next message

    # -- the container

    async def _start(self, launch: Launch, place: Place, image: dict[str, Any]) -> Container:
        await self._forget(place.replica)
        while True:
            way = await self._way(place)
            try:
                return await self._start_on(way, launch, place, image)
            except GuessFailed as error:
                logger.info("%s: %s", place.model.image, error)
            except PermissionError as error:  # may not enter its namespace after all
                logger.warning("containers are called over an internal network: %s", error)
                self._enters = False

    async def _way(self, place: Place) -> Way:
        if place.model.container.network:
            return Way("bridge", OPEN)
        if self._enters:
            return Way("none", NO_NETWORK)
        name, labels = hard.name_of(place.replica), hard.labels(place)
        await self.engine.call(
            lambda api: api.create_network(name, driver="bridge", internal=True, labels=labels)
        )
        return Way(name, INTERNAL)

    async def _start_on(
        self, way: Way, launch: Launch, place: Place, image: dict[str, Any]
    ) -> Container:
        user, guessed = hard.user_of(place, image, image["Id"] in self._as_root)

        def create(api: docker.APIClient) -> str:
            config = hard.container_config(
                api, launch, place, image=image["Id"], user=user, network=way.network
            )
            return str(api.create_container(**config)["Id"])

        place.report("starting")
        try:
            id_ = await self.engine.call(create)
            await self.engine.call(lambda api: api.start(id_))
            found = await self.engine.call(lambda api: api.inspect_container(id_))
            container = self._container(found)
        except APIError as error:  # a failed start leaves a container that was created
            await asyncio.shield(self._forget(place.replica))
            raise StartFailed(_why_not(place, explain(error))) from error
        except BaseException:
            await asyncio.shield(self._forget(place.replica))
            raise
        if guessed:
            container.on_guess_failed = lambda: self._as_root.add(image["Id"])
        try:
            await self._open(container, launch, place)
        except BaseException as error:
            await asyncio.shield(container.stop(0))
            if isinstance(error, StartFailed) and container.reconsider():
                raise GuessFailed("it does not come up as nobody; trying as its own user") from None
            raise
        return container

    async def _open(self, container: Container, launch: Launch, place: Place) -> None:
        container.watch()
        if launch.channel:
            token, port = launch.env["JETFLEET_TOKEN"], launch.port or 0
            await container.connect_channel(port, token, place.model.startup_timeout_s)

    def _container(self, found: dict[str, Any]) -> Container:
        """From the engine's description of a running one. Raises PermissionError: see netns."""
        network = found["HostConfig"]["NetworkMode"]
        settings = found["NetworkSettings"]
        host, sockets, words, own = "127.0.0.1", None, NO_NETWORK, False
        if network == "none":
            sockets = netns.factory(settings["SandboxKey"])
            if found["State"]["Running"]:
                with contextlib.suppress(FileNotFoundError):  # it ended at once
                    netns.socket_in(settings["SandboxKey"]).close()
        else:
            own = network != "bridge"
            words = INTERNAL if own else OPEN
            host = settings["Networks"][network]["IPAddress"] or "0.0.0.0"  # noqa: S104 - ended
        container = Container(
            self.engine, found["Id"], found["Config"]["Labels"].get(hard.REPLICA_LABEL, ""),
            host, sockets, found["Image"], words, own_network=own,
        )  # fmt: skip
        container.pid = found["State"].get("Pid") or None
        return container

    async def _forget(self, replica: str) -> None:
        """Remove what an earlier start of this replica left."""
        name = hard.name_of(replica)
        with contextlib.suppress(NotFound):
            await self.engine.call(
                lambda api: api.remove_container(name, v=True, force=True), wait_s=ENGINE_WAIT_S
            )
        with contextlib.suppress(NotFound, APIError):
            await self.engine.call(lambda api: api.remove_network(name))

    # -- after a restart of the agent

    async def adopt(self, launch: Launch, place: Place) -> Container | None:
        """The running container of a replica that an earlier agent started; None: there is none."""
        name = hard.name_of(place.replica)
        try:
            found = await self.engine.call(lambda api: api.inspect_container(name))
            labels = found["Config"]["Labels"]
            if not found["State"]["Running"] or labels.get(hard.OWNER_LABEL) != place.owner:
                return None
            container = self._container(found)
            self._images[place.replica] = found["Image"]
            token = _token(found)
            if token:
                launch = launch._replace(env={**launch.env, "JETFLEET_TOKEN": token})
            await self._open(container, launch, place)
        except (NotFound, EngineAway, StartFailed, OSError) as error:
            logger.info("container of %s is not adopted: %s", place.job, error)
            return None
        return container

    async def running(self) -> set[str]:
        """Ids of the replicas whose containers run on this engine; none when it is away."""
        filters = {"label": hard.REPLICA_LABEL, "status": "running"}
        try:
            found = await self.engine.call(lambda api: api.containers(filters=filters))
        except EngineAway as error:
            logger.info("no containers to go on with: %s", error)
            return set()
        return {each["Labels"][hard.REPLICA_LABEL] for each in found}

    async def sweep(self, owner: str, keep: Iterable[str]) -> int:
        """Remove this agent's containers and networks but those of the replicas to keep."""
        kept = {hard.name_of(replica) for replica in keep}
        filters = {"label": f"{hard.OWNER_LABEL}={owner}"}

        def remove(api: docker.APIClient) -> int:
            removed = 0
            for found in api.containers(all=True, filters=filters):
                if not kept & {name.lstrip("/") for name in found["Names"]}:
                    with contextlib.suppress(APIError):
                        api.remove_container(found["Id"], v=True, force=True)
                        removed += 1
            for found in api.networks(filters=filters):
                if found["Name"] not in kept:
                    with contextlib.suppress(APIError):
                        api.remove_network(found["Id"])
            return removed

        return await self.engine.call(remove)


class GuessFailed(Exception):
    """It does not come up as nobody; the next start is as the image says."""


def _token(found: dict[str, Any]) -> str:
    for entry in found["Config"].get("Env") or ():
        name, _, value = entry.partition("=")
        if name == "JETFLEET_TOKEN":
            return str(value)
    return ""


def _why_not(place: Place, said: str) -> str:
    if "could not select device driver" in said:
        return (
            "its container needs a GPU, and this engine has no NVIDIA runtime; install the NVIDIA"
            f" Container Toolkit ({said})"
        )
    return f"the engine does not start a container of {place.model.image}: {said}"
