"""A model that takes a minute to load."""

import time

print("loading", flush=True)
time.sleep(60)


def echo(value):
    return value
