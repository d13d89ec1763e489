"""/v1/workers: the machines, as the projections know them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field

from jetfleet import errors
from jetfleet.errors import WorkerNotFound
from jetfleet_gateway.door import door_of
from jetfleet_gateway.models import LIMIT
from jetfleet_gateway.openapi import operation_name, refusals_of
from jetfleet_gateway.responses import Answer, Page


class Worker(Answer):
    """A machine that runs models, as its last session says. Sizes in MiB, times in UTC."""

    name: str
    state: str = Field(description="joined, draining, left or lost")
    reason: str = Field("", description="why it is draining, left or lost")
    session: str = Field(description="id of this run of its agent")
    joined_at: datetime
    changed_at: datetime
    hostname: str
    cpu_count: int
    memory_mib: int
    disk_free_mib: int
    gpus: list[dict[str, Any]] = Field(description="what NVML says of each")
    labels: dict[str, str]
    owner: str
    trusted: bool
    ephemeral: bool
    price_per_hour: float
    agent_version: str


class Replica(Answer):
    """A job's model on a worker. Times are UTC."""

    id: str
    job: str
    worker: str
    state: str = Field(
        description="assigned, preparing, ready, releasing; past ones: stopped, failed, gone"
    )
    stage: str = Field("", description="what it does while it prepares")
    reason: str = Field("", description="of a failure, or why it is gone")
    model: str
    model_version: str
    assigned_at: datetime
    ready_at: datetime | None = None
    restarts: int = 0


class WorkerDetail(Worker):
    """A worker and what it runs."""

    replicas: tuple[Replica, ...] = ()


_ERRORS = (errors.BrokerUnavailable, errors.QueryUnavailable)
_CURSOR = Query(ge=0, lt=2**63, description="`next_cursor` of the page before")
router = APIRouter(tags=["workers"], generate_unique_id_function=operation_name)


@router.get(
    "/v1/workers",
    response_model=Page[Worker],
    responses=refusals_of(errors.InvalidRequest, *_ERRORS),
)
async def list_workers(
    request: Request,
    cursor: Annotated[int | None, _CURSOR] = None,
    limit: Annotated[int, LIMIT] = 100,
) -> Page[Worker]:
    """Workers that ever joined, those that left or were lost too; last joined first."""
    client = door_of(request).live()
    # One more says whether there is a next page.
    rows = (await client.query("workers", before=cursor, limit=limit + 1)).dicts()
    page = rows[:limit]
    return Page(
        items=[Worker.model_validate(_fields(row)) for row in page],
        next_cursor=str(page[-1]["joined_seq"]) if len(rows) > limit else None,
    )


@router.get(
    "/v1/workers/{worker}",
    response_model=WorkerDetail,
    responses=refusals_of(WorkerNotFound, *_ERRORS),
)
async def show_worker(request: Request, worker: str) -> WorkerDetail:
    """One worker, with its replicas."""
    client = door_of(request).live()
    found = (await client.query("worker", name=worker)).dicts()
    if not found:
        raise WorkerNotFound(f"there is no worker {worker!r}")
    replicas = await client.query("replicas", job=None, worker=worker)
    shown = [{"id": row["replica"], **row} for row in replicas.dicts()]
    return WorkerDetail.model_validate({**_fields(found[0]), "replicas": shown})


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": row["worker"], **row}
