"""Clients that hold connections: the real server, with patience that a test has as well."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from visionmesh import http_connection
from visionmesh.http import create_app
from visionmesh.http_connection import BoundedConnection
from waiting import eventually

PATIENCE = 0.4
# More than the buffers between hold.
LARGE = 8_000_000


@pytest.fixture
def patience() -> float:
    return PATIENCE


# For clients that are to be borne, where a test that is itself held up would be taken for one that is not.
with_patience = pytest.mark.parametrize("patience", [1.0])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    monkeypatch.setattr(http_connection, "LOOK_SECONDS", 0.02)
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "UNREAD_SECONDS"):
        monkeypatch.setattr(http_connection, name, patience)
    monkeypatch.setattr(http_connection, "BYTES_PER_SECOND", 100_000)


@pytest.fixture
def ended() -> list[str]:
    """How requests ended inside the service."""
    return []


@pytest.fixture
def port(ended: list[str]) -> Iterator[int]:
    app = create_app("test", checks={})

    @app.post("/length")
    async def length(request: Request) -> int:
        try:
            return len(await request.body())
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    @app.post("/later")
    async def later(request: Request) -> int:
        # Reads nothing at first, which is not the client's fault.
        await asyncio.sleep(3 * PATIENCE)
        return len(await request.body())

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(3 * PATIENCE)
        return "whole"

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
                    # As whatever has to be fetched does.
                    await asyncio.sleep(0)
            finally:
                ended.append("endless")

        return StreamingResponse(pieces())

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(LARGE))

    with serving(app) as number:
        yield number


@contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, http=BoundedConnection, log_config=None, access_log=False)
        )
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def connect(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port))
    client.settimeout(20)
    return client


def all_of(client: socket.socket) -> bytes:
    """What is said until the server closes."""
    said = b""
    while piece := client.recv(65536):
        said += piece
    return said


def test_who_says_nothing_is_hung_up_on(port: int) -> None:
    with connect(port) as client:
        assert all_of(client) == b""


@pytest.mark.parametrize(
    "begin", [b"G", b"GET /health HTTP/1.1\r\n", b"GET /health HTTP/1.1\r\nHost: mesh\r\nX-A: b"]
)
def test_a_head_that_does_not_end(port: int, begin: bytes) -> None:
    with connect(port) as client:
        client.sendall(begin)
        said = all_of(client)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "request_too_slow"' in said


def test_a_head_that_drips_is_as_slow(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: mesh\r\n")
        client.settimeout(0.05)
        said = b""
        for _ in range(400):
            try:
                client.sendall(b"X-A: b\r\n")
                said = client.recv(65536)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("it would take headers for ever")
    assert said == b"" or said.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("encoding", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come(port: int, encoding: str, ended: list[str]) -> None:
    with connect(port) as client:
        client.sendall(f"POST /length HTTP/1.1\r\nHost: mesh\r\n{encoding}\r\n\r\n".encode())
        said = all_of(client)
    assert said.startswith(b"HTTP/1.1 408 ")
    eventually(lambda: ended == ["ClientDisconnect"], "the request lets go of what it holds", seconds=30)


@with_patience
def test_a_body_may_be_slow_but_not_that_slow(port: int, patience: float) -> None:
    """Twice the patience goes by, and more than enough comes for that; then nothing more."""
    piece = b"x" * 50_000
    with connect(port) as client:
        client.sendall(b"POST /length HTTP/1.1\r\nHost: mesh\r\nContent-Length: 500000\r\n\r\n")
        for _ in range(10):
            pause(2 * patience / 10)
            client.sendall(piece)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        # Every request of a connection has patience of its own.
        client.sendall(b"POST /length HTTP/1.1\r\nHost: mesh\r\nContent-Length: 100000\r\n\r\nx")
        assert all_of(client).startswith(b"HTTP/1.1 408 ")


def test_the_service_s_own_time_does_not_count(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: mesh\r\nConnection: close\r\n\r\n")
        assert all_of(client).startswith(b"HTTP/1.1 200 ")
    body = b"x" * 900_000
    with connect(port) as client:
        head = (
            f"POST /later HTTP/1.1\r\nHost: mesh\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        assert all_of(client).endswith(b"900000")


def test_who_takes_nothing_of_an_answer_is_cut_off(port: int, ended: list[str]) -> None:
    with connect(port) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: mesh\r\n\r\n")
        for _ in range(2000):
            if ended:
                break
            pause(0.01)
    assert ended == ["endless"]


@with_patience
def test_who_takes_it_slowly_is_not(port: int, ended: list[str], patience: float) -> None:
    with connect(port) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: mesh\r\n\r\n")
        for _ in range(8):
            pause(patience / 2)
            for _ in range(100):
                assert client.recv(65536)
        assert not ended


@with_patience
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_who_takes_little_at_a_time_gets_all_of_it(port: int, connection: str, patience: float) -> None:
    """As the service writes it at once, it does not hear of what is taken until nearly all is."""
    taken = 0
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        client.sendall(f"GET /large HTTP/1.1\r\nHost: mesh\r\nConnection: {connection}\r\n\r\n".encode())
        while taken < LARGE:
            piece = client.recv(65536)
            assert piece, f"cut off after {taken} bytes"
            taken += len(piece)
            pause(patience / 40)


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_who_takes_nothing_of_one_answer(port: int, connection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[BoundedConnection] = []
    really = HttpToolsProtocol.connection_lost

    def connection_lost(self: BoundedConnection, error: Exception | None) -> None:
        lost.append(self)
        really(self, error)

    monkeypatch.setattr(HttpToolsProtocol, "connection_lost", connection_lost)
    with connect(port) as client:
        client.sendall(f"GET /large HTTP/1.1\r\nHost: mesh\r\nConnection: {connection}\r\n\r\n".encode())
        eventually(lambda: bool(lost), "the end of the connection", seconds=60)


def pause(seconds: float) -> None:
    """A client's own slowness, which is what is tried here."""
    time.sleep(seconds)
