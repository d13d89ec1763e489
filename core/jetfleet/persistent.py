"""Mappings that are never changed, of which a changed one is made without copying the whole.

Folds make a new state for each event. Copying a mapping of all replicas for each would make the
time to fold a history grow with its square. So a change stands beside the shared whole until a few
have gathered, or until somebody goes through all of it.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MOST_CHANGES = 64
_GONE: Final[Any] = object()


class PersistentMap(Mapping[K, V]):
    """Made by ``put`` and ``drop``; ordered like a dict to which the same was done."""

    __slots__ = ("_changes", "_whole")

    def __init__(self, whole: dict[K, V], changes: dict[K, V]) -> None:
        self._whole = whole  # shared with others, so nobody writes to it
        self._changes = changes

    def changed(self, key: K, value: V) -> PersistentMap[K, V]:
        """The same but for this key."""
        # What was dropped and comes again comes last, whether or not somebody looked in between.
        gather = len(self._changes) >= MOST_CHANGES or self._changes.get(key) is _GONE
        whole = self._together() if gather else self._whole
        return PersistentMap(whole, {**self._changes, key: value})

    def _together(self) -> dict[K, V]:
        if self._changes:
            whole = {**self._whole, **self._changes}
            for key, value in self._changes.items():
                if value is _GONE:
                    del whole[key]
            self._whole, self._changes = whole, {}
        return self._whole

    def __getitem__(self, key: K) -> V:
        if key in self._changes:
            value = self._changes[key]
            if value is _GONE:
                raise KeyError(key)
            return value
        return self._whole[key]

    def __len__(self) -> int:
        return len(self._together())

    def __iter__(self) -> Iterator[K]:
        return iter(self._together())

    def keys(self) -> KeysView[K]:
        return self._together().keys()

    def values(self) -> ValuesView[V]:
        return self._together().values()

    def items(self) -> ItemsView[K, V]:
        return self._together().items()

    def __repr__(self) -> str:
        return f"PersistentMap({self._together()!r})"


def put(mapping: Mapping[K, V], key: K, value: V) -> Mapping[K, V]:
    """The mapping with this key set to this value."""
    return _persistent(mapping).changed(key, value)


def drop(mapping: Mapping[K, V], key: K) -> Mapping[K, V]:
    """The mapping without this key; itself where it has no such key."""
    return _persistent(mapping).changed(key, _GONE) if key in mapping else mapping


def _persistent(mapping: Mapping[K, V]) -> PersistentMap[K, V]:
    return mapping if isinstance(mapping, PersistentMap) else PersistentMap(dict(mapping), {})
