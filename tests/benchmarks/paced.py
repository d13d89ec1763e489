"""A model that is as fast as its worker: the environment of the agent says how long a run takes."""

import os
import time

RUN_S = float(os.environ["PACE_S"])


def paced(payload: object) -> object:
    time.sleep(RUN_S)
    return payload
