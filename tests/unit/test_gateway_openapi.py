"""The OpenAPI document: valid, complete, and true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI
from pydantic import BaseModel
from test_gateway_fake import FakeClient, gateway

from jetfleet.specs import ModelSpec
from jetfleet_gateway import bodies, cli, invocations, jobs, runs, sse
from jetfleet_gateway.app import create_app
from jetfleet_gateway.invocations import EXAMPLE as INVOCATION_EXAMPLE
from jetfleet_gateway.problems import FAILURE_STATUS, MEDIA_TYPE, TABLE, Problem
from jetfleet_gateway.responses import Accepted, Invocation, Job, RunOutcome

DOCUMENT = create_app().openapi()
MODELS: dict[str, type[BaseModel]] = {
    "RunRequest": runs.RunRequest, "ModelSpec": ModelSpec, "JobNew": jobs.JobNew,
    "JobPut": jobs.JobPut, "JobPatch": jobs.JobPatch, "Problem": Problem, "Job": Job,
    "Accepted": Accepted, "RunOutcome": RunOutcome, "Invocation": Invocation,
}  # fmt: skip
ROUTES = {
    "GET /v1/models": {200, 400, 503},
    "POST /v1/models": {200, 201, 400, 409, 413, 415, 503},
    "GET /v1/models/{model}": {200, 404, 503},
    "POST /v1/models/{model}/run": {202, 400, 404, 409, 413, 415, 422, 429, 503},
    "POST /v1/models/{model}/run_sync": {
        200, 202, 400, 404, 409, 413, 415, 422, 429, 502, 503, 504,
    },
    "GET /v1/inference_jobs": {200, 400, 503},
    "POST /v1/inference_jobs": {201, 400, 404, 409, 413, 415, 503},
    "GET /v1/inference_jobs/{job}": {200, 404, 503},
    "PUT /v1/inference_jobs/{job}": {200, 201, 400, 404, 409, 413, 415, 503},
    "PATCH /v1/inference_jobs/{job}": {200, 400, 404, 409, 413, 415, 503},
    "DELETE /v1/inference_jobs/{job}": {204, 404, 409, 503},
    "POST /v1/inference_jobs/{job}/enable": {200, 404, 409, 503},
    "POST /v1/inference_jobs/{job}/disable": {200, 400, 404, 409, 503},
    "POST /v1/inference_jobs/{job}/run": {202, 400, 404, 409, 413, 415, 422, 429, 503},
    "POST /v1/inference_jobs/{job}/run_sync": {
        200, 202, 400, 404, 409, 413, 415, 422, 429, 502, 503, 504,
    },
    "GET /v1/invocations": {200, 400, 503},
    "GET /v1/invocations/{id}": {200, 400, 404, 410, 503},
    "GET /v1/invocations/{id}/stream": {200, 404, 410, 503},
    "POST /v1/invocations/{id}/cancel": {200, 202, 400, 404, 409, 410, 503},
    "GET /v1/invocations/{id}/events": {200, 404, 410, 503},
    "GET /v1/workers": {200, 400, 503},
    "GET /v1/workers/{worker}": {200, 404, 503},
    "GET /healthz": {200},
    "GET /readyz": {200, 503},
}  # fmt: skip


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def contents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every body and answer of the document: where, and its media type object."""
    for name, operation in operations():
        answers = [operation.get("requestBody", {}), *operation["responses"].values()]
        for answer in answers:
            for media_type, content in answer.get("content", {}).items():
                yield f"{name} {media_type}", content


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_the_document_is_valid_openapi() -> None:
    OpenAPI.model_validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1")
    schemas = DOCUMENT["components"]["schemas"]
    found = set(references(DOCUMENT))
    assert "#/components/schemas/Problem" in found
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in schemas, reference


def test_every_route_is_listed_with_its_answers() -> None:
    listed = {
        name: {int(status) for status in operation["responses"] if status != "default"}
        for name, operation in operations()
    }
    assert listed == ROUTES


