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
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from jetfleet_agent.runtimes import Launch, Place, StartFailed, netns
from jetfleet_agent.runtimes import hardening as hard
from jetfleet_agent.runtimes.container import Container
from jetfleet_agent.runtimes.engine import (
    APIError,
    DockerException,
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
NOWHERE = "255.255.255.255"  # no server is there; connecting fails at once


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
        except (EngineAway, DockerException, OSError) as error:
            raise StartFailed(f"cannot run {place.model.image}: {explain(error)}") from error

    # -- the image

    async def _image(self, place: Place) -> dict[str, Any]:
        """The engine's description of the image, pulled when it is not here or may have moved."""
        name, max_mib = place.model.image or "", place.model.container.max_image_mib
        async with self._pulls.setdefault(name, asyncio.Lock()):
            image = before = await self._inspect(name)
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
            if image["Size"] <= max_mib * MIB:
                return image
            if before is None:  # it came for nothing
                with contextlib.suppress(APIError):
                    await self.engine.call(lambda api: api.remove_image(name))
            raise too_large(name, image["Size"], max_mib)

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
        loop, wanted = asyncio.get_running_loop(), True

        def tell(words: str) -> None:
            if wanted:
                place.report(words)

        def report(words: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, words)

        pull = Pull(
            name, place.model.container.max_image_mib, _folder(info.get("DockerRootDir")), report,
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
            try:
                return await self._start_once(launch, place, image)
            except GuessFailed as error:
                logger.info("%s: %s", place.model.image, error)
            except PermissionError as error:  # may not enter its namespace after all
                logger.warning("containers are called over an internal network: %s", error)
                self._enters = False

    async def _network(self, place: Place) -> str:
        """The engine's name of the network for this container, which is made if need be."""
        if place.model.container.network:
            return "bridge"
        if self._enters:
            return "none"
        name, labels = hard.name_of(place.replica), hard.labels(place)
        await self.engine.call(
            lambda api: api.create_network(name, driver="bridge", internal=True, labels=labels)
        )
        return name

    async def _start_once(self, launch: Launch, place: Place, image: dict[str, Any]) -> Container:
        user, guessed = hard.user_of(place, image, image["Id"] in self._as_root)
        place.report("starting")
        try:
            network = await self._network(place)

            def create(api: docker.APIClient) -> str:
                config = hard.container_config(
                    api, launch, place, image=image, user=user, network=network
                )
                return str(api.create_container(**config)["Id"])

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
        host, sockets, words = "127.0.0.1", None, NO_NETWORK
        if network == "none":
            sockets = netns.factory(settings["SandboxKey"])
            if found["State"]["Running"]:
                with contextlib.suppress(FileNotFoundError):  # it ended at once
                    netns.socket_in(settings["SandboxKey"]).close()
        else:
            words = OPEN if network == "bridge" else INTERNAL
            host = settings["Networks"][network]["IPAddress"] or NOWHERE  # it ended at once
        container = Container(
            self.engine, found["Id"], found["Config"]["Labels"].get(hard.REPLICA_LABEL, ""),
            host, sockets, found["Image"], words,
        )  # fmt: skip
        container.pid = found["State"].get("Pid") or None
        return container

    async def _forget(self, replica: str) -> None:
        """Remove what an earlier start of this replica left."""
        await self.engine.call(lambda api: hard.clear(api, replica), wait_s=ENGINE_WAIT_S)

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
        except (EngineAway, DockerException, StartFailed, OSError) as error:
            logger.info("container of %s is not adopted: %s", place.job, explain(error))
            return None
        except asyncio.CancelledError:  # it is not wanted any more
            await asyncio.shield(self._forget(place.replica))
            raise
        return container

    async def running(self) -> set[str]:
        """Ids of the replicas whose containers run on this engine; none when it is away."""
        filters = {"label": hard.REPLICA_LABEL, "status": "running"}
        try:
            found = await self.engine.call(lambda api: api.containers(filters=filters))
        except (EngineAway, APIError) as error:
            logger.info("no containers to go on with: %s", explain(error))
            return set()
        return {each["Labels"][hard.REPLICA_LABEL] for each in found}

    async def sweep(self, owner: str, keep: Collection[str]) -> int:
        """Remove this agent's containers and networks but those of the replicas to keep.

        ``keep`` is read after what there is was listed, so that a replica which begins meanwhile,
        and is added to it beforehand, is spared.
        """
        filters = {"label": f"{hard.OWNER_LABEL}={owner}"}

        def remove(api: docker.APIClient) -> int:
            containers = api.containers(all=True, filters=filters)
            others = [*api.networks(filters=filters), *(api.volumes(filters)["Volumes"] or ())]
            removed = 0
            for each in (*containers, *others):
                replica = each["Labels"][hard.REPLICA_LABEL]
                if replica not in tuple(keep):
                    with contextlib.suppress(APIError):
                        hard.clear(api, replica)
                        removed += each in containers
            return removed

        return await self.engine.call(remove)


class GuessFailed(Exception):
    """It does not come up as nobody; the next start is as the image says."""


def _folder(path: str | None) -> Path | None:
    """None where there is no such folder, or it cannot be seen: the engine is elsewhere, or its
    folders are closed to the agent's user."""
    with contextlib.suppress(OSError):
        if path and Path(path).is_dir():
            return Path(path)
    return None


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
