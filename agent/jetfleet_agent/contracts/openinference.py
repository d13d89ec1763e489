"""The openinference contract: the Open Inference Protocol v2, of Triton, KServe and MLServer."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from jetfleet_agent.contracts import Call, InvalidOutput, ModelError
from jetfleet_agent.contracts.http import (
    HttpContract,
    HttpSession,
    dump,
    parse,
    refusal,
    reported,
)

USUAL_PORT = 8080


class OpenInferenceSession(HttpSession):
    """Calls one model of the server. There is no streaming and no cancellation."""

    _path = ""

    async def _probe(self) -> str | None:
        status = await self._get("/v2/health/ready")
        if status != 200:
            return f"GET /v2/health/ready: {status}"
        name = self._model.served_name or await self._first_model() or self._model.name
        self._path = f"/v2/models/{quote(name, safe='')}"
        status = await self._get(f"{self._path}/ready")
        if status != 200:
            return f"GET {self._path}/ready: {status}; served_name says how it is called there"
        return None

    async def _first_model(self) -> str | None:
        """The first name that the server lists, where it has such a page (KServe)."""
        try:
            first = (await self._get_json("/v2/models"))["models"][0]
        except (LookupError, TypeError):
            return None
        name = first.get("name") if isinstance(first, dict) else first
        return name if isinstance(name, str) and name else None

    async def cancel(self, call_id: str) -> bool:
        """See ``Session``. False: servers compute on when the connection is closed."""
        return call_id not in self._calls

    async def _request(self, call: Call) -> bytes:
        async with await self._answer(f"{self._path}/infer", request_of(call)) as response:
            if not 200 <= response.status < 300:
                raise await refusal(response)
            output = await self._read(response)
            if "Inference-Header-Content-Length" in response.headers:
                raise InvalidOutput(
                    "the server answered binary tensors, because the input asks for them"
                    " (binary_data_output); without that it answers JSON"
                )
        document = parse(output)
        if isinstance(document, dict) and document.get("error"):
            raise reported(document["error"])
        return output


class OpenInferenceContract(HttpContract):
    """See ``HttpContract``."""

    usual_port = USUAL_PORT
    session_type = OpenInferenceSession


def request_of(call: Call) -> bytes:
    """The body of the request: the input, with the call's id where it has none.

    Raises ModelError when the input is no request.
    """
    body: Any = json.loads(call.input)
    if not isinstance(body, dict) or not isinstance(body.get("inputs"), list):
        raise ModelError(
            "the input of a model with the openinference contract is an inference request:"
            ' {"inputs": [{"name": ..., "shape": [...], "datatype": ..., "data": [...]}]}'
        )
    return call.input if "id" in body else dump({"id": call.id, **body})
