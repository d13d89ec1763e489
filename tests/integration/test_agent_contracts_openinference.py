"""The traps of the openinference contract, against tests/models/oip_server.py."""

from __future__ import annotations

from typing import Any

import pytest

from jetfleet.specs import ContractName, ModelSpec
from jetfleet_agent.contracts import InvalidOutput, ModelError
from jetfleet_agent.runtimes import StartFailed
from models.serving import (
    anyio_backend,  # noqa: F401 - a fixture
    fake,
    serving,
    started,
)

pytestmark = pytest.mark.anyio


def oip(*options: str, **fields: Any) -> ModelSpec:
    return fake(ContractName.OPENINFERENCE, *options, **fields)


def request(**fields: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [2], "datatype": "INT64", "data": [1, 2], **fields}
    return {"inputs": [tensor]}


async def test_output_is_the_whole_answer_and_the_calls_id_goes_with_it() -> None:
    async with serving(oip()) as model:
        output = await model.call(request(), call_id="it", stream=True)
        tensor = {"name": "doubled", "shape": [2], "datatype": "INT64", "data": [2, 4]}
        assert output == {"id": "it", "model_name": "doubler/v1", "outputs": [tensor]}
        assert (await model.call({"id": "mine", **request()}))["id"] == "mine"
        assert model.chunks == []


async def test_name_that_the_server_does_not_list_is_served_name() -> None:
    async with serving(oip("--no-list", served_name="doubler/v1")) as model:
        assert (await model.call(request()))["model_name"] == "doubler/v1"


async def test_name_that_the_server_does_not_know_is_told_with_the_way_out() -> None:
    async with started(oip("--no-list", startup_timeout_s=0.8)) as model:
        with pytest.raises(StartFailed, match=r"/v2/models/model/ready: 404; served_name says"):
            await model.session.ready()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (request(shape=[3]), ModelError, "answered 400: got 2 elements, expected 3"),
        ({"inputs": {}}, ModelError, "is an inference request"),
        ({**request(), "parameters": {"do": "error with 200"}}, ModelError, "reports: not today"),
        ({**request(), "parameters": {"do": "binary"}}, InvalidOutput, "binary_data_output"),
    ],
)
async def test_errors_are_told_in_words(value: Any, error: type[Exception], message: str) -> None:
    async with serving(oip()) as model:
        with pytest.raises(error, match=message):
            await model.call(value)
        assert (await model.call(request()))["outputs"]
