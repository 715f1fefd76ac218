"""How a process of a service starts and ends, seen from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest

# A service whose parts are slow or fail as the environment says.
PROGRAM = """
import os, sys, threading, time
from fastapi import Request
from visionmesh.http import create_app
from visionmesh.observability import logs
from visionmesh.service import run_service, start
from visionmesh.settings import Settings

class Loop:
    def __init__(self):
        self.stopped = threading.Event()
    def run(self):
        self.stopped.wait(0.2 if "LOOP_FAILS" in os.environ else None)
        if "LOOP_FAILS" in os.environ:
            raise ValueError("the loop is broken")
        time.sleep(float(os.environ.get("DRAIN", "0")))
    def stop(self):
        self.stopped.set()
    def status(self):
        return {"ready": True, "partitions": [], "waiting_for": None}

def serve(settings: Settings) -> int:
    logs.configure("test", settings)
    app = create_app("test", checks={})
    begun = threading.Event()
    @app.get("/slow")
    def slow() -> str:
        begun.set()
        time.sleep(0.5)
        return "whole"
    @app.get("/begun")
    def has_begun() -> bool:
        return begun.is_set()
    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())
    return run_service(app, Loop(), port=0, settings=settings)

sys.exit(start(serve))
"""


class Running:
    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"MESH_WORKER_SHUTDOWN_SECONDS": "8"} | environment,
        )
        self.lines: list[dict[str, Any]] = []
        assert self.process.stderr is not None
        for text in self.process.stderr:
            self.lines.append(json.loads(text))
            if self.lines[-1]["event"] == "started":
                break

    @property
    def address(self) -> str:
        address: str = self.lines[-1]["address"]
        until(lambda: httpx.get(f"{address}/health").status_code == 200)
        return address

    def end(self) -> tuple[int, list[str]]:
        assert self.process.stderr is not None
        rest = [json.loads(text)["event"] for text in self.process.stderr]
        return self.process.wait(timeout=30), rest


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(**environment: str) -> Running:
        started.append(Running(**environment))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()
        assert running.process.stderr is not None
        running.process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(run: Callable[..., Running], number: signal.Signals) -> None:
    running = run()
    assert httpx.get(f"{running.address}/ready").status_code == 200
    running.process.send_signal(number)
    status, events = running.end()
    assert status == 0
    assert events[-1] == "stopped"


def send(address: str, *pieces: bytes) -> tuple[bytes, int]:
    """Sends pieces until the service closes the connection; returns what it said, and the bytes taken."""
    host, port = address.removeprefix("http://").split(":")
    sent = 0
    answer = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
                sent += len(piece)
        with suppress(ConnectionError):
            while data := connection.recv(65536):
                answer += data
    return answer, sent


KIBIBYTE = 1024
PIECE = b"x" * 64 * KIBIBYTE
CHUNKED = b"POST /length HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
HEADERS = b"".join(b"header-%d: %s\r\n" % (number, b"x" * KIBIBYTE) for number in range(70))


@pytest.mark.parametrize(
    "start",
    [
        b"GET /health?",
        b"GET /health HTTP/1.1\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\ncookie: ",
        CHUNKED + b"3\r\nabc\r\n0\r\ntrailer: ",
        CHUNKED + b"3;extension=",
    ],
    ids=["address", "name", "value", "trailer", "extension"],
)
def test_headers_without_end_are_not_taken(run: Callable[..., Running], start: bytes) -> None:
    running = run()
    address = running.address
    _, taken = send(address, start, *[PIECE] * 1600)
    # What the kernel buffers on both sides of a connection is sent, though nobody reads it.
    assert taken < 50 * KIBIBYTE * KIBIBYTE
    assert httpx.get(f"{address}/health").status_code == 200


@pytest.mark.parametrize(
    "request_", [b"GET /health HTTP/1.1\r\n" + HEADERS + b"\r\n", CHUNKED + b"0\r\n" + HEADERS + b"\r\n"]
)
def test_headers_that_are_too_large_are_told_so(run: Callable[..., Running], request_: bytes) -> None:
    running = run()
    head, _, body = send(running.address, request_)[0].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    error = json.loads(body)
    assert error["code"] == "headers_too_large"
    assert "65536" in error["error"]


def test_what_is_no_http_is_told_so(run: Callable[..., Running]) -> None:
    head, _, body = send(run().address, b"Good morning\r\n\r\n")[0].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["code"] == "bad_request"


def test_only_headers_are_limited_and_each_request_on_its_own(run: Callable[..., Running]) -> None:
    running = run()
    body = b"x" * 900 * KIBIBYTE
    with httpx.Client(base_url=running.address, headers={"cookie": "x" * 40 * KIBIBYTE}) as client:
        for _ in range(3):
            assert client.get("/health").status_code == 200
            assert client.post("/length", content=body).json() == len(body)
            pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
            assert client.post("/length", content=pieces).json() == len(body)


def test_requests_under_way_are_answered(run: Callable[..., Running]) -> None:
    running = run()
    address = running.address
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(httpx.get, f"{address}/slow", timeout=20)
        until(lambda: bool(httpx.get(f"{address}/begun").json()))
        running.process.terminate()
        assert answer.result().json() == "whole"
    assert running.end()[0] == 0


def test_a_loop_that_fails_ends_the_process(run: Callable[..., Running]) -> None:
    status, events = run(LOOP_FAILS="1").end()
    assert status == 1
    assert "loop_failed" in events


def test_the_same_signal_again_ends_it_at_once(run: Callable[..., Running]) -> None:
    running = run(DRAIN="60", MESH_WORKER_SHUTDOWN_SECONDS="60")
    running.process.terminate()
    until(lambda: not _listens(running))
    running.process.terminate()
    assert running.end()[0] == 128 + signal.SIGTERM


def _listens(running: Running) -> bool:
    host, port = running.lines[-1]["address"].removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def test_the_other_signal_lets_it_finish(run: Callable[..., Running]) -> None:
    running = run(DRAIN="1")
    running.process.send_signal(signal.SIGINT)
    until(lambda: not _listens(running))
    running.process.terminate()
    status, events = running.end()
    assert status == 0
    assert events[-1] == "stopped"


def test_the_shutdown_has_a_budget(run: Callable[..., Running]) -> None:
    running = run(DRAIN="60", MESH_WORKER_SHUTDOWN_SECONDS="0.5")
    running.process.terminate()
    status, events = running.end()
    assert status == 1
    assert events[-1] == "shutdown_took_too_long"


def test_a_port_in_use(run: Callable[..., Running]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = run(MESH_HTTP_PORT=str(taken.getsockname()[1]))
        status, _ = running.end()
    assert status == 1
    (line,) = running.lines
    assert line["event"] == "cannot_listen"
    assert line["reason"] == "Address already in use"
    assert "MESH_HTTP_PORT" in line["hint"]


@pytest.mark.parametrize(
    ("program", "variable", "value"),
    [
        (("-c", PROGRAM), "MESH_HTTP_PORT", "eight"),
        (("-m", "ingest_api"), "MESH_EXTRA_CLASSIFIERS", "night"),
        (("-m", "feature_extractor"), "MESH_HTTP_PORT", "eight"),
        (("-m", "classifier"), "MESH_EXTRA_CLASSIFIERS", '["Night"]'),
    ],
)
def test_a_setting_that_does_not_parse(program: tuple[str, str], variable: str, value: str) -> None:
    environment = os.environ | {variable: value}
    ended = subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"{variable}: ")
    assert "Traceback" not in ended.stderr
