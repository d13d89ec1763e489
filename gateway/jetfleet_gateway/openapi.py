"""The OpenAPI document, kept true where a route reads raw bodies and answers bytes.

Routes that read their bodies themselves (``bodies.read_model``) and all error answers declare
their schemas by reference; ``document`` puts the referenced models in.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from pydantic_core import to_json

from jetfleet import errors
from jetfleet.errors import JetfleetError
from jetfleet.events import Failure, InvocationCancelled, InvocationExpired, InvocationFailed
from jetfleet.stamp import Stamp
from jetfleet_gateway import problems, refusals
from jetfleet_gateway.problems import Problem, row_of

_REF = "#/components/schemas/"
_PROBLEM: Mapping[str, Any] = {"$ref": _REF + "Problem"}
Responses = dict[int | str, dict[str, Any]]

TAGS = [
    {"name": "inference_jobs", "description": "Endpoints with a queue; run something through one."},
    {"name": "models", "description": "Model versions; immutable once registered."},
    {"name": "invocations", "description": "Requests to jobs: what became of them, and streams."},
    {"name": "workers", "description": "Machines that run models."},
    {"name": "health", "description": "For supervisors and load balancers."},
]

EXAMPLE_ID = "01926f3e-5c1a-7b52-9d0e-3a4b5c6d7e8f"


def operation_name(route: APIRoute) -> str:
    """The operationId of a route: the name of its function, which clients are generated with."""
    return route.name


def body_of(
    model: type[BaseModel], examples: Mapping[str, Any], media_type: str = "application/json"
) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads a ``model`` from its body. Examples must be valid."""
    for value in examples.values():
        model.model_validate_json(to_json(value))
    return {
        "requestBody": {
            "required": True,
            "content": {
                media_type: {
                    "schema": {"$ref": _REF + model.__name__},
                    "examples": {name: {"value": value} for name, value in examples.items()},
                }
            },
        }
    }


def header(name: str, description: str) -> dict[str, Any]:
    """A parameter of a route that reads its headers itself."""
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
    }


def answer(
    model: type[BaseModel] | Any, description: str, example: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A successful JSON answer."""
    content = {} if example is None else {"content": {"application/json": {"example": example}}}
    return {"model": model, "description": description, **content}


def refusals_of(*errors: type[JetfleetError]) -> Responses:
    """The error answers of a route, by status, and what any route may answer besides."""
    by_status: Responses = {}
    for error in errors:
        problem = problems.problem_of(specimen(error))
        response = by_status.setdefault(problem.status, _problem_response(problem.title))
        titles = response["description"]
        if problem.title not in titles:
            response["description"] = f"{titles}; {problem.title[0].lower()}{problem.title[1:]}"
        value = problem.model_dump(exclude_none=True)
        examples = response["content"][problems.MEDIA_TYPE]["examples"]
        examples[error.code] = {"summary": problem.title, "value": value}
        if row_of(error).retry:
            response["headers"] = {
                "Retry-After": {"description": "seconds", "schema": {"type": "integer"}}
            }
    internal = _problem_response("Any other failure")
    del internal["content"][problems.MEDIA_TYPE]["examples"]
    return {**by_status, "default": internal}


def _problem_response(description: str) -> dict[str, Any]:
    content = {problems.MEDIA_TYPE: {"schema": dict(_PROBLEM), "examples": {}}}
    return {"description": description, "content": content}


def document(app: FastAPI, referenced: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    """The whole document. ``referenced``: models that routes name by reference only."""
    made = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=TAGS,
        servers=app.servers,
        license_info=app.license_info,
        separate_input_output_schemas=False,
    )
    models: list[tuple[type[BaseModel], Literal["validation"]]] = [(Problem, "validation")]
    models += [(model, "validation") for model in referenced]
    _, found = models_json_schema(models, ref_template=_REF + "{model}")
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for name, schema in found["$defs"].items():
        schemas.setdefault(name, schema)
    return made


def specimen(error: type[JetfleetError]) -> JetfleetError:
    """An error of this class, as the examples show it."""
    if issubclass(error, errors.InvocationError):
        return _ended(error)
    if error is errors.InvalidRequest:
        return refusals.InvalidFields([("timeout_s", "Input should be greater than 0")])
    return error()


def _ended(error: type[errors.InvocationError]) -> errors.InvocationError:
    envelope = Stamp("worker/gpu-1")("default", correlation=EXAMPLE_ID)
    said: dict[str, Any] = {"invocation": EXAMPLE_ID, "job": "classify"}
    if error is errors.InvocationCancelled:
        cancelled = InvocationCancelled.Data(**said, reason="not needed any more")
        return error(
            f"invocation {EXAMPLE_ID} was cancelled: not needed any more",
            outcome=InvocationCancelled(**envelope, data=cancelled),
        )
    if error is errors.InvocationExpired:
        expired = InvocationExpired.Data(**said, expires_at=datetime(2026, 1, 1, tzinfo=UTC))
        return error(
            f"no worker started invocation {EXAMPLE_ID} before its time-to-live ended",
            outcome=InvocationExpired(**envelope, data=expired),
        )
    failure = Failure(code="model_error", message="ValueError: no such label")
    failed = InvocationFailed.Data(**said, worker="gpu-1", attempt=1, error=failure)
    return error(
        f"{failure.code}: {failure.message}", outcome=InvocationFailed(**envelope, data=failed)
    )
