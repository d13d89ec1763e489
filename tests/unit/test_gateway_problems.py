"""Every row of the error table, as an HTTP answer."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from test_gateway_fake import FakeClient, gateway, problem, with_job

from jetfleet import errors
from jetfleet.errors import JetfleetError
from jetfleet_gateway import problems, refusals
from jetfleet_gateway.openapi import specimen
from jetfleet_gateway.problems import TABLE, problem_of, row_of

RUN = "/v1/inference_jobs/echo/run_sync"


OURS = {"jetfleet", "jetfleet_gateway"}


def all_errors(base: type[JetfleetError] = JetfleetError) -> list[type[JetfleetError]]:
    """Of core and the gateway; not of commands, nor of other packages that tests have loaded."""
    ours = [
        c
        for c in base.__subclasses__()
        if c.__module__.split(".")[0] in OURS and not c.__module__.startswith("jetfleet.commands")
    ]
    return [base, *(each for sub in ours for each in all_errors(sub))]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", list(TABLE), ids=lambda kind: kind.__name__)
async def test_an_error_of_this_row_becomes_its_problem_document(kind: type[JetfleetError]) -> None:
    error, row = specimen(kind), TABLE[kind]
    client = await with_job(FakeClient(refusal=error))
    async with gateway(client) as http:
        answer = await http.post(RUN, json={"input": 1})
    document = problem(answer)
    assert answer.status_code == row.status
    assert document["title"] == row.title
    assert document["code"] == error.code
    assert ("retry-after" in answer.headers) is row.retry
    assert client.works == {}  # a refused request leaves nothing behind


@pytest.mark.anyio
async def test_what_operators_must_know_goes_to_the_log_and_not_to_users(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = FakeClient(refusal=errors.BrokerUnavailable("nats://10.0.0.7:4222 refused us"))
    with caplog.at_level(logging.WARNING, "jetfleet.gateway"):
        async with gateway(await with_job(client)) as http:
            answer = await http.post(RUN, json={"input": 1})
    assert "10.0.0.7" not in answer.text
    assert "10.0.0.7" in caplog.text
    assert answer.headers["traceparent"] in caplog.text


@pytest.mark.anyio
async def test_a_defect_is_answered_500_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    client = await with_job(FakeClient())

    async def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("secret")

    client.submit = broken  # type: ignore[method-assign]  # a defect, made on purpose
    async with gateway(client) as http:
        answer = await http.post(RUN, json={"input": 1})
    assert problem(answer)["code"] == "internal_error"
    assert "secret" not in answer.text
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.mark.anyio
async def test_the_wait_of_a_full_queue_is_in_whole_seconds() -> None:
    client = await with_job(FakeClient(refusal=errors.QueueFull(retry_after_s=2.2)))
    async with gateway(client) as http:
        answer = await http.post("/v1/inference_jobs/echo/run", json={"input": 1})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"


@pytest.mark.anyio
async def test_an_unknown_address_and_a_wrong_method_are_problems_too() -> None:
    async with gateway(FakeClient()) as http:
        unknown = await http.get("/v2/everything")
        wrong = await http.delete("/v1/models")
    assert problem(unknown)["code"] == "route_not_found"
    assert problem(wrong)["code"] == "method_not_allowed"
    assert wrong.status_code == 405
    assert "POST" in wrong.headers["allow"] or "GET" in wrong.headers["allow"]


@pytest.mark.anyio
async def test_a_wrong_parameter_is_named() -> None:
    async with gateway(FakeClient()) as http:
        limit = await http.get("/v1/models", params={"limit": 0})
        state = await http.get("/v1/invocations", params={"state": "lost"})
        unknown = await http.get("/v1/invocations", params={"jobs": "echo"})
    assert [e["field"] for e in problem(limit)["errors"]] == ["limit"]
    assert [e["field"] for e in problem(state)["errors"]] == ["state"]
    assert problem(unknown)["errors"] == [{"field": "jobs", "message": "there is no such field"}]


def test_every_error_of_core_has_a_row_of_its_own_or_of_an_ancestor() -> None:
    for kind in all_errors():
        assert row_of(kind).status in range(400, 600)


def test_only_defects_of_ours_are_answered_500() -> None:
    """A new error class must be given a status here, or be one that no request can meet."""
    internal = {kind.__name__ for kind in all_errors() if row_of(kind).status == 500}
    assert internal <= {
        "JetfleetError", "ApiError", "WrongSequence", "NoResponders", "QueryFailed",
        "OutcomePending", "MissingExtra", "StartupError", "InternalError",
        "BadToken",  # of joining, which other tests may have loaded
    }  # fmt: skip


def test_codes_are_unique() -> None:
    codes: dict[str, type[JetfleetError]] = {}
    for kind in all_errors():
        if kind is refusals.InvalidFields:
            continue  # InvalidRequest with the fields named
        assert codes.setdefault(kind.code, kind) is kind, kind


def test_every_row_says_what_happened_in_its_own_words() -> None:
    titles = [row.title for row in TABLE.values()]
    assert len(set(titles)) == len(titles)
    for kind in TABLE:
        document = problem_of(specimen(kind))
        assert document.detail != document.title
        assert problems.TYPE_PREFIX in document.type
