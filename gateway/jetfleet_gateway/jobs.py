"""/v1/inference_jobs: endpoints with a queue, each on a snapshot of a model version."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Discriminator, Field, RootModel, Tag, create_model
from pydantic.fields import FieldInfo
from pydantic_core import to_json
from starlette.responses import Response

from jetfleet import errors
from jetfleet.catalog import JobState
from jetfleet.client import Client
from jetfleet.errors import JobNotFound, ModelNotFound
from jetfleet.specs import JobSettings, JobSpec, ModelSpec, Name
from jetfleet_gateway import openapi
from jetfleet_gateway.bodies import parse, read_model
from jetfleet_gateway.door import door_of
from jetfleet_gateway.models import CURSOR, LIMIT, WRITE_ERRORS
from jetfleet_gateway.models import EXAMPLE as MODEL_EXAMPLE
from jetfleet_gateway.openapi import answer, operation_name, refusals_of
from jetfleet_gateway.refusals import InvalidFields
from jetfleet_gateway.responses import Job, Page, json_response, page_of

ModelChoice = Annotated[
    Annotated[ModelSpec, Tag("<spec>")] | Annotated[str, Tag("<ref>")],
    # Tags in angle brackets are left out of field names (see bodies.field_name).
    Discriminator(lambda value: "<ref>" if isinstance(value, str) else "<spec>"),
    Field(description="`name` (its newest version), `name:version`, or the whole model"),
]


class JobPut(JobSettings):
    """A job as it shall be; its name is in the address."""

    name: Name | None = Field(None, description="if given, the same as in the address")
    model: ModelChoice


class JobNew(JobSettings):
    """A job to open."""

    name: Name
    model: ModelChoice


def _optional(field: FieldInfo) -> Any:
    """The type and default of a field that may be left out."""
    kind: Any = field.annotation
    if field.metadata:
        kind = Annotated[(kind, *field.metadata)]
    return kind | None, Field(None, description=field.description)


JobPatch = create_model(
    "JobPatch",
    __config__=JobSettings.model_config,
    __doc__="Changes of a job (RFC 7396): what is left out stays, null means the default again.",
    model=(ModelChoice | None, None),
    **{name: _optional(field) for name, field in JobSettings.model_fields.items()},
)


class Patch(RootModel[dict[str, Any]]):
    """A JSON merge patch before it is merged; the result is validated, with the field named."""


SPEC_EXAMPLE = {"name": "classify", "model": "classify:1", "min_replicas": 1, "max_replicas": 2}
EXAMPLE = {
    "name": "classify",
    "tenant": "default",
    "enabled": True,
    "created_at": "2026-01-01T00:00:00Z",
    "created_seq": 2,
    "updated_seq": 2,
    "spec": {**SPEC_EXAMPLE, "model": MODEL_EXAMPLE},
}
_JOB = answer(Job, "The job as it is now.", EXAMPLE)
_SWITCH_ERRORS = (JobNotFound, errors.Conflict, errors.BrokerUnavailable, errors.LogFull)

router = APIRouter(tags=["inference_jobs"], generate_unique_id_function=operation_name)


@router.get(
    "/v1/inference_jobs",
    response_model=Page[Job],
    responses=refusals_of(errors.InvalidRequest, errors.BrokerUnavailable),
)
async def list_jobs(
    request: Request,
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 100,
) -> Page[Job]:
    """Jobs by name. Served while the broker is away, too."""
    client = door_of(request).known()
    jobs = client.registry.jobs(client.settings.tenant)
    items, following = page_of(jobs, lambda job: job.spec.name, cursor, limit)
    return Page(items=[Job.of(job) for job in items], next_cursor=following)


@router.post(
    "/v1/inference_jobs",
    status_code=201,
    responses={
        201: {**_JOB, "description": "Created."},
        **refusals_of(*WRITE_ERRORS, ModelNotFound, errors.AlreadyExists),
    },
    openapi_extra=openapi.body_of(JobNew, {"job": SPEC_EXAMPLE}),
)
async def create_job(request: Request) -> Response:
    """Open a job; 409 when one of its name is open."""
    new = await read_model(request, JobNew)
    client = door_of(request).live()
    await client.create_job(_spec(client, new, new.name))
    return _answer(client, new.name, created=True)


@router.get(
    "/v1/inference_jobs/{job}",
    response_model=Job,
    responses={200: _JOB, **refusals_of(JobNotFound, errors.BrokerUnavailable)},
)
async def show_job(request: Request, job: str) -> Job:
    """A job and its settings."""
    return Job.of(_state(door_of(request).known(), job))


@router.put(
    "/v1/inference_jobs/{job}",
    responses={
        200: {**_JOB, "description": "Updated, or so already."},
        201: {**_JOB, "description": "Created."},
        **refusals_of(*WRITE_ERRORS, ModelNotFound, errors.Conflict),
    },
    openapi_extra=openapi.body_of(JobPut, {"job": SPEC_EXAMPLE}),
)
async def apply_job(request: Request, job: str) -> Response:
    """Bring a job to this state, creating it where needed; the same again changes nothing."""
    put = await read_model(request, JobPut)
    client = door_of(request).live()
    change = await client.apply_job(_spec(client, put, job))
    return _answer(client, job, created=change.kind == "created")


@router.patch(
    "/v1/inference_jobs/{job}",
    responses={
        200: _JOB,
        **refusals_of(*WRITE_ERRORS, JobNotFound, ModelNotFound, errors.Conflict),
    },
    openapi_extra=openapi.body_of(
        JobPatch, {"scale": {"max_replicas": 4}}, "application/merge-patch+json"
    ),
)
async def patch_job(request: Request, job: str) -> Response:
    """Change some settings (JSON merge patch, also as `application/json`)."""
    patch = (await read_model(request, Patch)).root
    client = door_of(request).live()
    present = _state(client, job).spec.model_dump(mode="json")
    scaling = patch.get("scaling")
    if isinstance(scaling, dict) and scaling.get("policy") not in (
        None, present["scaling"]["policy"],
    ):  # fmt: skip
        del present["scaling"]  # the parameters of one policy mean nothing to another
    merged = parse(JobPut, to_json(merge_patch(present, patch)))
    await client.apply_job(_spec(client, merged, job))
    return _answer(client, job, created=False)


@router.delete(
    "/v1/inference_jobs/{job}", status_code=204, response_class=Response,
    responses=refusals_of(*_SWITCH_ERRORS),
)  # fmt: skip
async def delete_job(request: Request, job: str) -> Response:
    """Remove a job; its replicas are released, what is still queued is cancelled."""
    await door_of(request).live().delete_job(job)
    return Response(status_code=204)


@router.post(
    "/v1/inference_jobs/{job}/enable",
    response_model=Job,
    responses={200: _JOB, **refusals_of(*_SWITCH_ERRORS)},
)
async def enable_job(request: Request, job: str) -> Job:
    """Accept invocations again."""
    client = door_of(request).live()
    await client.enable_job(job)
    return Job.of(_state(client, job))


@router.post(
    "/v1/inference_jobs/{job}/disable",
    response_model=Job,
    responses={200: _JOB, **refusals_of(errors.InvalidRequest, *_SWITCH_ERRORS)},
)
async def disable_job(
    request: Request,
    job: str,
    reason: Annotated[str, Query(max_length=500, description="kept in the log")] = "",
) -> Job:
    """Refuse new invocations (409); what is queued is still served."""
    client = door_of(request).live()
    await client.disable_job(job, reason)
    return Job.of(_state(client, job))


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: objects are merged, null removes, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def _state(client: Client, job: str) -> JobState:
    state = client.registry.job(client.settings.tenant, job)
    if state is None:
        raise JobNotFound(f"there is no inference job {job!r}; create it first")
    return state


def _spec(client: Client, body: JobNew | JobPut, job: str) -> JobSpec:
    """The job's specification, a reference to a model replaced by that model as registered."""
    if body.name not in (None, job):
        raise InvalidFields([("name", f"the address says {job!r}, the body {body.name!r}")])
    model = body.model if isinstance(body.model, ModelSpec) else _model(client, body.model)
    fields = {name: getattr(body, name) for name in JobSettings.model_fields}
    return parse(JobSpec, to_json({**fields, "name": job, "model": model}))


def _model(client: Client, reference: str) -> ModelSpec:
    name, _, version = reference.partition(":")
    model = client.registry.model(client.settings.tenant, name, version or None)
    if model is None:
        raise ModelNotFound(f"there is no model {reference!r}; register it first")
    return model


def _answer(client: Client, job: str, *, created: bool) -> Response:
    headers = {"Location": f"/v1/inference_jobs/{job}"}
    return json_response(Job.of(_state(client, job)), 201 if created else 200, headers)
