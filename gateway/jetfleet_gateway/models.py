"""/v1/models: model versions in the registry."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from jetfleet import errors
from jetfleet.errors import ModelNotFound
from jetfleet.specs import ModelSpec
from jetfleet_gateway import openapi, refusals
from jetfleet_gateway.bodies import read_model
from jetfleet_gateway.door import door_of
from jetfleet_gateway.openapi import answer, operation_name, refusals_of
from jetfleet_gateway.responses import Page, json_response, page_of

EXAMPLE = {
    "name": "classify",
    "version": "1",
    "function": "classify.py:classify",
    "description": "Says what kind of text it is given",
    "example_input": {"text": "hello"},
}
CURSOR = Query(description="`next_cursor` of the page before")
LIMIT = Query(ge=1, le=1000, description="items of one page")
WRITE_ERRORS = (
    errors.InvalidRequest, refusals.NotJson, errors.PayloadTooLarge, refusals.UnsupportedMedia,
    errors.BrokerUnavailable, errors.LogFull,
)  # fmt: skip

router = APIRouter(tags=["models"], generate_unique_id_function=operation_name)


@router.get(
    "/v1/models",
    response_model=Page[ModelSpec],
    responses=refusals_of(errors.InvalidRequest, errors.BrokerUnavailable),
)
async def list_models(
    request: Request,
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, LIMIT] = 100,
) -> Page[ModelSpec]:
    """All versions of all models, by name and version. Served while the broker is away, too."""
    client = door_of(request).known()
    models = client.registry.models(client.settings.tenant)
    items, following = page_of(models, lambda model: model.ref, cursor, limit)
    return Page(items=items, next_cursor=following)


@router.post(
    "/v1/models",
    status_code=201,
    responses={
        201: answer(ModelSpec, "Registered."),
        200: answer(ModelSpec, "It was registered already, exactly so."),
        **refusals_of(*WRITE_ERRORS, errors.AlreadyExists),
    },
    openapi_extra=openapi.body_of(ModelSpec, {"function": EXAMPLE}),
)
async def register_model(request: Request) -> Response:
    """Register a model version. Versions never change: a different one is 409."""
    spec = await read_model(request, ModelSpec)
    change = await door_of(request).live().register_model(spec)
    status = 200 if change.kind == "unchanged" else 201
    headers = {"Location": f"/v1/models/{spec.name}?version={spec.version}"}
    return json_response(spec, status, headers)


@router.get(
    "/v1/models/{model}",
    response_model=ModelSpec,
    responses=refusals_of(ModelNotFound, errors.BrokerUnavailable),
)
async def show_model(
    request: Request,
    model: str,
    version: Annotated[str | None, Query(description="default: registered last")] = None,
) -> ModelSpec:
    """One version of a model."""
    client = door_of(request).known()
    spec = client.registry.model(client.settings.tenant, model, version)
    if spec is None:
        wanted = model if version is None else f"{model}:{version}"
        raise ModelNotFound(f"there is no model {wanted!r}; register it first")
    return spec
