"""The broker's own rules of matching, as pure functions: who hears what, who may say what."""

from __future__ import annotations

from collections.abc import Iterable


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject, or every subject of a pattern, is covered by ``pattern``."""
    wanted, given = pattern.split("."), subject.split(".")
    for n, token in enumerate(wanted):
        if token == ">":
            return len(given) > n
        if n >= len(given) or given[n] == ">" or (token not in ("*", given[n])):
            return False
    return len(wanted) == len(given)


def overlap(one: str, other: str) -> bool:
    """Whether some subject matches both patterns."""
    ours, theirs = one.split("."), other.split(".")
    for mine, yours in zip(ours, theirs, strict=False):
        if ">" in (mine, yours):
            return True
        if mine != yours and "*" not in (mine, yours):
            return False
    return len(ours) == len(theirs)


def allowed(patterns: Iterable[str], subject: str) -> bool:
    """Whether a user with these permissions may use a subject."""
    return any(matches(pattern, subject) for pattern in patterns)


def reachable(patterns: Iterable[str], subject: str) -> bool:
    """Whether some subject of the pattern ``subject`` is among what is permitted."""
    return any(overlap(pattern, subject) for pattern in patterns)
