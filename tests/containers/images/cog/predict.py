"""A predictor as users of Cog write it: one function, with ways to be slow and to fail."""

import os
import sys
import time

from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def setup(self) -> None:
        time.sleep(float(os.environ.get("SETUP_S", "0")))
        print("set up", flush=True)

    def predict(
        self,
        text: str = Input(description="given back"),
        times: int = Input(description="how often", default=1, ge=1, le=1000),
        sleep_s: float = Input(description="before it answers", default=0.0),
        fail: bool = Input(description="raise", default=False),
        leave: bool = Input(description="end the process", default=False),
    ) -> str:
        print(f"predicting {text!r}")
        ends = time.monotonic() + sleep_s
        while time.monotonic() < ends:  # in steps, so that a cancellation gets in between
            time.sleep(min(0.05, sleep_s))
        if fail:
            raise ValueError(f"no good: {text}")
        if leave:
            sys.stdout.flush()
            os._exit(3)
        return text * times
