"""Running one call of a user's function, in the host process. Standard library only."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import GeneratorType, TracebackType
from typing import Any

from jetfleet_agent.contracts.wire import CANCELLED, ERROR, INVALID_OUTPUT, RAISED, RESULT

MESSAGE_CHARS = 2_000
TRACEBACK_CHARS = 16_000

GENERATOR, COROUTINE, ASYNC_GENERATOR = 0x20, 0x80, 0x200  # flags of code objects (see `inspect`)

Reply = tuple[int, bytes]  # kind of the frame, its payload

# No NaN or Infinity: they are not JSON, whatever Python says. Built once: it costs 2 us a time.
_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
_HERE = str(Path(__file__).parent)


class InvalidValue(Exception):
    """The function gave something that cannot be sent."""


def flags_of(function: Callable[..., Any]) -> int:
    """Flags of the code behind a callable: partials, wrappers and callable objects included."""
    flags = 0
    layer: Any = function
    for _ in range(32):  # deep enough for honest decorators, and ends for circular ones
        flags |= getattr(getattr(layer, "__code__", None), "co_flags", 0)
        if hasattr(layer, "__wrapped__"):
            layer = layer.__wrapped__
        elif isinstance(layer, functools.partial):
            layer = layer.func
        elif hasattr(layer, "__code__") or isinstance(layer, type):
            break
        else:
            layer = layer.__call__
    return flags


def decode_input(payload: bytes) -> Any:
    """The argument of the call."""
    return json.loads(str(payload, "utf-8"))


class Output:
    """Turns what a function gives into JSON text, within a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def encode(self, value: Any, verb: str = "returned") -> bytes:
        """Raises InvalidValue when it is not JSON or too large."""
        try:
            text = _encode(value).encode()
        except Exception as error:  # objects may raise anything when they are looked at
            raise InvalidValue(
                f"the function {verb} what is not JSON: {describe(error)}; return dicts, lists,"
                " text, finite numbers, booleans and None"
            ) from None
        if len(text) > self._limit:
            raise self._too_large(len(text))
        return text

    def collect(self) -> Collector:
        """For the values of one generator."""
        return Collector(self, self._limit)

    def _too_large(self, size: int) -> InvalidValue:
        return InvalidValue(
            f"the output is {size} bytes of JSON or more; {self._limit} is the most"
        )


class Collector:
    """The values of a generator, as one JSON list."""

    def __init__(self, output: Output, limit: int) -> None:
        self._output = output
        self._pieces: list[bytes] = []
        self._size = 2
        self._limit = limit

    def add(self, value: Any) -> bytes:
        """The JSON text of this value. Raises InvalidValue when the list gets too large."""
        piece = self._output.encode(value, "yielded")
        self._size += len(piece) + 1
        if self._size > self._limit:
            raise self._output._too_large(self._size)
        self._pieces.append(piece)
        return piece

    def whole(self) -> bytes:
        """The JSON text of the list."""
        return b"[" + b",".join(self._pieces) + b"]"


def run(
    function: Callable[[Any], Any],
    payload: bytes,
    output: Output,
    emit: Callable[[bytes], None] | None,
    cancelled: Callable[[], bool],
) -> Reply:
    """One call of a plain function or generator, from input to reply. Raises nothing.

    ``emit`` gets each yielded value when chunks are wanted; ``cancelled`` is asked after each.
    """
    try:
        value = function(decode_input(payload))
        if type(value) is GeneratorType:
            return _drain(value, output, emit, cancelled)
        return RESULT, output.encode(value)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are the model's errors too
        return failure(error)


def _drain(
    generator: Iterator[Any],
    output: Output,
    emit: Callable[[bytes], None] | None,
    cancelled: Callable[[], bool],
) -> Reply:
    values = output.collect()
    try:
        for value in generator:
            piece = values.add(value)
            if emit is not None:
                emit(piece)
            if cancelled():
                return cancelled_reply()
    finally:
        generator.close()  # type: ignore[attr-defined]  # it is a generator: see `run`
    return RESULT, values.whole()


def failure(error: BaseException) -> Reply:
    """The ERROR that tells of this exception."""
    if isinstance(error, InvalidValue):
        return _error(INVALID_OUTPUT, str(error))
    return _error(RAISED, describe(error), trace(error))


def cancelled_reply() -> Reply:
    """The ERROR of a call that was cancelled."""
    return _error(CANCELLED, "the call was cancelled")


def _error(kind: str, message: str, traceback: str = "") -> Reply:
    document = {"type": kind, "message": clean(message), "traceback": clean(traceback)}
    return ERROR, json.dumps(document).encode()


def clean(text: str) -> str:
    """As it can be written: half of a surrogate pair, as in names of files, becomes an escape."""
    return text.encode(errors="backslashreplace").decode()


def describe(error: BaseException) -> str:
    """As the last line of a traceback."""
    try:
        text = str(error)
    except Exception:  # an exception whose text raises is no reason to lose the call
        text = "(its message cannot be read)"
    name = type(error).__name__
    return f"{name}: {text}"[:MESSAGE_CHARS] if text else name


def trace(error: BaseException) -> str:
    """The traceback without our own frames; its end, when it is long."""
    import traceback

    theirs = _without_ours(error.__traceback__)
    text = "".join(traceback.format_exception(type(error), error, theirs))
    return text if len(text) <= TRACEBACK_CHARS else "...\n" + text[-TRACEBACK_CHARS:]


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if not filename.startswith((_HERE, "<frozen importlib")):
            break
        traceback = traceback.tb_next
    return traceback