def test_every_error_answer_is_a_problem_with_examples_of_its_status() -> None:
    for name, operation in operations():
        for status, answer in operation["responses"].items():
            if status.startswith(("2", "default")):
                continue
            content = answer["content"][MEDIA_TYPE]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, name
            for code, example in content["examples"].items():
                document = Problem.model_validate(example["value"])
                assert (document.code, str(document.status)) == (code, status)


def test_every_operation_says_what_it_does_and_has_a_name_to_generate_clients_with() -> None:
    names = [operation["operationId"] for _, operation in operations()]
    assert len(set(names)) == len(names)
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    assert {"models", "inference_jobs", "invocations", "workers"} <= tags
    for name, operation in operations():
        assert re.match(r"^[a-z_]+$", operation["operationId"])
        assert operation["description"], name
        assert set(operation["tags"]) <= tags


def test_every_example_of_a_body_or_answer_is_valid() -> None:
    checked = 0
    for where, content in contents():
        reference = content["schema"].get("$ref", "")
        model = MODELS.get(reference.rpartition("/")[2])
        examples = [e["value"] for e in content.get("examples", {}).values()]
        examples += [content["example"]] if "example" in content else []
        for example in examples:
            if model is None:
                assert where.endswith("text/event-stream"), where
                continue
            model.model_validate(example, strict=False)
            checked += 1
    assert checked > 30
    assert set(INVOCATION_EXAMPLE) == set(Invocation.model_fields)


def test_bodies_are_documented_by_the_models_that_check_them() -> None:
    bodies = {
        name: operation["requestBody"]["content"]
        for name, operation in operations()
        if "requestBody" in operation
    }
    assert {name for name in bodies if name.endswith(("/run", "/run_sync"))} == {
        name for name in ROUTES if name.endswith(("/run", "/run_sync"))
    }
    patch = bodies["PATCH /v1/inference_jobs/{job}"]["application/merge-patch+json"]
    assert patch["schema"]["$ref"].endswith("/JobPatch")
    fields = DOCUMENT["components"]["schemas"]["JobPatch"]["properties"]
    assert fields["concurrency"]["anyOf"][0] == {"maximum": 1024, "minimum": 1, "type": "integer"}
    assert DOCUMENT["components"]["schemas"]["RunRequest"]["required"] == ["input"]


@pytest.mark.anyio
async def test_the_document_and_its_pages_are_served() -> None:
    async with gateway(FakeClient()) as http:
        assert (await http.get("/openapi.json")).json() == DOCUMENT
        assert (await http.get("/docs")).status_code == 200


# -- docs/http.md ---------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


def test_the_page_lists_every_address() -> None:
    assert set(re.findall(r"^\| `([A-Z]+ /\S+)` \|", PAGE, re.M)) == set(ROUTES)


def test_the_page_lists_every_error_with_its_status() -> None:
    listed = set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", PAGE, re.M))
    assert listed == {(str(row.status), error.code) for error, row in TABLE.items()}
    for code, status in FAILURE_STATUS.items():
        assert f"`{code}` (**{status}**)" in PAGE


def test_the_body_on_the_page_is_a_valid_one() -> None:
    (body,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    request = runs.RunRequest.model_validate_json(body)
    assert request.model_fields_set == set(runs.RunRequest.model_fields)


def test_the_page_gives_the_numbers_that_hold() -> None:
    assert f"plus {runs.WAIT_MARGIN_S:.0f} seconds" in PAGE
    assert f"every {sse.KEEP_ALIVE_S:.0f} seconds of silence" in PAGE
    assert f"up to {bodies.DROP_BYTES // 1024**2} MiB more" in PAGE
    assert f"{cli.GRACE_S} seconds (`--grace`)" in PAGE
    assert f"(at most {invocations.MAX_WAIT_S:.0f})" in PAGE
