"""Models and jobs over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from test_gateway_fake import JOB, MODEL, FakeClient, gateway, problem, with_job

from jetfleet.errors import BrokerUnavailable
from jetfleet.placement_specs import PlacementSpec
from jetfleet.scaling_specs import LagScaling, SloScaling
from jetfleet.specs import JobSpec, ModelSpec
from jetfleet_gateway.jobs import merge_patch
from jetfleet_gateway.responses import page_of

MODELS = "/v1/models"
JOBS = "/v1/inference_jobs"


# -- models ---------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_model_is_registered_once_and_shown_by_version() -> None:
    async with gateway(FakeClient()) as http:
        first = await http.post(MODELS, json={"name": "m", "function": "a.py:f"})
        again = await http.post(MODELS, json={"name": "m", "function": "a.py:f"})
        second = await http.post(MODELS, json={"name": "m", "version": "2", "function": "b.py:f"})
        newest = await http.get(f"{MODELS}/m")
        by_version = await http.get(first.headers["location"])
        missing = await http.get(f"{MODELS}/m", params={"version": "3"})
    assert [a.status_code for a in (first, again, second)] == [201, 200, 201]
    assert first.headers["location"] == "/v1/models/m?version=1"
    assert (newest.json()["version"], by_version.json()["version"]) == ("2", "1")
    assert ModelSpec.model_validate(first.json()).function == "a.py:f"
    assert (missing.status_code, problem(missing)["code"]) == (404, "model_not_found")


@pytest.mark.anyio
async def test_a_different_model_of_the_same_version_is_409_with_what_differs() -> None:
    async with gateway(await with_job(FakeClient())) as http:
        answer = await http.post(MODELS, json={"name": "echo", "function": "b.py:f"})
    assert (answer.status_code, problem(answer)["code"]) == (409, "already_exists")
    assert "function" in answer.json()["detail"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "A b", "function": "a.py:f"}, "name"),
        ({"name": "m"}, "body"),
        (
            {"name": "m", "function": "a.py:f", "resources": {"memory_mib": 0}},
            "resources.memory_mib",
        ),
        ({"name": "m", "function": "a.py:f", "gpu": True}, "gpu"),
    ],
)
async def test_a_malformed_model_is_400_with_the_field_named(body: Any, field: str) -> None:
    client = FakeClient()
    async with gateway(client) as http:
        answer = await http.post(MODELS, json=body)
    assert [each["field"] for each in problem(answer)["errors"]] == [field]
    assert client.registry.models("default") == []


@pytest.mark.anyio
async def test_models_are_listed_in_pages() -> None:
    client = FakeClient()
    for name in ("c", "a", "b"):
        await client.registry.register_model(ModelSpec(name=name, function="a.py:f"))
    async with gateway(client) as http:
        first = (await http.get(MODELS, params={"limit": 2})).json()
        rest = (await http.get(MODELS, params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [m["name"] for m in first["items"]] == ["a", "b"]
    assert [m["name"] for m in rest["items"]] == ["c"]
    assert rest["next_cursor"] is None


def test_a_page_ends_exactly_with_the_list() -> None:
    items = ["b", "a"]
    assert page_of(items, str, None, 2) == (["a", "b"], None)
    assert page_of(items, str, None, 1) == (["a"], "a")
    assert page_of(items, str, "b", 1) == ([], None)


# -- jobs -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_job_is_created_once_on_a_registered_model() -> None:
    client = FakeClient()
    await client.registry.register_model(MODEL)
    body = {"name": "j", "model": "echo", "max_replicas": 3}
    async with gateway(client) as http:
        created = await http.post(JOBS, json=body)
        again = await http.post(JOBS, json=body)
        shown = await http.get(created.headers["location"])
    assert created.status_code == 201
    assert (again.status_code, problem(again)["code"]) == (409, "already_exists")
    assert shown.json() == created.json()
    spec = JobSpec.model_validate(created.json()["spec"])
    assert (spec.model, spec.max_replicas) == (MODEL, 3)
    assert created.json()["enabled"] is True


@pytest.mark.anyio
@pytest.mark.parametrize("model", ["echo:1", MODEL.model_dump(mode="json")], ids=["name", "whole"])
async def test_applying_a_job_creates_then_updates_then_changes_nothing(model: Any) -> None:
    client = FakeClient()
    await client.registry.register_model(MODEL)
    async with gateway(client) as http:
        created = await http.put(f"{JOBS}/j", json={"model": model})
        updated = await http.put(f"{JOBS}/j", json={"name": "j", "model": model, "concurrency": 4})
        seq = client.registry.state.seq
        same = await http.put(f"{JOBS}/j", json={"model": model, "concurrency": 4})
        back = await http.put(f"{JOBS}/j", json=same.json()["spec"])  # what is shown can be applied
    assert [a.status_code for a in (created, updated, same, back)] == [201, 200, 200, 200]
    assert updated.json()["spec"]["concurrency"] == 4
    assert client.registry.state.seq == seq


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": "echo", "min_replicas": -1}, "min_replicas"),
        ({"model": "echo", "replicas": 2}, "replicas"),
        ({"model": {"name": "echo", "function": "nonsense"}}, "model"),
        ({"model": {"name": "echo", "function": "a.py:f", "env": {"A": 1}}}, "model.env.A"),
        ({"model": 7}, "model"),
        ({}, "model"),
        ({"model": "echo", "min_replicas": 5}, "body"),
        ({"model": "echo", "name": "other"}, "name"),
    ],
)
async def test_a_malformed_job_is_400_with_the_field_named(body: Any, field: str) -> None:
    client = FakeClient()
    await client.registry.register_model(MODEL)
    async with gateway(client) as http:
        answer = await http.put(f"{JOBS}/j", json=body)
    assert [each["field"] for each in problem(answer)["errors"]] == [field]
    assert client.registry.jobs("default") == []


@pytest.mark.anyio
async def test_a_job_on_an_unknown_model_is_404() -> None:
    client = await with_job(FakeClient())
    other = MODEL.model_copy(update={"version": "9"}).model_dump(mode="json")
    async with gateway(client) as http:
        for model in ("nope", "echo:9", other):
            answer = await http.put(f"{JOBS}/j", json={"model": model})
            assert (answer.status_code, problem(answer)["code"]) == (404, "model_not_found")


@pytest.mark.anyio
async def test_patching_a_job_changes_what_is_named_and_null_means_the_default() -> None:
    job = JOB.model_copy(update={"labels": {"team": "a", "tier": "b"}, "concurrency": 8})
    client = await with_job(FakeClient(), job)
    patch = {"max_replicas": 4, "concurrency": None, "labels": {"tier": None, "new": "c"}}
    async with gateway(client) as http:
        answer = await http.patch(
            f"{JOBS}/echo", json=patch, headers={"content-type": "application/merge-patch+json"}
        )
    spec = answer.json()["spec"]
    assert (spec["max_replicas"], spec["concurrency"]) == (4, 1)
    assert spec["labels"] == {"team": "a", "new": "c"}
    assert spec["timeout_s"] == JOB.timeout_s


@pytest.mark.anyio
async def test_what_a_job_asks_of_its_workers_is_set_and_patched_field_by_field() -> None:
    asked = {"trusted": True, "labels": {"zone": "eu"}, "apart": "owners"}
    async with gateway(await with_job(FakeClient())) as http:
        made = await http.put(f"{JOBS}/echo", json={"model": "echo", "placement": asked})
        patch = {"placement": {"trusted": None, "labels": {"disk": "ssd"}}}
        patched = await http.patch(f"{JOBS}/echo", json=patch)
        wrong = await http.patch(f"{JOBS}/echo", json={"placement": {"apart": "racks"}})
    assert made.json()["spec"]["placement"] == PlacementSpec(**asked).model_dump()
    assert patched.json()["spec"]["placement"] == (
        PlacementSpec(labels={"zone": "eu", "disk": "ssd"}, apart="owners").model_dump()
    )
    assert [each["field"] for each in problem(wrong)["errors"]] == ["placement.apart"]


@pytest.mark.anyio
async def test_patching_the_scaling_keeps_its_parameters_unless_the_policy_is_another() -> None:
    job = JOB.model_copy(update={"scaling": LagScaling(threshold=4, down_window_s=9)})
    client = await with_job(FakeClient(), job)
    async with gateway(client) as http:
        same = await http.patch(f"{JOBS}/echo", json={"scaling": {"threshold": 2}})
        other = await http.patch(
            f"{JOBS}/echo", json={"scaling": {"policy": "slo", "wait_s": 1, "lease_s": 5}}
        )
        foreign = await http.patch(f"{JOBS}/echo", json={"scaling": {"threshold": 2}})
    assert same.json()["spec"]["scaling"] == LagScaling(threshold=2, down_window_s=9).model_dump()
    assert other.json()["spec"]["scaling"] == SloScaling(wait_s=1, lease_s=5).model_dump()
    assert foreign.status_code == 400


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("patch", "field"),
    [({"min_replicas": "many"}, "min_replicas"), ({"colour": 1}, "colour"), ({"name": "x"}, "name"),
     ({"min_replicas": 3}, "body"), ({"model": None}, "model")],
)  # fmt: skip
async def test_a_patch_that_gives_no_valid_job_changes_nothing(patch: Any, field: str) -> None:
    client = await with_job(FakeClient())
    seq = client.registry.state.seq
    async with gateway(client) as http:
        answer = await http.patch(f"{JOBS}/echo", json=patch)
        unknown = await http.patch(f"{JOBS}/nope", json={})
        no_object = await http.patch(f"{JOBS}/echo", json=[1])
    assert [each["field"] for each in problem(answer)["errors"]] == [field]
    assert (unknown.status_code, no_object.status_code) == (404, 400)
    assert client.registry.state.seq == seq


def test_merging_follows_rfc_7396() -> None:
    target = {"a": "b", "c": {"d": "e", "f": "g"}}
    assert merge_patch(target, {"a": "z", "c": {"f": None}}) == {"a": "z", "c": {"d": "e"}}
    assert merge_patch({"a": [1]}, {"a": {"b": None, "c": 1}}) == {"a": {"c": 1}}
    assert merge_patch(target, ["c"]) == ["c"]


@pytest.mark.anyio
async def test_a_job_is_disabled_enabled_and_deleted() -> None:
    client = await with_job(FakeClient())
    async with gateway(client) as http:
        off = await http.post(f"{JOBS}/echo/disable", params={"reason": "maintenance"})
        refused = await http.post(f"{JOBS}/echo/run", json={"input": 1})
        on = await http.post(f"{JOBS}/echo/enable")
        gone = await http.delete(f"{JOBS}/echo")
        missing = [
            await http.get(f"{JOBS}/echo"),
            await http.delete(f"{JOBS}/echo"),
            await http.post(f"{JOBS}/echo/enable"),
            await http.post(f"{JOBS}/echo/disable"),
        ]
    assert (off.json()["enabled"], on.json()["enabled"]) == (False, True)
    assert problem(refused)["code"] == "job_disabled"
    assert (gone.status_code, gone.content) == (204, b"")
    for answer in missing:
        assert (answer.status_code, problem(answer)["code"]) == (404, "job_not_found")


@pytest.mark.anyio
async def test_the_registry_is_readable_while_the_broker_is_away_and_not_writable() -> None:
    client = await with_job(FakeClient(connected=False, refusal=BrokerUnavailable()))
    async with gateway(client) as http:
        for path in (JOBS, f"{JOBS}/echo", MODELS, f"{MODELS}/echo"):
            assert (await http.get(path)).status_code == 200
        for answer in (
            await http.put(f"{JOBS}/j", json={"model": "echo"}),
            await http.post(MODELS, json={"name": "m", "function": "a.py:f"}),
            await http.delete(f"{JOBS}/echo"),
        ):
            assert (answer.status_code, problem(answer)["code"]) == (503, "broker_unavailable")
