"""Why an invocation that waits is not started, said while one waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from jetfleet.commands.output import note
from jetfleet.errors import JetfleetError

if TYPE_CHECKING:
    from jetfleet.client import Client

FIRST_S = 2.0  # what is started by then needs no words
AGAIN_S = 5.0


@asynccontextmanager
async def explaining(client: Client, job: str) -> AsyncIterator[None]:
    """Say on stderr, meanwhile, why the job's invocations are not started; each reason once."""
    task = asyncio.create_task(_explain(client, job))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _explain(client: Client, job: str) -> None:
    from jetfleet.causes import READY
    from jetfleet.clock import utc_now
    from jetfleet.evidence import Watch

    watch, since = Watch(client), utc_now()
    said, pause = "", FIRST_S
    while True:
        await asyncio.sleep(pause)
        pause = AGAIN_S
        try:
            cause = await watch.waits_for(job, since)
        except JetfleetError:  # the broker does not answer: nothing is known
            continue
        if cause is not READY and cause.text != said:
            note(f"{job}: still waiting: {cause.text}")
            said = cause.text
