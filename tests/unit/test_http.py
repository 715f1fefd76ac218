from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from threading import Event
from typing import Annotated, Any

import anyio.to_thread
import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import StreamingResponse
from prometheus_client import REGISTRY
from pydantic import BaseModel, FiniteFloat
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from answers import assert_error
from visionmesh.contracts import ImageUploaded
from visionmesh.errors import Rejected, Unavailable
from visionmesh.http import create_app, decode_json
from visionmesh.observability import tracing

LIMIT = 50_000


class Body(BaseModel):
    numbers: list[FiniteFloat]


def limited() -> None:
    """Any route."""


def application() -> FastAPI:
    app = create_app("test", checks={}, max_body_bytes=LIMIT)

    @app.get("/rejected/{code}")
    async def rejected(code: str) -> None:
        raise Rejected(code, "The reason.")

    @app.get("/unavailable")
    def unavailable() -> None:
        raise Unavailable("object_store", "10.0.0.7 refuses user mesh")

    @app.get("/bug")
    def bug() -> None:
        raise KeyError("a secret of the code")

    @app.get("/broken-stream")
    async def broken_stream() -> StreamingResponse:
        async def pieces() -> Any:
            yield b"half an answer"
            raise KeyError("a secret of the code")

        return StreamingResponse(pieces())

    @app.post("/numbers")
    async def numbers(body: Body) -> int:
        return len(body.numbers)

    @app.post("/message")
    async def message(request: Request) -> str:
        return decode_json(await request.body(), ImageUploaded).image_id

    included = APIRouter(prefix="/included")
    included.add_api_route("/{name}", limited, methods=["DELETE"])
    included.add_api_route("/{name}", limited)
    app.include_router(included)

    @app.get("/limit")
    async def limit(limit: Annotated[int, Query(le=5)]) -> int:
        return limit

    @app.get("/trace")
    async def trace() -> str:
        return str(tracing.current())

    return app


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(application(), raise_server_exceptions=False) as client:
        yield client


def test_health(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok", "service": "test"}


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/numbers", "POST"), ("/limit", "GET, HEAD"), ("/included/numbers", "DELETE, GET, HEAD")],
)
def test_a_method_that_a_path_does_not_take(client: TestClient, path: str, allowed: str) -> None:
    answer = client.put(path)
    assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


def test_docs_are_there(client: TestClient) -> None:
    assert "/numbers" in client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("object_not_found", 404),
        ("too_many_bytes", 413),
        ("too_many_pixels", 413),
        ("too_many_waiting", 429),
        ("unsupported_media_type", 415),
        ("not_an_image", 415),
        ("bad_image_id", 400),
        ("image_id_conflict", 409),
        ("bucket_not_allowed", 403),
        ("corrupt_image", 422),
        ("wrong_descriptor_count", 422),
        ("a_code_nobody_thought_of", 422),
    ],
)
def test_rejected(client: TestClient, code: str, status: int) -> None:
    assert assert_error(client.get(f"/rejected/{code}"), status, code) == "The reason."


@pytest.mark.parametrize(
    ("code", "status", "passes"),
    [("too_many_waiting", 429, True), ("too_many_uploads", 503, True), ("too_many_bytes", 413, False)],
)
def test_what_passes_says_when_to_come_back(client: TestClient, code: str, status: int, passes: bool) -> None:
    response = client.get(f"/rejected/{code}")
    assert_error(response, status, code)
    assert ("retry-after" in response.headers) == passes


def test_unavailable_says_when_to_come_back_and_no_address(client: TestClient) -> None:
    response = client.get("/unavailable")
    assert "10.0.0.7" not in assert_error(response, 503, "object_store_unavailable")
    assert int(response.headers["retry-after"]) > 0


