"""Functions for the function contract, in an image."""

import asyncio
import os
import time
from pathlib import Path


def echo(value):
    return value


def about(_):
    """Who and where the function is."""
    return {"uid": os.getuid(), "gid": os.getgid(), "pid": os.getpid(), "cwd": str(Path.cwd()),
            "file": __file__, "env": dict(os.environ)}  # fmt: skip


def count(value):
    """``{"n": how many, "pause_s": between two}``, one after the other."""
    for number in range(value.get("n", 3)):
        time.sleep(value.get("pause_s", 0.1))
        yield number


async def nap(value):
    """Sleep so many seconds; can be cancelled."""
    await asyncio.sleep(float(value))
    return value


def sleep(value):
    """Sleep so many seconds; cannot be cancelled."""
    time.sleep(float(value))
    return value


def fail(value):
    raise ValueError(f"no good: {value}")


def leave(value):
    """End the process with this status."""
    print("last words", flush=True)
    os._exit(int(value))


def not_json(_):
    return object()
