"""`edge`: what an edge device costs, and whether it answers while it takes pictures.

The real drivers run against simulated sensors (another process, whose time does not count), and their
readings go over a queue on disk and a real Kafka into Postgres. `--seconds 600` is the run of ten minutes.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import psycopg

from benchmarks.figures import figure, percentile
from benchmarks.servers import native, prepared
from visionmesh.stack import Endpoints
from visionmesh.stack.ports import free_port

FULL_RATE = {"EDGE_TFLUNA_HZ": "250", "EDGE_MPU6050_HZ": "100", "EDGE_CAMERA_INTERVAL_SECONDS": "1"}
READY_SECONDS = 60.0
HOME_SECONDS = 120.0
REQUESTS = 200


@contextmanager
def service(package: str, environment: dict[str, str]) -> Iterator[tuple[psutil.Process, httpx.Client]]:
    """A process of a service, ready."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", package],
        env=os.environ | environment | {"MESH_HTTP_PORT": str(port), "MESH_LOG_LEVEL": "warning"},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            deadline = time.monotonic() + READY_SECONDS
            while True:
                try:
                    if client.get("/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{package} does not get ready")
                time.sleep(0.1)
            yield psutil.Process(process.pid), client
    finally:
        process.terminate()
        process.wait(30)


def connected(client: httpx.Client) -> None:
    """Waits until every sensor has given a reading."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        devices = client.get("/health").json()["devices"]
        if all(device["connected"] for device in devices):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"not every sensor is connected: {devices}")
        time.sleep(0.1)


def used(process: psutil.Process) -> float:
    """Seconds of processor time."""
    times = process.cpu_times()
    return float(times.user + times.system)


def cost(name: str, endpoints: Endpoints, folder: Path, sensors: str, seconds: float) -> bool:
    """Processor and memory while `sensors` run at full rate; returns whether every reading became a row."""
    device = f"bench-{name.replace(' ', '-')}"
    queue = folder / f"{device}.db"
    environment = endpoints.environment() | FULL_RATE
    environment |= {
        "EDGE_DEVICE_ID": device, "EDGE_QUEUE_PATH": str(queue),
        "EDGE_SENSORS": sensors, "EDGE_SIMULATE": "all",
    }  # fmt: skip
    with service("edge_publisher", environment) as (process, client):
        connected(client)
        before, began = used(process), time.monotonic()
        time.sleep(seconds)
        share = (used(process) - before) / (time.monotonic() - began) * 100
        memory = process.memory_info().rss / 1024**2
        health = client.get("/health").json()
    devices, dropped = health["devices"], health["queue"]["dropped"]
    figure(f"edge: processor, {name}", [share], "% core")
    figure(f"edge: memory, {name}", [memory], "MiB")
    for one in devices:
        print(f"  {one['sensor']}: {one['readings']} readings, {one['dropped']} dropped, {one['details']}")
    with sqlite3.connect(queue) as connection:
        made = dict(connection.execute("SELECT sensor, seq FROM sources ORDER BY sensor"))
    deadline = time.monotonic() + HOME_SECONDS
    while (stored := rows(endpoints, device)) != made and time.monotonic() < deadline:
        time.sleep(0.2)
    # What a driver has measured and nobody numbered is in no queue.
    unnumbered = any(one["readings"] > made.get(one["sensor"], 0) for one in devices)
    lost = sum(one["dropped"] for one in devices) + sum(dropped.values())
    complete = bool(stored == made and not unnumbered and not lost)
    verdict = "every reading is a row" if complete else "READINGS AND ROWS DIFFER"
    print(f"  {verdict}: {sum(made.values())} readings {made}, rows {stored}, {dropped} dropped")
    return complete


def rows(endpoints: Endpoints, device: str) -> dict[str, int]:
    """Rows by sensor; their numbers are distinct, or this raises."""
    with psycopg.connect(endpoints.postgres_dsn) as connection:
        found = connection.execute(
            "SELECT sensor, count(*), count(DISTINCT seq) FROM sensor_readings WHERE device_id = %s "
            "GROUP BY sensor ORDER BY sensor",
            (device,),
        ).fetchall()
    assert all(count == distinct for _, count, distinct in found), found
    return {sensor: count for sensor, count, _ in found}


def latencies(client: httpx.Client, path: str, count: int) -> list[float]:
    """Milliseconds of each request, one after the other."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        client.get(path).raise_for_status()
        took.append((time.perf_counter() - began) * 1000)
        time.sleep(0.01)
    return took