def test_the_line_of_what_is_unavailable_names_what_was_asked_about() -> None:
    app = create_app("test", checks={})

    @app.get("/sensors/{device_id}/{sensor}")
    def readings(device_id: str, sensor: str) -> None:
        raise Unavailable("database", "no answer")

    with TestClient(app) as client, capture_logs() as logged:
        client.get("/sensors/pi-1/tfluna")
    (line,) = (line for line in logged if line["event"] == "unavailable")
    assert (line["device_id"], line["sensor"], line["server"]) == ("pi-1", "tfluna", "database")
    assert "image_id" not in line


def test_a_bug_is_500_without_its_trace(client: TestClient) -> None:
    response = client.get("/bug")
    assert_error(response, 500, "internal_error")
    assert "secret" not in response.text
    assert "KeyError" not in response.text


def test_a_stream_that_breaks_is_cut_off() -> None:
    client = TestClient(application())
    with pytest.raises(KeyError):
        client.get("/broken-stream")


def test_unknown_route_and_method(client: TestClient) -> None:
    assert "/nowhere" in assert_error(client.get("/nowhere"), 404, "not_found")
    response = client.get("/numbers")
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("body", [b'{"numbers": "\xff"}', b"[" * 20_000])
def test_a_body_that_the_parser_gives_up_on_is_no_json(client: TestClient, body: bytes) -> None:
    assert_error(client.post("/numbers", content=body, headers=JSON), 400, "invalid_json")


def test_head_is_answered_wherever_get_is(client: TestClient) -> None:
    response = client.head("/health")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == client.get("/health").headers["content-length"]
    assert client.head("/numbers").status_code == 405


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/numbers", '{"numbers": [1, 2', 400, "invalid_json"),
        ("/numbers", '{"numbers": [0.1, ...]}', 400, "invalid_json"),
        ("/numbers", '{"numbers": [NaN]}', 422, "not_finite"),
        ("/numbers", '{"numbers": [-Infinity]}', 422, "not_finite"),
        ("/numbers", '{"numbers": [1e999]}', 422, "not_finite"),
        ("/numbers", '{"numbers": "many"}', 422, "invalid_request"),
        ("/numbers", "{}", 422, "invalid_request"),
        ("/numbers", "[]", 422, "invalid_request"),
        ("/numbers", "", 422, "invalid_request"),
        ("/message", "", 400, "invalid_json"),
        ("/message", '{"image_id": ', 400, "invalid_json"),
        ("/message", '{"image_id": NaN, "minio_path": "a/b"}', 400, "invalid_json"),
        ("/message", '{"image_id": "a b", "minio_path": "a/b"}', 422, "invalid_request"),
        ("/message", '{"image_id": "a"}', 422, "invalid_request"),
        ("/message", "[" * 900, 422, "invalid_request"),
        ("/message", '{"x":' + "[" * 20_000, 400, "invalid_json"),
        ("/numbers", '{"x":' + "[" * 20_000, 400, "invalid_json"),
    ],
)
def test_bad_bodies(client: TestClient, path: str, body: str, status: int, code: str) -> None:
    assert_error(client.post(path, content=body, headers=JSON), status, code)


def test_bodies_that_are_not_even_text(client: TestClient) -> None:
    assert client.post("/numbers", content=b"\xff\xfe\x00", headers=JSON).status_code == 400
    assert_error(client.post("/message", content=b'{"image_id": "\xff"}', headers=JSON), 400, "invalid_json")


def test_the_reason_names_what_json_has_not(client: TestClient) -> None:
    response = client.post("/message", content='{"image_id": NaN}', headers=JSON)
    assert "JSON has no NaN" in response.json()["error"]


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"}])
def test_a_body_that_is_not_announced_as_json(client: TestClient, headers: dict[str, str]) -> None:
    response = client.post("/numbers", content='{"numbers": [1]}', headers=headers)
    assert "content-type: application/json" in assert_error(response, 422, "invalid_request")
    response = client.post(
        "/numbers", content="[]", headers={"content-type": "application/json; charset=utf-8"}
    )
    assert "content-type" not in assert_error(response, 422, "invalid_request")


