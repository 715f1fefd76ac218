"""`end-to-end`: from the upload of a picture until its three predictions can be read over HTTP.

The whole mesh on the native stack, one replica of each service, on this machine with the load generator
beside it. Latency at one picture a second; throughput with 16 clients that never wait.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import numpy as np
import psycopg
from PIL import Image

from benchmarks.figures import figure, percentile
from benchmarks.replicas import Distribution, distribution, memory_of, metrics_of, unlike_any
from benchmarks.servers import prepared
from visionmesh.mesh import Mesh
from visionmesh.stack.native import NativeStack

# A thumbnail, and a photograph of a usual camera preview.
SIDES = {"32 x 32": (32, 32), "1280 x 960": (1280, 960)}


def picture(side: tuple[int, int], number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 255, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize(side, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return unlike_any(buffer.getvalue())


class Client:
    """One keep-alive connection; the standard library's, for the generator shares the cores."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=60)

    def upload(self, data: bytes, tasks: str = "") -> str:
        """tasks: as `/upload` takes them; all of them without."""
        boundary = uuid.uuid4().hex
        body = (
            (
                f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="p.jpg"\r\n'
                "Content-Type: image/jpeg\r\n\r\n"
            ).encode()
            + data
            + f"\r\n--{boundary}--\r\n".encode()
        )
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        self._connection.request("POST", f"/upload?tasks={tasks}" if tasks else "/upload", body, headers)
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == 202, answer
        return str(answer["image_id"])

    def predictions(self, image_id: str) -> int:
        self._connection.request("GET", f"/predictions/{image_id}")
        return len(json.loads(self._connection.getresponse().read())["predictions"])


@contextmanager
def running_mesh() -> Iterator[tuple[NativeStack, Mesh]]:
    with TemporaryDirectory(prefix="mesh-bench-") as name, NativeStack(Path(name) / "stack") as stack:
        prepared(stack.endpoints)
        # What the text and sensors cost is measured elsewhere.
        without = {"ocr-worker": 0, "edge-publisher": 0, "sensor-sink": 0}
        mesh = Mesh(Path(name), ports="free", scale=without)
        # The same pictures come again and again; what is measured is computing them.
        without_cache = stack.endpoints.environment() | {"MESH_CACHE_URL": ""}
        with mesh.started(without_cache):
            mesh.wait_until_ready(120)
            stop = threading.Event()
            keeper = threading.Thread(target=mesh.keep, args=(stop.is_set,))
            keeper.start()
            try:
                yield stack, mesh
            finally:
                stop.set()
                keeper.join()


def latency(client: Client, side: tuple[int, int], count: int) -> list[float]:
    """Milliseconds from upload to the third prediction, one picture a second."""
    found = []
    for number in range(count):
        data = picture(side, number)
        started = time.perf_counter()
        image_id = client.upload(data)
        while client.predictions(image_id) < 3:
            time.sleep(0.002)
            assert time.perf_counter() - started < 60, "no predictions"
        found.append((time.perf_counter() - started) * 1000)
        time.sleep(max(0.0, 1 - (time.perf_counter() - started)))
    return found


def throughput(dsn: str, url: str, side: tuple[int, int], count: int, clients: int) -> float:
    """Pictures per second, from the first upload until the last prediction is stored."""
    pictures = [picture(side, number) for number in range(count)]
    with psycopg.connect(dsn, autocommit=True) as connection:

        def predictions() -> int:
            row = connection.execute("SELECT count(*) FROM predictions").fetchone()
            assert row is not None
            return int(row[0])

        before = predictions()
        local = threading.local()

        def upload(data: bytes) -> None:
            if not hasattr(local, "client"):
                local.client = Client(url)
            local.client.upload(data)

        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as threads:
            list(threads.map(upload, pictures))
        while predictions() < before + 3 * count:
            time.sleep(0.05)
            assert time.perf_counter() - started < 600, "not all were predicted"
        return count / (time.perf_counter() - started)


# What the first design says of each step, in milliseconds.
SEED_MS = {
    "feature-extractor": 50,
    "classifier-fast": 15,
    "classifier-balanced": 25,
    "classifier-accurate": 45,
}


def step_seconds(mesh: Mesh) -> dict[str, Distribution]:
    """Per worker, the time of its step since it started."""
    return {worker: distribution(metrics_of(mesh.url_of(worker)), "mesh_step_seconds") for worker in SEED_MS}


def print_steps(before: dict[str, Distribution], after: dict[str, Distribution]) -> None:
    for worker, seed in SEED_MS.items():
        seconds = after[worker].total - before[worker].total
        batches = after[worker].count - before[worker].count
        figure(f"end-to-end: step of {worker} (seed {seed} ms)", [seconds / batches * 1000], "ms")


def print_memory(mesh: Mesh) -> None:
    """Proportional set size of each service, children included, right after the load."""
    for replica in mesh.replicas:
        size = memory_of(replica.pid)
        figure(f"end-to-end: memory of {replica.service.name}", [size / 2**20], "MiB")


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=30, help="for latency, one a second")
    parser.add_argument("--load", type=int, default=1500, help="pictures of one round of throughput")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with running_mesh() as (stack, mesh):
        url = mesh.url_of("ingest-api")
        client = Client(url)
        latency(client, (32, 32), 5)
        for name, side in SIDES.items():
            before = step_seconds(mesh)
            times = latency(client, side, options.pictures)
            steps = step_seconds(mesh)
            figure(f"end-to-end: {name}, p50 (goal <= 100, seed 150)", times, "ms")
            figure(f"end-to-end: {name}, p95", [percentile(times, 0.95)], "ms")
            print_steps(before, steps)
        rates = [
            throughput(stack.endpoints.postgres_dsn, url, (32, 32), options.load, 16)
            for _ in range(options.rounds)
        ]
        figure("end-to-end: 32 x 32, 16 clients (goal >= 100)", rates, "img/s")
        print_memory(mesh)


if __name__ == "__main__":
    main(sys.argv[1:])
