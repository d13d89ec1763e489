"""A predictor whose setup fails, as it does without its weights."""

from cog import BasePredictor


class Predictor(BasePredictor):
    def setup(self) -> None:
        raise FileNotFoundError("weights.bin is not there")

    def predict(self, text: str) -> str:
        return text
