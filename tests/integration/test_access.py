"""Keys on a real server, as clients of all kinds show them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Thread

import httpx
import pytest
import uvicorn
from fastapi import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from visionmesh.access import Guard
from visionmesh.api_keys import Scope, client_headers, new_key, write_keys
from visionmesh.http import create_app
from visionmesh.http_connection import BoundedConnection
from visionmesh.settings import Settings

READ, READ_KEY = new_key("reader", [Scope.READ])
UPLOAD, UPLOAD_KEY = new_key("camera", [Scope.UPLOAD])
OUTSIDE = {"X-Forwarded-For": "203.0.113.7"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("keys") / "api-keys.json"
    write_keys(file, [READ_KEY, UPLOAD_KEY])
    app = create_app("test", checks={})

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("reading")
        await websocket.close()

    app.state.guard = Guard.from_settings(
        Settings(publish_address="0.0.0.0", behind_gateway=True, api_keys_file=file)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http=BoundedConnection, log_config=None))
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


def test_http(address: str) -> None:
    url = f"http://{address}/docs"
    assert httpx.get(url, headers=client_headers(READ)).status_code == 200
    assert httpx.get(url, headers={"X-API-Key": READ}).status_code == 200
    assert httpx.get(url, headers=client_headers(UPLOAD)).json()["code"] == "missing_scope"
    refused = httpx.get(url)
    assert (refused.status_code, refused.json()["code"]) == (401, "missing_api_key")
    assert refused.headers["www-authenticate"] == "Bearer"
    # A name that somebody sent along with a body that nobody reads.
    large = httpx.post(
        f"http://{address}/upload", content=b"x" * 1_000_000, headers=client_headers("mesh_no")
    )
    assert (large.status_code, large.json()["code"]) == (401, "unknown_api_key")


def test_what_is_refused_is_counted(address: str) -> None:
    assert httpx.get(f"http://{address}/metrics", headers=OUTSIDE).status_code == 401
    counted = httpx.get(f"http://{address}/metrics").text
    assert 'mesh_http_requests_total{route="unmatched",service="test",status="401"}' in counted


def test_a_web_socket_with_a_header(address: str) -> None:
    with connect(f"ws://{address}/ws", additional_headers=client_headers(READ)) as socket_:
        assert socket_.recv(timeout=20) == "reading"


def test_a_web_socket_of_a_browser(address: str) -> None:
    offered = [Subprotocol("mesh"), Subprotocol(f"mesh.key.{READ}")]
    with connect(f"ws://{address}/ws", subprotocols=offered) as socket_:
        assert socket_.subprotocol == "mesh"
        assert socket_.recv(timeout=20) == "reading"


@pytest.mark.parametrize(("key", "status"), [(None, 401), ("mesh_no", 401), (UPLOAD, 403)])
def test_a_web_socket_that_is_refused(address: str, key: str | None, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        with connect(f"ws://{address}/ws", additional_headers=client_headers(key)):
            pass
    assert refused.value.response.status_code == status
