"""Functions that do what models do, on good days and bad ones. Served by the function contract."""

import asyncio
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def echo(value):
    return value


def about(_):
    """Where and how the function runs."""
    return {
        "name": __name__,
        "file": __file__,
        "argv": sys.argv,
        "cwd": str(Path.cwd()),
        "first_path": sys.path[0],
        "thread": threading.current_thread() is threading.main_thread(),
        "stdlib_json": "behaviours" not in sys.modules["json"].__file__,
        "settings": sorted(k for k in os.environ if k.startswith("JETFLEET")),
        "greeting": os.environ.get("GREETING"),
        "pid": os.getpid(),
    }


def gpus(seconds):
    """Which GPUs CUDA would show it."""
    time.sleep(seconds or 0)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def paced(_):
    """As fast as the environment of its agent says, and where."""
    time.sleep(float(os.environ["PACE_S"]))
    return os.environ["PACE_NAME"]


def says(lines):
    """Prints what it is called with."""
    for line in lines:
        print(line)


def act(value):
    """One function with every way to misbehave; ``value`` names it."""
    if value == "raise":
        return {}["missing"]
    if value == "raise unprintable":
        raise Unprintable
    if value == "exit":
        sys.exit(3)
    if value == "interrupt":
        raise KeyboardInterrupt
    if value == "os._exit":
        print("last words")
        os._exit(7)
    if value == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if value == "hang":
        os.write(1, b"hanging\n")  # one piece, whatever other threads write
        time.sleep(60)
    returns = {
        "nan": float("nan"),
        "infinity": [float("inf")],
        "bytes": b"raw",
        "object": object(),
        "tuple keys": {(1, 2): 3},
        "surrogate": "\ud800",
        "circular": _circular(),
        "deep": functools.reduce(lambda inner, _: [inner], range(100_000), []),
        "hostile": Hostile({1: 2}),
    }
    return returns.get(value, value)


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Hostile(dict):
    def items(self):
        raise LookupError("not for you")


def _circular():
    loop = []
    loop.append(loop)
    return loop


def chatter(megabytes):
    """Prints lines without end, and a long one."""
    line = "x" * 99
    for _ in range(megabytes * 10_000):
        print(line)
    print("y" * 1_000_000)
    print("the end", flush=True)
    return "said"


def big(size):
    return "a" * size


def length(value):
    return len(value)


def count(value):
    """Yields 0, 1, ...; with a pause, and a file that tells that it was closed."""
    try:
        for number in range(value["to"]):
            yield number
            time.sleep(value.get("pause", 0))
            if number == value.get("raise_at"):
                raise ValueError("enough")
            if number == value.get("bad_at"):
                yield object()
    finally:
        if "closed" in value:
            Path(value["closed"]).write_text("closed")


async def acount(value):
    try:
        for number in range(value["to"]):
            yield number
            if "pause" in value:
                await asyncio.sleep(value["pause"])
    finally:
        if "closed" in value:
            Path(value["closed"]).write_text("closed")


async def aact(value):
    if value == "raise":
        raise ValueError("async trouble")
    if value == "exit":
        sys.exit(3)
    if value == "cancelled":
        raise asyncio.CancelledError
    if value == "hang":
        os.write(1, b"hanging\n")
        await asyncio.Event().wait()
    if isinstance(value, (int, float)):
        await asyncio.sleep(value)
    return value


_inside = 0
_most = 0
_lock = threading.Lock()


def together(seconds):
    """How many calls were inside at once, at most."""
    global _inside, _most
    with _lock:
        _inside += 1
        _most = max(_most, _inside)
    os.write(1, b"inside\n")
    time.sleep(seconds)
    with _lock:
        _inside -= 1
    return _most


def _logged(function):
    @functools.wraps(function)
    def wrapper(value):
        return function(value)

    return wrapper


@_logged
async def wrapped(value):
    await asyncio.sleep(0)
    return value


class _Model:
    async def __call__(self, value):
        return {"from": "object", "value": value}

    def method(self, value):
        return {"from": "method", "value": value}


instance = _Model()
method = _Model().method
partial = functools.partial(lambda prefix, value: [prefix, value], "p")


def spawn(_):
    """Starts a process that outlives this one if nobody sees to it, says its pid, and hangs."""
    child = subprocess.Popen(["sleep", "60"])
    os.write(1, b"hanging %d\n" % child.pid)
    time.sleep(60)


def gated(value):
    """Returns what it is given; given a gate, once that file is there."""
    if isinstance(value, dict) and "gate" in value:
        Path(f"{value['gate']}.begun").touch()
        deadline = time.monotonic() + 30
        while not Path(value["gate"]).exists():
            if time.monotonic() > deadline:
                raise TimeoutError("nobody opened the gate")
            time.sleep(0.005)
        return None
    return value
