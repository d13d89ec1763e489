"""Functions for fault tests: slow, deaf, talkative, deadly. Served by the function contract."""

import os
import time
from pathlib import Path


def echo(value):
    return value


def first_hangs(path):
    """The first attempt makes the file and hangs for a minute; a later one returns at once."""
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return "again"
    time.sleep(60)
    return "first"


def first_is_late(value):
    """The first attempt makes the file and takes ``seconds``; a later one returns at once."""
    try:
        Path(value["path"]).touch(exist_ok=False)
    except FileExistsError:
        return "again"
    time.sleep(value["seconds"])
    return "first"


def until_file(path):
    """Makes ``path``.begun and returns once ``path`` exists, or after half a minute."""
    Path(f"{path}.begun").touch()
    deadline = time.monotonic() + 30
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody made {path}")
        time.sleep(0.01)
    return "released"


def naps(seconds):
    time.sleep(seconds)
    return seconds


def misbehave(value):
    """Every way in which a model may fail its caller; ``value`` names it."""
    if value == "raise":
        raise ValueError("a trouble of mine")
    if value == "exit":
        print("last words", flush=True)
        os._exit(7)
    if value == "hang":
        time.sleep(60)
    if value == "not json":
        return {"an object": object()}
    if value == "megabytes":
        _talk(20)
        return "said"
    if value == "megabytes, then exit":
        _talk(20)
        os._exit(8)
    if value == "a huge answer":
        return "x" * (70 * 1024**2)
    return value


def _talk(megabytes):
    line = "x" * 1023 + "\n"
    for _ in range(megabytes):
        os.write(1, line.encode() * 1024)
