"""A predictor that yields its output piece by piece."""

import time

from cog import BasePredictor, ConcatenateIterator, Input, streaming


class Predictor(BasePredictor):
    @streaming
    def predict(
        self,
        text: str = Input(description="its words are yielded"),
        pause_s: float = Input(description="before each word", default=0.05),
        fail_after: int = Input(description="words before it raises; -1: never", default=-1),
    ) -> ConcatenateIterator[str]:
        for number, word in enumerate(text.split()):
            if number == fail_after:
                raise ValueError(f"no good after {number} words")
            time.sleep(pause_s)
            yield word + " "
