"""Fixtures with Docker: one engine and one registry for the session, images made when asked for.

Where no engine can run, these tests are skipped with the reason; in CI a skip is a failure.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from containers.engine import Engine, EngineUnavailable
from containers.images import Images
from containers.registry import Registry, RegistryUnavailable


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A running Docker engine; tests of agents set DOCKER_HOST to its ``url``."""
    running = Engine(tmp_path_factory.mktemp("docker"))
    try:
        try:
            running.start()
        except EngineUnavailable as reason:
            pytest.skip(f"no Docker engine: {reason}")
        yield running
    finally:
        running.close()
    left = running.left_behind()
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A running, empty registry; whoever stops it starts it again."""
    running = Registry(tmp_path_factory.mktemp("registry"))
    try:
        try:
            running.start()
        except RegistryUnavailable as reason:
            pytest.skip(f"no container registry: {reason}")
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def images(registry: Registry) -> Images:
    """Name to reference in the registry; see ``containers.images.RECIPES`` for the names."""
    return Images(registry)
