"""Each scope against each route of every service, and what surrounds that."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest.mock import MagicMock

import pytest
from fastapi import FastAPI, Response, WebSocket
from fastapi.routing import APIRoute
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse

from answers import assert_error
from applications import SERVICES
from visionmesh import access, publishing, service
from visionmesh.access import INSIDE, OPEN, ROUTES, WEBSOCKET, Guard, is_loopback, scope_of
from visionmesh.api_keys import ApiKey, KeyRing, KeysError, Scope, new_key, write_keys
from visionmesh.http import create_app
from visionmesh.settings import Settings

OUTSIDE: Final = {"X-Forwarded-For": "203.0.113.7"}

every_service = pytest.mark.parametrize("name", SERVICES)


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and template of every route, however it was put in."""

    def walk(found: list[Any]) -> Iterator[tuple[str, str]]:
        for route in found:
            if isinstance(route, WebSocketRoute):
                yield WEBSOCKET, route.path
            elif isinstance(route, Route | APIRoute):
                yield from ((method, route.path) for method in (route.methods or ()) if method != "HEAD")
            else:
                assert route.include_context.prefix == "", "its routes have another path than they say"
                yield from walk(route.original_router.routes)

    return walk(app.router.routes)


ALL: Final = sorted({(name, *route) for name, make in SERVICES.items() for route in routes(make())})


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A key of each scope alone; `file` is where they are kept."""
    path = tmp_path_factory.mktemp("keys") / "api-keys.json"
    made = {scope: new_key(f"only-{scope}", [scope], 1_000_000) for scope in Scope}
    write_keys(path, [key for _, key in made.values()])
    return {str(scope): text for scope, (text, _) in made.items()} | {"file": str(path)}


def gated(app: FastAPI, guard: Guard, **options: Any) -> TestClient:
    """The gate of an application, with nothing behind it but 200."""
    app.state.guard = guard

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await Response("let in")(scope, receive, send)
        else:
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})

    gate = access.Gate(behind)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await gate({**scope, "app": app}, receive, send)

    return TestClient(serve, **options)


def client_of(name: str, keys: dict[str, str]) -> TestClient:
    return gated(SERVICES[name](), Guard(KeyRing(Path(keys["file"])), behind_gateway=True))


def call(client: TestClient, method: str, path: str, key: str | None) -> Any:
    """The answer to somebody outside."""
    headers = OUTSIDE | ({} if key is None else {"Authorization": f"Bearer {key}"})
    path = re.sub(r"\{[a-z_]+\}", "x", path)
    if method != WEBSOCKET:
        return client.request(method, path, headers=headers)
    try:
        with client.websocket_connect(path, headers=headers):
            return Response()
    except WebSocketDenialResponse as refused:
        return refused


def test_the_services_have_routes() -> None:
    """What is walked through below is not nothing."""
    assert {("ingest-api", "POST", "/upload"), ("edge-publisher", WEBSOCKET, "/ws")} <= set(ALL)
    assert {("ingest-api", "GET", "/sensors"), ("ocr-worker", "GET", "/result/{task_id}")} <= set(ALL)
    assert len(ALL) > 60
    known = {(method, path) for _, method, path in ALL}
    assert known >= set(ROUTES), "a line of the table for a route that nobody has"


@pytest.mark.parametrize(("name", "method", "path"), ALL)
def test_every_route_has_its_scope_and_every_other_scope_is_refused(
    name: str, method: str, path: str, keys: dict[str, str]
) -> None:
    client = client_of(name, keys)
    if path in OPEN:
        assert call(client, method, path, None).status_code == 200
        return
    if path not in INSIDE:
        assert (method, path) in ROUTES, "a new route needs a line in visionmesh.access"
    assert_error(call(client, method, path, None), 401, "missing_api_key")
    assert_error(call(client, method, path, "mesh_wrong"), 401, "unknown_api_key")
    needed = Scope.OPERATE if path in INSIDE else ROUTES[(method, path)]
    for scope in Scope:
        answer = call(client, method, path, keys[scope])
        if scope == needed:
            assert answer.status_code == 200, answer.text
        else:
            assert_error(answer, 403, "missing_scope")


@every_service
def test_the_openapi_tells_which_scope_a_route_needs(name: str, keys: dict[str, str]) -> None:
    app = SERVICES[name]()
    app.state.guard = Guard(KeyRing(Path(keys["file"])), behind_gateway=True)
    described = app.openapi()
    assert set(described["components"]["securitySchemes"]) == {"bearer", "header"}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            asked = operation.get("security", [])
            scopes = {scope for way in asked for (scope,) in way.values()}
            assert scopes == (set() if path in OPEN else {scope_of(method.upper(), path)})
            assert ({} in asked) is (path in INSIDE)


def test_without_keys_the_openapi_asks_for_none() -> None:
    app = SERVICES["ingest-api"]()
    app.state.guard = Guard(None, behind_gateway=False)
    described = app.openapi()
    assert "securitySchemes" not in described["components"]
    assert not any("security" in each for path in described["paths"].values() for each in path.values())


def test_no_path_has_two_scopes() -> None:
    """The guard takes the first line of the table that fits, and a service the first of its routes."""
    for method, template in ROUTES:
        assert scope_of(method, re.sub(r"\{[a-z_]+\}", "x", template)) == ROUTES[(method, template)]


@pytest.mark.parametrize("path", ["/upload/", "//upload", "/Upload", "/upload%2f", "/admin", "/images/a/b/c"])
def test_what_nobody_thought_of_is_the_operators(path: str, keys: dict[str, str]) -> None:
    client = client_of("ingest-api", keys)
    assert_error(call(client, "POST", path, keys["upload"]), 403, "missing_scope")
    assert call(client, "POST", path, keys["operate"]).status_code == 200


@every_service
def test_every_service_has_the_gate_and_counts_what_it_refuses(name: str) -> None:
    around = [middleware.cls.__name__ for middleware in SERVICES[name]().user_middleware]
    assert around == ["_Shell", "Gate"]


def test_inside_metrics_and_readiness_are_open(keys: dict[str, str]) -> None:
    client = client_of("sensor-sink", keys)
    for path in ("/health", "/metrics", "/ready"):
        assert client.get(path).status_code == 200
    for header in ("X-Forwarded-For", "Forwarded"):
        assert_error(client.get("/metrics", headers={header: "for=x"}), 401, "missing_api_key")


@pytest.mark.parametrize(("address", "status"), [("127.0.0.1", 200), ("::1", 200), ("10.0.0.4", 401)])
def test_without_a_gateway_inside_is_this_machine(address: str, status: int, keys: dict[str, str]) -> None:
    guard = Guard(KeyRing(Path(keys["file"])), behind_gateway=False)
    client = gated(SERVICES["sensor-sink"](), guard, client=(address, 5))
    assert client.get("/metrics").status_code == status


def test_ways_to_show_a_key(keys: dict[str, str]) -> None:
    client = client_of("ingest-api", keys)
    key = keys["read"]
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key}"},
        {"X-API-Key": key},
    ):
        assert client.get("/docs", headers=headers).status_code == 200
    for headers in ({"Authorization": f"Basic {key}"}, {"Authorization": key}, {"Cookie": f"key={key}"}):
        assert_error(client.get("/docs", headers=headers), 401, "missing_api_key")
    assert client.get(f"/docs?api_key={key}").status_code == 401, "addresses are written down everywhere"
    assert client.head("/docs", headers={"X-API-Key": key}).status_code == 200


def test_a_browser_shows_its_key_as_a_subprotocol(keys: dict[str, str]) -> None:
    app = create_app("test", checks={})

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")

    app.state.guard = Guard(KeyRing(Path(keys["file"])), behind_gateway=True)
    client = TestClient(app)
    with client.websocket_connect("/ws", subprotocols=["mesh", f"mesh.key.{keys['read']}"]) as socket:
        assert socket.accepted_subprotocol == "mesh"
        assert socket.receive_text() == "hello"
    with pytest.raises(WebSocketDenialResponse) as refused:
        with client.websocket_connect("/ws", subprotocols=["mesh", "mesh.key.wrong"]):
            pass
    assert refused.value.status_code == 401


def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    text, key = new_key("eager", [Scope.READ], 6)
    write_keys(tmp_path / "keys.json", [key])
    app = create_app("test", checks={})
    app.state.guard = Guard(KeyRing(tmp_path / "keys.json"), behind_gateway=True)
    client = TestClient(app)
    headers = {"Authorization": f"Bearer {text}"}
    assert client.get("/docs", headers=headers).status_code == 200
    refused = client.get("/docs", headers=headers)
    assert_error(refused, 429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 10


def test_a_body_of_a_stranger_is_not_read(keys: dict[str, str]) -> None:
    app = FastAPI()
    app.state.guard = Guard(KeyRing(Path(keys["file"])), behind_gateway=True)
    answers: list[Any] = []

    async def receive() -> Any:
        pytest.fail("it was read")

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/upload", "headers": [], "app": app}
    asyncio.run(access.Gate(MagicMock())(scope, receive, send))
    assert answers[0]["status"] == 401


# Published on loopback ------------------------------------------------------------------------------------


def on_loopback(name: str = "ingest-api") -> TestClient:
    guard = Guard.from_settings(Settings(http_host="0.0.0.0", publish_address="127.0.0.1"))
    return gated(SERVICES[name](), guard, base_url="http://localhost:8001")


@pytest.mark.parametrize(("name", "method", "path"), ALL)
def test_on_loopback_no_key_is_asked_for(name: str, method: str, path: str) -> None:
    assert call(on_loopback(name), method, path, None).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:8001", True),
        ("127.0.0.1:8001", True),
        ("[::1]:8001", True),
        ("172.18.0.9:8001", True),
        ("ingest-api:8001", True),
        ("evil.example:8001", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
    ],
)
def test_a_name_that_was_pointed_here_is_refused(host: str, allowed: bool) -> None:
    answer = on_loopback().get("/openapi.json", headers={"Host": host})
    if allowed:
        assert answer.status_code == 200
    else:
        assert_error(answer, 421, "host_not_allowed")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost:3000", True),
        ("https://evil.example", False),
        ("http://127.0.0.1:3000", False),
        ("null", False),
        ("http://[broken", False),
    ],
)
def test_a_page_of_another_site_may_not_upload(origin: str | None, allowed: bool) -> None:
    headers = {} if origin is None else {"Origin": origin}
    answer = on_loopback().post("/upload", headers=headers)
    assert (answer.status_code != 403) is allowed
    assert on_loopback().get("/docs", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),
        ("cross-site", "cors", 403),
        ("cross-site", "navigate", 200),
        ("same-site", "no-cors", 200),
        ("none", "navigate", 200),
    ],
)
def test_a_page_of_another_site_loads_nothing_and_may_have_links(site: str, mode: str, status: int) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    assert on_loopback().get("/docs", headers=headers).status_code == status


# What has to be settled before the start ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("[::1]", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.1.4", False), ("mesh.lan", False), ("", False),
    ],
)  # fmt: skip
def test_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


@pytest.mark.parametrize(
    ("settings", "asks"),
    [
        ({"http_host": "127.0.0.1"}, False),
        ({"http_host": "0.0.0.0"}, True),
        ({"http_host": "0.0.0.0", "publish_address": "127.0.0.1"}, False),
        ({"http_host": "127.0.0.1", "publish_address": "0.0.0.0"}, True),
        ({"http_host": "127.0.0.1", "require_api_keys": True}, True),
    ],
)
def test_published_elsewhere_it_does_not_start_without_keys(
    settings: dict[str, Any], asks: bool, keys: dict[str, str], tmp_path: Path
) -> None:
    for file in (None, tmp_path / "missing.json"):
        given = Settings(**settings, api_keys_file=file)
        assert access.asks_for_keys(given) is asks
        if asks:
            with pytest.raises(KeysError):
                Guard.from_settings(given)
        else:
            Guard.from_settings(given)
    Guard.from_settings(Settings(**settings, api_keys_file=keys["file"]))


def test_a_service_ends_before_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_listen", lambda *_: pytest.fail("it listened"))
    status = service.run_service(FastAPI(), None, port=0, settings=Settings(http_host="0.0.0.0"))
    assert status == 2


@pytest.mark.parametrize(
    ("settings", "environment", "reasons"),
    [
        ({"publish_address": "127.0.0.1"}, {"GRAFANA_ADMIN_PASSWORD": "admin123"}, []),
        ({"publish_address": "0.0.0.0"}, {"GRAFANA_ADMIN_PASSWORD": "a" * 24}, []),
        ({"publish_address": "0.0.0.0"}, {"GRAFANA_ADMIN_PASSWORD": "admin123"}, ["Grafana"]),
        ({"publish_address": "0.0.0.0"}, {}, ["Grafana"]),
        ({"publish_address": "127.0.0.1"}, {"GATEWAY_TLS": "yes"}, ["MESH_TLS"]),
        ({"publish_address": "127.0.0.1"}, {"GATEWAY_TLS": "acme"}, ["MESH_DOMAIN"]),
        ({"publish_address": "127.0.0.1"}, {"GATEWAY_TLS": "internal"}, ["MESH_TLS_NAMES"]),
        ({"publish_address": "127.0.0.1"}, {"GATEWAY_TLS": "internal", "GATEWAY_TLS_NAMES": "mesh.lan"}, []),
        ({"publish_address": "127.0.0.1"}, {"GATEWAY_DOMAIN": "mesh.example.org"}, ["MESH_DOMAIN"]),
    ],
)
def test_what_keeps_the_gateway_from_starting(
    settings: dict[str, Any], environment: dict[str, str], reasons: list[str], keys: dict[str, str]
) -> None:
    found = list(publishing.refusals(Settings(**settings, api_keys_file=keys["file"]), environment))
    assert len(found) == len(reasons)
    assert all(reason in sentence for reason, sentence in zip(reasons, found, strict=True))


def test_make_env_s_digest_is_that_of_its_key() -> None:
    """`printf %s KEY | sha256sum`, as the Makefile has it."""
    text, key = new_key("one", [Scope.READ])
    assert isinstance(key, ApiKey)
    assert key.sha256 == hashlib.sha256(text.encode()).hexdigest()
