"""An asynchronous predictor with two predictions at once, cancelled in the middle of a wait."""

import asyncio

from cog import BasePredictor, Input, concurrent


class Predictor(BasePredictor):
    @concurrent(max=2)
    async def predict(
        self,
        text: str = Input(description="given back"),
        sleep_s: float = Input(description="before it answers", default=0.0),
    ) -> str:
        try:
            await asyncio.sleep(sleep_s)
        except asyncio.CancelledError:
            print("cancelled in time", flush=True)
            raise
        return text
