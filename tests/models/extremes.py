"""Functions whose answers are at the edge of what can be read, or beyond."""

import functools
import os


def nest(levels):
    return functools.reduce(lambda inner, _: [inner], range(levels - 1), [])


def digits(count):
    return {"n": 10 ** (count - 1)}


def raise_half_a_surrogate(_):
    raise ValueError("\ud800 bad")


def raise_odd_file_name(_):
    raise FileNotFoundError(2, "no such file", os.fsdecode(b"caf\xe9.txt"))


def speak(sizes):
    for size in sizes:
        yield "x" * size
