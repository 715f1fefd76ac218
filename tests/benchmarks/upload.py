"""`upload`: pictures of 1 MB a second from 64 clients, and the memory that 100 MB take.

Both servers are processes of their own on the same MinIO and take turns. Ours also hashes each picture,
reads its header, writes a row to Postgres and publishes a record to Kafka; the peer only stores it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from PIL import Image

from benchmarks.figures import figure, ratio
from benchmarks.servers import native
from visionmesh.database import migrate
from visionmesh.kafka import create_topics
from visionmesh.settings import Settings
from visionmesh.stack import Endpoints
from visionmesh.stack.ports import free_port

PEER = Path(__file__).parent / "peers" / "upload_server.py"
BUCKET = "raw-images"
CLIENTS = 64
PICTURE_BYTES = 1_000_000
LARGE_BYTES = 100 * 1024 * 1024


def picture(size: int) -> bytes:
    """A JPEG of that size; decoders ignore what follows its end."""
    file = io.BytesIO()
    Image.new("RGB", (640, 480), "orange").save(file, "JPEG")
    return file.getvalue() + random.Random(size).randbytes(size - file.tell())


def request(port: int, path: str, data: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n'
    body = head + b"Content-Type: image/jpeg\r\n\r\n" + data + b"\r\n--x--\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def client(port: int, message: bytes, turns: Iterator[int]) -> None:
    """One client that sends the next picture when the last was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in turns:
        writer.write(message)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        length = next(
            int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        await reader.readexactly(length)
        if status not in (200, 202):
            raise RuntimeError(f"the server answered {status}")
    writer.close()


async def uploads_per_second(port: int, path: str, data: bytes, count: int) -> float:
    message = request(port, path, data)
    turns = iter(range(count))
    started = time.perf_counter()
    await asyncio.gather(*(client(port, message, turns) for _ in range(CLIENTS)))
    return count / (time.perf_counter() - started)


@contextmanager
def server(command: Sequence[str], port: int, environment: dict[str, str]) -> Iterator[int]:
    """A server as a process; gives its id once it answers."""
    process = subprocess.Popen([sys.executable, *command], env=os.environ | environment)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def memory_of_a_large_upload(port: int, pid: int) -> float:
    """By how many MB the resident memory of the server grows, at most, while 100 MB come in."""
    process = psutil.Process(pid)
    before = peak = process.memory_info().rss

    def body() -> Iterator[bytes]:
        nonlocal peak
        whole = request(port, "/upload", picture(PICTURE_BYTES)).partition(b"\r\n\r\n")[2]
        yield whole.removesuffix(b"\r\n--x--\r\n")
        for _ in range(LARGE_BYTES // 65536):
            yield bytes(65536)
            peak = max(peak, process.memory_info().rss)
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"http://127.0.0.1:{port}/upload", content=body(), headers=headers, timeout=120)
    answer.raise_for_status()
    return (max(peak, process.memory_info().rss) - before) / 1e6


def measure(endpoints: Endpoints, count: int, rounds: int) -> None:
    environment = endpoints.environment()
    migrate(endpoints.postgres_dsn)
    create_topics(Settings(kafka_bootstrap=endpoints.kafka_bootstrap))
    ours, theirs = free_port(), free_port()
    peer = [str(PEER), endpoints.s3_endpoint, endpoints.s3_access_key, endpoints.s3_secret_key, BUCKET]
    peer.append(str(theirs))
    settings = {"MESH_HTTP_PORT": str(ours), "MESH_UPLOAD_MAX_BYTES": str(2 * LARGE_BYTES)}
    with server(["-m", "ingest_api"], ours, environment | settings) as pid, server(peer, theirs, {}):
        contestants = {
            "mesh": (ours, "/upload"),
            "peer in the event loop": (theirs, "/async"),
            "peer in threads": (theirs, "/threads"),
        }
        data = picture(PICTURE_BYTES)
        for port, path in contestants.values():
            asyncio.run(uploads_per_second(port, path, data, CLIENTS))
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, (port, path) in contestants.items():
                speeds[name].append(asyncio.run(uploads_per_second(port, path, data, count)))
    for name, values in speeds.items():
        figure(f"upload: {name}", values, "/s")
    ratio("upload: mesh / peer in the event loop", speeds["mesh"], speeds["peer in the event loop"], ">= 2.7")
    ratio("upload: mesh / peer in threads", speeds["mesh"], speeds["peer in threads"], ">= 2.7")
    growth = []
    for _ in range(rounds):
        with server(["-m", "ingest_api"], ours, environment | settings) as pid:
            asyncio.run(uploads_per_second(ours, "/upload", picture(10_000), CLIENTS))
            growth.append(memory_of_a_large_upload(ours, pid))
    figure("upload: memory for 100 MB (goal <= 16)", growth, "MB")


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upload", description=__doc__)
    parser.add_argument("--count", type=int, default=256, help="pictures a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with native() as endpoints:
        measure(endpoints, options.count, options.rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
