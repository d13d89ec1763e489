"""The traps of the sagemaker contract, against tests/models/sagemaker_server.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jetfleet.specs import ContractName
from jetfleet_agent.contracts import CallCancelled, InvalidOutput, ModelError
from models.serving import (
    Served,
    anyio_backend,  # noqa: F401 - a fixture
    both_loops,
    fake,
    serving,
)
from waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def model(tmp_path: Path) -> AsyncIterator[Served]:
    spec = fake(ContractName.SAGEMAKER, env={"NOTE": str(tmp_path / "note")})
    async with serving(spec, max_output_bytes=1_000_000) as served:
        yield served


async def test_text_is_a_string_and_json_is_seen_without_its_name(model: Served) -> None:
    assert await model.call({"text": "csv"}) == "0.25,0.75\n"
    assert await model.call({"text": "unnamed"}) == [1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("events", [{"token": "a"}, "plain words"]),
        ("lines", [{"n": 1}, {"n": 2}, {"n": 3}]),
    ],
)
async def test_answer_in_pieces_is_their_list(
    model: Served, text: str, pieces: list[Any], stream: bool
) -> None:
    assert await model.call({"text": text}, stream=stream) == pieces
    assert model.chunks == (pieces if stream else [])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("image", InvalidOutput, "image/png, which is neither JSON nor text"),
        ("strange charset", InvalidOutput, "'martian', which is unknown"),
        ("words in lines", InvalidOutput, "not JSON"),
        ("flood of lines", InvalidOutput, "over 1000000 bytes"),
        ("error in events", ModelError, "reports: out of cache"),
        ("cut in stream", ModelError, "broke"),
    ],
)
async def test_other_answers_are_errors(
    model: Served, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await model.call({"text": text}, stream=True)
    assert await model.call({"text": "next"}) == {"text": {"text": "next"}}


@both_loops
async def test_answer_in_pieces_is_cancelled_by_closing_its_connection(
    model: Served, tmp_path: Path
) -> None:
    call = asyncio.create_task(model.call({"text": "endless"}, call_id="it", stream=True))
    await until(lambda: bool(model.chunks), "it streams")
    assert await model.session.cancel("it") is True
    with pytest.raises(CallCancelled):
        await call
    await until((tmp_path / "note").exists, "the server noticed")
