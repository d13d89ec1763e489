"""What a container may do: next to nothing, unless its model was allowed it.

Verified against real engines by tests/containers: no capabilities, no new privileges, a root that
cannot be written, a bounded /tmp in memory, bounds on processes, memory, CPU and logs, no network.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Mapping
from typing import Any

import docker
from docker.errors import APIError, NotFound
from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from jetfleet_agent.runtimes import Launch, Place

NOBODY = "65534:65534"
MIB = 1024**2
OPEN_FILES = 4096  # engines themselves often have no more to give
CPU_SHARES = 256  # a quarter of an ordinary program's: the agent comes first when all want to run
OOM_SCORE = 500  # the kernel, short of memory, takes a model before the agent
LOG = LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m", "max-file": "2"})

LABEL = "jetfleet"  # of everything that is ours
OWNER_LABEL, REPLICA_LABEL = f"{LABEL}.owner", f"{LABEL}.replica"
TENANT_LABEL, JOB_LABEL, MODEL_LABEL = f"{LABEL}.tenant", f"{LABEL}.job", f"{LABEL}.model"


def name_of(replica: str) -> str:
    """The name of a replica's container, and of its network if it has one."""
    return f"jetfleet-{replica}"


def cache_volume(place: Place) -> str:
    """The volume that keeps a model's cache on this worker; one per tenant and model name.

    A dot parts the two, because none is in a name: ``a-b`` of ``c`` is not ``b`` of ``c-a``.
    """
    return f"jetfleet-cache-{place.tenant}.{place.model.name}"


def labels(place: Place) -> dict[str, str]:
    """What a container and its network are found by."""
    return {
        OWNER_LABEL: place.owner,
        REPLICA_LABEL: place.replica,
        TENANT_LABEL: place.tenant,
        JOB_LABEL: place.job,
        MODEL_LABEL: place.model.ref,
    }


def environment(launch: Launch, user: str) -> dict[str, str]:
    """The image's own environment stays; a user without a home gets the one writable folder."""
    home = {"HOME": "/tmp"} if user == NOBODY else {}  # noqa: S108 - inside the container
    return {**home, **launch.env}


def container_config(
    api: docker.APIClient,
    launch: Launch,
    place: Place,
    *,
    image: Mapping[str, Any],
    user: str,
    network: str,
) -> dict[str, Any]:
    """The arguments of ``create_container``.

    Args:
        image: the engine's description of it.
        user: as in ``docker run --user``; empty: the image's.
        network: name of an engine's network, or ``none``.
    """
    config: dict[str, Any] = {
        "image": image["Id"],
        "name": name_of(place.replica),
        "command": list(launch.argv) or None,
        "environment": environment(launch, user),
        "labels": labels(place),
        "user": user or None,
        "detach": True,
        "host_config": api.create_host_config(**_host_config(place, image, network)),
    }
    if launch.entrypoint:
        config["entrypoint"] = list(launch.entrypoint)
    return config


def _host_config(place: Place, image: Mapping[str, Any], network: str) -> dict[str, Any]:
    allowed, memory = place.model.container, place.model.resources.memory_mib * MIB
    cpus = min(allowed.cpus or float("inf"), os.cpu_count() or 1)
    config: dict[str, Any] = {
        "network_mode": network,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={allowed.tmp_mib}m"},  # noqa: S108
        "mounts": _volumes(place, image),
        "shm_size": allowed.shm_mib * MIB,
        "pids_limit": allowed.pids,
        "mem_limit": memory,
        "memswap_limit": memory,  # both together: no swap
        "nano_cpus": int(cpus * 1e9),
        "cpu_shares": CPU_SHARES,
        "oom_score_adj": OOM_SCORE,
        "ulimits": [
            Ulimit(name="nofile", soft=OPEN_FILES, hard=OPEN_FILES),
            Ulimit(name="core", soft=0, hard=0),
        ],
        "log_config": LOG,
        "init": True,  # without it the model is process 1 and ignores SIGTERM
        "ipc_mode": "private",
    }
    if place.gpus:
        config["device_requests"] = [
            DeviceRequest(device_ids=list(place.gpus), capabilities=[["gpu"]])
        ]
    if allowed.cache is not None:
        config["binds"] = {cache_volume(place): {"bind": allowed.cache, "mode": "rw"}}
    return config


def _volumes(place: Place, image: Mapping[str, Any]) -> list[Mount]:
    """Folders that the image declares to be volumes, to be written as little as its root.

    The engine would let each be written without bounds, on a disk of the worker. They hold what
    the image has there, and go with the container (``clear``).
    """
    declared = (image.get("Config") or {}).get("Volumes") or {}
    folders = {posixpath.normpath(posixpath.join("/", path)) for path in declared}
    ours = {"/tmp", "/dev/shm", posixpath.normpath(place.model.container.cache or "/tmp")}  # noqa: S108
    name = name_of(place.replica)
    return [
        Mount(path, f"{name}-{number}", type="volume", read_only=True, labels=labels(place))
        for number, path in enumerate(sorted(folders))
        if path not in ours
    ]


def clear(api: docker.APIClient, replica: str) -> None:
    """Remove a replica's container, and the network and volumes that were made for it.

    Raises:
        APIError: the engine does not remove one of them; the others are gone.
    """
    name, refused = name_of(replica), None
    mine = {"label": f"{REPLICA_LABEL}={replica}"}
    steps: list[Callable[[], Any]] = [
        lambda: api.remove_container(name, v=True, force=True),
        lambda: api.remove_network(name),
        lambda: [api.remove_volume(v["Name"]) for v in api.volumes(mine)["Volumes"] or ()],
    ]
    for step in steps:
        try:
            step()
        except NotFound:
            continue
        except APIError as error:
            refused = refused or error
    if refused is not None:
        raise refused


def user_of(place: Place, image: Mapping[str, Any], needs_root: bool) -> tuple[str, bool]:
    """Whom to run as, and whether that is a guess.

    The model's own wish; else the image's user if that is not root; else nobody, a guess that is
    taken back (``needs_root``) when the image does not come up like that. A cache is written as the
    image's user, to whom the folder belongs.
    """
    declared = str((image.get("Config") or {}).get("User") or "")
    if place.model.container.user is not None:
        return place.model.container.user, False
    is_root = declared.split(":", maxsplit=1)[0] in ("", "0", "root")
    if not is_root or needs_root or place.model.container.cache is not None:
        return declared, False
    return NOBODY, True