def test_bad_query(client: TestClient) -> None:
    assert "limit" in assert_error(client.get("/limit?limit=6"), 422, "invalid_request")


def test_good_body(client: TestClient) -> None:
    assert client.post("/numbers", json={"numbers": [1, 2]}).json() == 2


def test_announced_body_that_is_too_large(client: TestClient) -> None:
    response = client.post("/numbers", content=b"1" * (LIMIT + 1), headers=JSON)
    assert str(LIMIT) in assert_error(response, 413, "body_too_large")


def post(path: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, str, int]:
    """Posts a body without end; returns the status, the code, and how many pieces of it were read."""
    asked = 0
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"type": "http.request", "body": b"1" * 20_000, "more_body": asked < 10}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    asyncio.run(application()(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])["code"], asked


@pytest.mark.parametrize("path", ["/numbers", "/message"])
def test_a_chunked_body_is_not_read_past_the_limit(path: str) -> None:
    assert post(path, [(b"transfer-encoding", b"chunked")]) == (413, "body_too_large", 3)


def test_an_announced_body_is_not_read_at_all() -> None:
    assert post("/numbers", [(b"content-length", b"200000")]) == (413, "body_too_large", 0)


def test_an_announced_length_that_is_no_number_changes_nothing() -> None:
    assert post("/numbers", [(b"content-length", "²".encode("latin-1"))])[:2] == (413, "body_too_large")


def count(route: str, status: str) -> float:
    labels = {"service": "test", "route": route, "status": status}
    return REGISTRY.get_sample_value("mesh_http_requests_total", labels) or 0.0


def test_requests_are_counted_by_template(client: TestClient) -> None:
    before = count("/rejected/{code}", "422"), count("unmatched", "404"), count("/bug", "500")
    client.get("/rejected/one")
    client.get("/rejected/two")
    client.get("/an/id/nobody/knows")
    client.get("/bug")
    after = count("/rejected/{code}", "422"), count("unmatched", "404"), count("/bug", "500")
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 1, 1]
    assert "mesh_http_requests_total" in client.get("/metrics").text


def test_bugs_are_shown_before_there_is_one(client: TestClient) -> None:
    client.delete("/included/well")
    labels = {"service": "test", "route": "/included/{name}", "status": "500"}
    assert REGISTRY.get_sample_value("mesh_http_requests_total", labels) == 0


def test_probes_and_scrapes_do_not_wait_behind_slow_requests() -> None:
    app = create_app("test", checks={"server": dict}, summary=lambda: {"queue_size": 0})
    gate = Event()

    @app.get("/slow")
    def slow() -> None:
        gate.wait(60)

    async def scene() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://mesh") as client:
            crowd = [asyncio.create_task(client.get("/slow")) for _ in range(60)]
            limiter = anyio.to_thread.current_default_thread_limiter()
            while limiter.statistics().tasks_waiting < 20:
                await asyncio.sleep(0)
            try:
                async with asyncio.timeout(20):
                    for path in ("/health", "/ready", "/metrics"):
                        assert (await client.get(path)).status_code == 200
                    as_json = await client.get("/metrics", headers={"accept": "application/json"})
                    assert as_json.json() == {"queue_size": 0}
            finally:
                gate.set()
                await asyncio.gather(*crowd)

    asyncio.run(scene())


def test_traces(client: TestClient) -> None:
    parent = tracing.Trace.new(sampled=True)
    trace = tracing.Trace.parse(client.get("/trace", headers={"traceparent": str(parent)}).json())
    assert trace is not None
    assert (trace.trace_id, trace.sampled) == (parent.trace_id, True)
    assert trace.span_id != parent.span_id
    for wrong in ("", "rubbish"):
        own = tracing.Trace.parse(client.get("/trace", headers={"traceparent": wrong}).json())
        assert own is not None
        assert not own.sampled
    assert tracing.current() is None