def answering(endpoints: Endpoints, folder: Path, rounds: int) -> None:
    """`/health` while a capture of 5 s runs; and what a camera answers that is asked often."""
    environment = endpoints.environment() | {
        "EDGE_DEVICE_ID": "bench-camera", "EDGE_QUEUE_PATH": str(folder / "camera.db"),
        "EDGE_SENSORS": '["imx477"]', "EDGE_SIMULATE": "all",
    }  # fmt: skip
    slow = {"EDGE_SIMULATED_CAPTURE_SECONDS": "5", "EDGE_CAMERA_INTERVAL_SECONDS": "3600"}
    with service("edge_publisher", environment | slow) as (_, client), ThreadPoolExecutor(1) as thread:
        connected(client)
        latencies(client, "/health", 20)
        idle, busy = [], []
        for _ in range(rounds):
            idle.append(percentile(latencies(client, "/health", REQUESTS), 0.99))
            with httpx.Client(base_url=client.base_url, timeout=30) as other:
                time.sleep(1)  # until the picture before is too old
                capture = thread.submit(other.get, "/imx477/sensor")
                time.sleep(0.1)
                busy.append(percentile(latencies(client, "/health", REQUESTS), 0.99))
                if capture.done():
                    print("  the capture ended before the requests did")
                capture.result().raise_for_status()
        figure("edge: /health p99, idle", idle, "ms")
        figure("edge: /health p99, during a capture of 5 s", busy, "ms")
        figure("edge: ratio (goal <= 2)", [b / a for a, b in zip(idle, busy, strict=True)], "x")
        began = time.perf_counter()
        with ThreadPoolExecutor(10) as threads:
            statuses = list(threads.map(lambda _: client.get("/imx477/sensor").status_code, range(100)))
        took = time.perf_counter() - began
        print(f"  100 requests by 10 clients: {statuses.count(200)} of 100 answered 200, {took:.1f} s")
    with service("edge_publisher", environment | {"EDGE_CAMERA_INTERVAL_SECONDS": "3600"}) as (_, client):
        connected(client)
        for rate in (5, 25):
            before = details(client)
            ages: list[float] = []
            every(1 / rate, 20 * rate, partial(ask_for_picture, client, ages))
            after = details(client)
            gained = {name: after[name] - before[name] for name in ("captures", "cache_hits", "shared")}
            share = 100 * gained["cache_hits"] / (20 * rate)
            figure(f"edge: cache hits at {rate}/s (goal 80)", [share], "%")
            figure(f"edge: oldest picture at {rate}/s, received (goal <= 500)", [max(ages)], "ms")
            print(f"  {gained} of {20 * rate} requests")


def ask_for_picture(client: httpx.Client, ages: list[float]) -> None:
    """Appends the milliseconds since the camera gave the picture. Both processes have the same clock."""
    answer = client.get("/imx477/sensor").raise_for_status().json()
    ages.append((time.monotonic_ns() - answer["monotonic_ns"]) / 1e6)


def details(client: httpx.Client) -> dict[str, int]:
    (camera,) = client.get("/health").json()["devices"]
    found: dict[str, int] = camera["details"]
    return found


def every(seconds: float, count: int, call: Any) -> None:
    """Calls at an even pace, whether or not the call before has ended."""
    due = time.monotonic()
    with ThreadPoolExecutor(16) as threads:
        for job in [threads.submit(_at, due + number * seconds, call) for number in range(count)]:
            job.result()


def _at(moment: float, call: Any) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
    call()


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of every run at full rate")
    parser.add_argument("--rounds", type=int, default=3, help="of the requests during a capture")
    parser.add_argument("--only", choices=["tfluna", "all", "answering"])
    options = parser.parse_args(arguments)
    with native() as endpoints, TemporaryDirectory(prefix="mesh-bench-") as directory:
        prepared(endpoints)
        folder = Path(directory)
        complete = True
        with service("sensor_sink", endpoints.environment()):
            if options.only in (None, "tfluna"):
                complete &= cost("TF-Luna at 250 Hz", endpoints, folder, '["tfluna"]', options.seconds)
            if options.only in (None, "all"):
                everything = '["imx477", "mpu6050", "tfluna", "hcsr04"]'
                complete &= cost("four sensors", endpoints, folder, everything, options.seconds)
        if options.only in (None, "answering"):
            answering(endpoints, folder, options.rounds)
    if not complete:
        sys.exit("readings were lost")


if __name__ == "__main__":
    main(sys.argv[1:])
