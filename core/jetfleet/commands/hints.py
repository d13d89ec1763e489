"""Why an invocation that waits is not started, said while one waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from jetfleet.commands.output import note
from jetfleet.errors import JetfleetError

if TYPE_CHECKING:
    from jetfleet.client import Client
    from jetfleet.specs import JobSpec

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
    said, pause = "", FIRST_S
    while True:
        await asyncio.sleep(pause)
        pause = AGAIN_S
        try:
            why = await why_waiting(client, job)
        except JetfleetError:  # no projector answers: nothing is known
            continue
        if why and why != said:
            note(f"{job}: still waiting: {why}")
            said = why


async def why_waiting(client: Client, job: str) -> str:
    """Why nobody serves a job; empty when somebody does.

    Raises:
        QueryUnavailable, QueryFailed: the projections cannot be asked.
    """
    rows = (await client.query("ps", tenant=client.settings.tenant)).dicts()
    row = next((row for row in rows if row["job"] == job), None)
    if row is None or row["ready"]:
        return ""
    if row["failure"]:
        return f"its model does not start: {_line(row['failure'])}"
    if row["preparing"]:
        return "its model is being prepared"
    workers = (await client.query("workers")).dicts()
    joined = [worker for worker in workers if worker["state"] == "joined"]
    if not joined:
        return "no worker has joined; `jetfleet agent` starts one"
    if not row["wanted"]:
        return "the job wants no replicas now"
    state = client.registry.job(client.settings.tenant, job)
    return "" if state is None else _unplaced(state.spec, {worker["worker"] for worker in joined})


def _unplaced(spec: JobSpec, joined: set[str]) -> str:
    """Why none of these workers was given a replica."""
    if spec.assignment == "manual" and not joined.intersection(spec.workers):
        return f"the workers that it is assigned to are not at work: {', '.join(spec.workers)}"
    needs: dict[str, Any] = spec.model.resources.model_dump(exclude_defaults=True)
    words = ", ".join(f"{name} {value}" for name, value in needs.items())
    count = "the only worker has no" if len(joined) == 1 else f"none of {len(joined)} workers has"
    return f"{count} room for it" + (f"; its model needs {words}" if words else "")


def _line(text: str) -> str:
    """The last line of a reason, which is where an error says what it is."""
    return text.strip().splitlines()[-1] if text.strip() else text
