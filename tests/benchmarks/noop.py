"""The model of the benchmarks: returns what it gets."""


async def noop(payload: object) -> object:
    return payload
