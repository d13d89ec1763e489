"""Reading bodies: limits, compression, JSON and nothing else."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from test_gateway_fake import FakeClient, gateway, problem, with_job

from jetfleet.errors import JetfleetError, PayloadTooLarge
from jetfleet_gateway import bodies
from jetfleet_gateway.bodies import read_body
from jetfleet_gateway.refusals import NotJson, UnsupportedEncoding, UnsupportedMedia

RUN = "/v1/inference_jobs/echo/run_sync"
JSON = {"content-type": "application/json"}


class Sender:
    """A client that sends pieces, and counts how many were taken."""

    def __init__(self, *pieces: bytes, then: str = "end") -> None:
        self.pieces, self.then, self.taken = list(pieces), then, 0

    async def __call__(self) -> dict[str, Any]:
        if self.taken == len(self.pieces):
            return {"type": "http.disconnect"}
        piece = self.pieces[self.taken]
        self.taken += 1
        more = self.taken < len(self.pieces) or self.then != "end"
        return {"type": "http.request", "body": piece, "more_body": more}


def request(sender: Sender, **headers: str) -> Request:
    raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in {**JSON, **headers}.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, sender)  # type: ignore[arg-type]  # plain dicts


@pytest.mark.anyio
async def test_pieces_are_put_together() -> None:
    assert await read_body(request(Sender(b"[1,", b"", b"2]")), 100) == b"[1,2]"


@pytest.mark.anyio
async def test_a_declared_length_over_the_limit_is_refused_before_anything_is_kept() -> None:
    sender = Sender(b"x" * 50)
    with pytest.raises(PayloadTooLarge, match="larger than the 10 bytes"):
        await read_body(request(sender, content_length="50"), 10)


@pytest.mark.anyio
async def test_a_client_that_waits_for_100_continue_is_refused_before_it_sends() -> None:
    sender = Sender(b"x" * 50)
    with pytest.raises(PayloadTooLarge):
        await read_body(request(sender, content_length="50", expect="100-continue"), 10)
    assert sender.taken == 0


@pytest.mark.anyio
async def test_an_endless_body_is_given_up_after_a_bounded_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "DROP_BYTES", 100)
    sender = Sender(*[b"x" * 10] * 1000, then="more")
    with pytest.raises(PayloadTooLarge):
        await read_body(request(sender), 50)
    assert sender.taken <= 5 + 1 + 10 + 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_compressed_bodies_are_read(encoding: str, compress: Any) -> None:
    text = b'{"input":"' + b"a" * 5000 + b'"}'
    data = compress(text)
    sender = Sender(data[:7], data[7:20], data[20:])
    assert await read_body(request(sender, content_encoding=encoding), 10_000) == text


@pytest.mark.anyio
async def test_gzip_members_one_after_the_other_are_one_body() -> None:
    sender = Sender(gzip.compress(b"[1,") + gzip.compress(b"2]"))
    assert await read_body(request(sender, content_encoding="gzip"), 100) == b"[1,2]"


@pytest.mark.anyio
async def test_a_compression_bomb_ends_at_the_limit() -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    pieces = [bomb[i : i + 1000] for i in range(0, len(bomb), 1000)]
    sender = Sender(*pieces)
    with pytest.raises(PayloadTooLarge):
        await read_body(request(sender, content_encoding="gzip"), 10_000)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("data", "message"),
    [(b"not gzip at all", "is not gzip"), (gzip.compress(b"[1]" * 50)[:-9], "ends too early")],
)
async def test_broken_compression_is_the_clients_error(data: bytes, message: str) -> None:
    with pytest.raises(NotJson, match=message):
        await read_body(request(Sender(data), content_encoding="gzip"), 1000)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"content_encoding": "br"}, UnsupportedEncoding),
        ({"content_type": "text/plain"}, UnsupportedMedia),
        ({"content_type": "application/x-www-form-urlencoded"}, UnsupportedMedia),
    ],
)
async def test_what_is_not_json_is_not_even_read(
    headers: dict[str, str], error: type[JetfleetError]
) -> None:
    merged = {"content-type": "application/json"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    sender = Sender(b"{}")
    raw = [(k.encode(), v.encode()) for k, v in merged.items()]
    with pytest.raises(error):
        await read_body(Request({"type": "http", "headers": raw}, sender), 100)  # type: ignore[arg-type]  # as above
    assert sender.taken == 0


@pytest.mark.anyio
async def test_a_client_that_goes_away_in_mid_body_ends_the_reading() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(request(Sender(b"{", then="gone")), 100)


# -- through HTTP ---------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"input": 1, "timeout": 3}', "timeout"),
        (b'{"timeout_s": 3}', "input"),
        (b'{"input": 1, "timeout_s": "3"}', "timeout_s"),
        (b'{"input": 1, "timeout_s": -1}', "timeout_s"),
        (b'{"input": 1, "ttl_s": 0}', "ttl_s"),
        (b'{"input": 1, "wait_s": -1}', "wait_s"),
        (b'{"input": 1, "stream": "yes"}', "stream"),
        (b'{"input": 1, "timeout_s": 21}', "timeout_s"),
        (b'{"input": 1, "ttl_s": 61}', "ttl_s"),
        (b'{"input": 1, "priority": "high"}', "priority"),
        (b'{"input": 1, "priority": 1}', "priority"),
        (b"[1]", "body"),
    ],
)
async def test_a_malformed_body_is_400_with_the_field_named(body: bytes, field: str) -> None:
    client = await with_job(FakeClient())
    async with gateway(client) as http:
        for path in (RUN, "/v1/inference_jobs/echo/run", "/v1/models/echo/run"):
            answer = await http.post(path, content=body, headers=JSON)
            document = problem(answer)
            assert (answer.status_code, document["code"]) == (400, "invalid_request")
            assert [each["field"] for each in document["errors"]] == [field]
    assert client.works == {}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"hello", b'{"input": NaN}', b'{"input": [-Infinity]}', b'{"input": "\xff"}',
        b'{"input": "\\ud800"}', b'{"input": ' + b"[" * 50, b'{"input": 1} {}',
    ],
)  # fmt: skip
async def test_what_is_not_json_is_400(body: bytes) -> None:
    client = await with_job(FakeClient())
    async with gateway(client) as http:
        answer = await http.post(RUN, content=body, headers=JSON)
    assert (answer.status_code, problem(answer)["code"]) == (400, "not_json")
    assert client.works == {}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "value", [b"[" * 300 + b"]" * 300, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"9" * 4301]
)
async def test_json_that_the_parser_gives_up_on_is_said_to_be_beyond_the_limits(
    value: bytes,
) -> None:
    client = await with_job(FakeClient())
    async with gateway(client) as http:
        answer = await http.post(RUN, content=b'{"input": ' + value + b"}", headers=JSON)
    document = problem(answer)
    assert (answer.status_code, document["code"]) == (400, "beyond_limits")
    assert [each["field"] for each in document["errors"]] == ["input"]
    assert client.works == {}


@pytest.mark.anyio
async def test_text_that_speaks_of_nan_is_json() -> None:
    async with gateway(await with_job(FakeClient())) as http:
        answer = await http.post(RUN, json={"input": "NaN or Infinity"})
    assert answer.json()["output"] == "NaN or Infinity"


@pytest.mark.anyio
async def test_a_body_over_the_limit_is_413_and_leaves_nothing_behind() -> None:
    client = await with_job(FakeClient())
    size = client.settings.payload_limit + bodies.ENVELOPE_BYTES

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"input": "'
        for _ in range(size // 1000 + 2):
            yield b"a" * 1000

    async with gateway(client) as http:
        declared = await http.post(RUN, content=b"a" * (size + 1), headers=JSON)
        streamed = await http.post(RUN, content=pieces(), headers=JSON)
        bomb = gzip.compress(b'"' + b"a" * (size * 20) + b'"')
        inflated = await http.post(RUN, content=bomb, headers={**JSON, "content-encoding": "gzip"})
    for answer in (declared, streamed, inflated):
        assert (answer.status_code, problem(answer)["code"]) == (413, "payload_too_large")
        assert answer.headers["connection"] == "close"
    assert client.works == {}


@pytest.mark.anyio
async def test_other_media_types_and_encodings_are_415() -> None:
    async with gateway(await with_job(FakeClient())) as http:
        form = await http.post(RUN, data={"input": "1"})
        untyped = await http.post(RUN, content=b'{"input": 1}')
        brotli = await http.post(RUN, content=b"x", headers={**JSON, "content-encoding": "br"})
        vendor = await http.post(
            RUN, content=b'{"input": 1}', headers={"content-type": "application/vnd.x+json; v=1"}
        )
    assert problem(form)["code"] == problem(untyped)["code"] == "unsupported_media_type"
    assert problem(brotli)["code"] == "unsupported_content_encoding"
    assert "gzip" in brotli.headers["accept-encoding"]
    assert vendor.status_code == 200
