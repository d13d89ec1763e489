"""What JSON may be like to be read everywhere: how deep it nests, how long its numbers are.

Readers stop at different places: pydantic at 200 levels, Python at integers of 4,300 digits, DuckDB
at neither. What one reader takes and another refuses would be accepted and never end. So there is
one limit, well below all of them, for inputs, outputs and chunks, wherever they come in.

Looking costs little: only text that has many brackets, or digits at every place of a coarse grid,
is read closely.
"""

from __future__ import annotations

import re
from typing import Any

MOST_LEVELS = 128  # of lists and objects in each other
MOST_DIGITS = 1_000  # of a number, in a row

_SCALARS = frozenset((str, int, float, bool, type(None)))
_CONTAINERS = frozenset((dict, list, tuple))
_JSON: tuple[type, ...] = (str, int, float, type(None), dict, list, tuple)
_STRIDE = 16  # a longer run of digits than allowed fills so many places of the grid in a row
_GRID = re.compile(rb"[0-9]{%d}" % (MOST_DIGITS // _STRIDE))
_DIGITS = re.compile(rb"[0-9]{%d}" % (MOST_DIGITS + 1))
_TEXTS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_ALIKE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def modest(text: bytes) -> bool:
    """Whether JSON text is plainly far from every limit; what is not has to be looked at."""
    few = MOST_LEVELS // 2
    if len(text) <= few:
        return True
    # Taking bytes away is three times as fast as counting them, where there are few.
    rest = len(text.replace(b"[", b"")) + len(text.replace(b"{", b""))
    return 2 * len(text) - rest <= few and not _GRID.search(text[::_STRIDE])


def excess(text: bytes, around: int = 0) -> str | None:
    """What is too much about JSON text, or None; text that is no JSON may pass.

    Args:
        around: levels of an envelope around it, which do not count.
    """
    most = MOST_LEVELS + around
    if modest(text):
        return None
    if _levels_over(text, most):
        return f"it nests more than {MOST_LEVELS} levels of lists and objects"
    if _digits_over(text):
        return f"it has a number of more than {MOST_DIGITS:,} digits"
    return None


def _levels_over(text: bytes, most: int) -> bool:
    # With the brackets in texts, which is nearly always good enough, and then without.
    return _deeper(text, most) and _deeper(_TEXTS.sub(b"", text), most)


def _deeper(text: bytes, most: int) -> bool:
    """Whether brackets nest deeper, found by taking away the innermost level again and again."""
    brackets = text.translate(_ALIKE, _NO_BRACKETS)
    too_many = b"[" * (most + 1)
    for _ in range(most):
        if too_many in brackets:
            return True
        fewer = brackets.replace(b"[]", b"")
        if len(fewer) == len(brackets):
            break  # nothing is left, or it is no JSON
        brackets = fewer
    return bool(brackets)


def _digits_over(text: bytes) -> bool:
    # The grid first: it is ten times as fast, and nearly always enough.
    if not _GRID.search(text[::_STRIDE]) or not _DIGITS.search(text):
        return False
    return _DIGITS.search(_TEXTS.sub(b"", text)) is not None


def foreign(value: Any) -> str | None:
    """The kind of what is no JSON in a value or right inside it; deeper is not looked.

    The encoder would write a set as a list and bytes as text without a word. To look everywhere
    would cost more than to encode.
    """
    kind = type(value)
    if kind in _SCALARS:
        return None
    within = value.values() if kind is dict else value if kind in _CONTAINERS else (value,)
    for each in set(map(type, within)).difference(_SCALARS, _CONTAINERS):
        if not issubclass(each, _JSON):
            return each.__name__
    return None
