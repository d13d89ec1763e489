"""Getting an image: is it here, is there room, how far is the pull, does it still move.

The engine's stream of progress is read as it comes, because the SDK's convenient functions hide an
error in it (a full disk came out as an image that does not exist).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import docker
import requests
from docker.auth import get_config_header, resolve_repository_name
from docker.utils import parse_repository_tag

from jetfleet_agent.runtimes import StartFailed
from jetfleet_agent.runtimes.engine import EngineAway, connect

MIB = 1024**2
CONNECT_S = 10.0
STALL_S = 60.0  # without a sign of progress
RESERVE_MIB = 1024  # of disk that images leave free
UNPACKED = 2.5  # bytes on disk for a byte pulled, while both are there; a guess that is watched
LOOK_S = 0.5  # between looks at the disk
REPORT_S = 2.0

# What registries and the engine say, and what it means.
_CAUSES = (
    (("no space left",), "the disk where the engine keeps images is full"),
    (
        ("verification failed", "digest mismatch", "unexpected eof", "invalid checksum",
         "unexpected commit digest", "content digest", "invalid header"),
        "what the registry sent is damaged",
    ),
    (
        ("manifest unknown", "not found", "no such image", "name unknown", "unknown blob"),
        "its registry does not have it; check name and tag",
    ),
    (
        ("unauthorized", "denied", "authentication required", "no basic auth"),
        "its registry refuses; run docker login as the agent's user, or check the name",
    ),
    (
        ("connection refused", "no such host", "i/o timeout", "timeout", "unreachable",
         "connection reset", "eof", "server misbehaving", "server gave http response", "dial tcp"),
        "its registry cannot be reached",
    ),
)  # fmt: skip


@dataclass(slots=True)
class Progress:
    """How far a pull is, from the engine's messages."""

    layers: dict[str, tuple[int, int]] = field(default_factory=dict)  # id -> bytes here, bytes

    def take(self, message: Mapping[str, Any]) -> None:
        """One message. Raises StartFailed when it tells of an error."""
        if message.get("status") != "Downloading":
            if message.get("status") in ("Download complete", "Pull complete"):
                _, total = self.layers.get(message.get("id", ""), (0, 0))
                self.layers[message.get("id", "")] = (total, total)
            return
        detail = message.get("progressDetail") or {}
        if detail.get("total"):
            self.layers[message["id"]] = (int(detail.get("current", 0)), int(detail["total"]))

    @property
    def total(self) -> int:
        """Bytes of the layers known by now, compressed."""
        return sum(total for _, total in self.layers.values())

    @property
    def here(self) -> int:
        return sum(here for here, _ in self.layers.values())

    def words(self) -> str:
        """For people."""
        return f"pulling, {self.here // MIB:,} of {self.total // MIB:,} MiB"


@dataclass(slots=True)
class Pull:
    """One pull, on a thread of its own.

    Args:
        max_mib: largest image, unpacked; ``root``: where the engine keeps images, None: not here.
        report: is told the progress, from the thread; ``wanted``: False ends it.
    """

    image: str
    max_mib: int
    root: Path | None
    report: Callable[[str], None]
    wanted: Callable[[], bool]
    stall_s: float = STALL_S
    reserve_mib: int = RESERVE_MIB
    _looked: float = 0.0
    _said: float = 0.0

    def run(self) -> None:
        """Pull it; blocks. Raises StartFailed with the cause, or EngineAway."""
        self._check_room(0)
        # The engine writes progress as long as there is any, so a silent stream is a stalled pull;
        # closing it makes the engine give up.
        with contextlib.closing(connect(CONNECT_S)) as api:
            try:
                with self._ask(api) as answer:
                    self._follow(json.loads(line) for line in answer.iter_lines() if line)
            except requests.exceptions.ReadTimeout as error:
                raise self._stalled() from error
            except requests.exceptions.RequestException as error:
                if "timed out" in str(error).lower():
                    raise self._stalled() from error
                raise EngineAway(f"the Docker engine went away during a pull: {error}") from error

    def _ask(self, api: docker.APIClient) -> requests.Response:
        """The engine's stream of progress. The SDK's own pull leaves it open when it is left early,
        and then the engine goes on pulling."""
        repository, tag = parse_repository_tag(self.image)
        header = get_config_header(api, resolve_repository_name(repository)[0])
        answer: requests.Response = api.post(
            f"{api.base_url}/v{api.api_version}/images/create",
            params={"fromImage": repository, "tag": tag or "latest"},
            headers={"X-Registry-Auth": header} if header else {},
            stream=True,
            timeout=(CONNECT_S, self.stall_s),
        )
        if answer.status_code != HTTPStatus.OK:
            with answer:
                raise refusal(self.image, _message(answer))
        return answer

    def _follow(self, stream: Iterable[Mapping[str, Any]]) -> None:
        progress = Progress()
        for message in stream:
            if "error" in message:
                raise refusal(self.image, str(message["error"]))
            if not self.wanted():
                raise StartFailed(f"the pull of {self.image} was given up: it is not wanted now")
            progress.take(message)
            self._watch(progress)

    def _watch(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.total > self.max_mib * MIB:
            raise too_large(self.image, progress.total, self.max_mib)
        if now - self._looked > LOOK_S:
            self._looked = now
            self._check_room(int((progress.total - progress.here) * UNPACKED))
        if now - self._said > REPORT_S:
            self._said = now
            self.report(progress.words())

    def _check_room(self, needed: int) -> None:
        if self.root is None:
            return
        free = shutil.disk_usage(self.root).free
        if free - needed < self.reserve_mib * MIB:
            raise StartFailed(
                f"no room to pull {self.image}: {free // MIB:,} MiB are free where the engine keeps"
                f" images, about {needed // MIB:,} more are needed and {self.reserve_mib:,} stay"
                " free; remove what is not used (docker system prune)"
            )

    def _stalled(self) -> StartFailed:
        return StartFailed(
            f"the pull of {self.image} stalled: no progress for {self.stall_s:g} s; its registry"
            " may be overloaded or cut off"
        )


def _message(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, LookupError, TypeError):
        return answer.text


def refusal(image: str, said: str) -> StartFailed:
    """The StartFailed for what the engine or the registry said, with the cause in words."""
    lower = said.lower()
    for signs, cause in _CAUSES:
        if any(sign in lower for sign in signs):
            return StartFailed(f"cannot pull {image}: {cause} ({said})")
    return StartFailed(f"cannot pull {image}: {said}")


def too_large(image: str, size: int, max_mib: int) -> StartFailed:
    """The StartFailed for an image over its cap; ``size`` in bytes."""
    return StartFailed(
        f"image {image} has {size // MIB:,} MiB or more; container.max_image_mib allows {max_mib:,}"
    )


def is_moving(image: str) -> bool:
    """Whether the name is expected to mean another image tomorrow; a digest never is."""
    return (parse_repository_tag(image)[1] or "latest") == "latest"
