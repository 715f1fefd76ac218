"""The qr-decoder on an embedded stack, as `qr` measures it: memory of all its processes, latency, rate.

Asked over HTTP with the pictures of the seed's scenarios in their shares, as JPEG, one after the other by one
client. Memory is the proportional set size, read every 20 ms. It runs from bytecode, as in the image: what
compiles its sources itself keeps 15 MiB of that.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import psutil
from PIL import Image

from benchmarks import qr_scenes
from benchmarks.figures import percentile
from benchmarks.servers import prepared
from visionmesh.settings import ROOT
from visionmesh.stack import Endpoints, open_stack
from visionmesh.stack.ports import free_port

PICTURES = 100
START_SECONDS = 120.0

# As the image has it.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}


def measured(profile: str) -> dict[str, float]:
    """Figures for a `Record`, of a service with a profile as its own."""
    with TemporaryDirectory(prefix="mesh-bench-") as name:
        folder = Path(name)
        with open_stack("embedded", folder / "stack") as stack:
            prepared(stack.endpoints, make_topics=False)
            # The first run compiles.
            with _service(profile, stack.endpoints, folder / "bytecode"):
                pass
            with _service(profile, stack.endpoints, folder / "bytecode") as (process, port):
                return _asked(process, port)


@contextmanager
def _service(profile: str, endpoints: Endpoints, bytecode: Path) -> Iterator[tuple[psutil.Process, int]]:
    port = free_port()
    ours = {
        "MESH_QR_PROFILE": profile,
        "MESH_HTTP_PORT": str(port),
        "MESH_LOG_LEVEL": "warning",
        "PYTHONPATH": f"{ROOT / 'shared'}{os.pathsep}{ROOT / 'services'}",
        "PYTHONPYCACHEPREFIX": str(bytecode),
    }
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [sys.executable, "-m", "qr_decoder"],
        env={**MALLOC, **inherited, **endpoints.environment(), **ours},
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_until_ready(port)
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(OSError):
            if _get(port, "/ready") == 200:
                return
        if time.monotonic() > deadline:
            raise RuntimeError("the qr-decoder did not become ready")
        time.sleep(0.1)


def _get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def _asked(process: psutil.Process, port: int) -> dict[str, float]:
    pictures = _pictures()
    loaded = _memory(process)
    watch = _Watch(process)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times = []
    began, cpu = time.perf_counter(), _cpu(process)
    for picture in pictures:
        asked = time.perf_counter()
        connection.request("POST", "/detect", picture, {"content-type": "application/octet-stream"})
        json.loads(connection.getresponse().read())
        times.append(1000 * (time.perf_counter() - asked))
    spent, cpu = time.perf_counter() - began, _cpu(process) - cpu
    connection.close()
    return {
        "loaded": loaded,
        "peak": watch.stop(),
        "p50": percentile(times, 0.5),
        "p95": percentile(times, 0.95),
        "p99": percentile(times, 0.99),
        "rate": len(pictures) / spent,
        "cpu_rate": len(pictures) / cpu,
    }


@cache
def _pictures() -> list[bytes]:
    """The scenarios in their shares, one among the others, at least one of each."""
    pictures = []
    for name, (_, share) in qr_scenes.SCENARIOS.items():
        count = max(round(PICTURES * share), 1)
        for number, scene in enumerate(qr_scenes.scenes(name, count)):
            file = io.BytesIO()
            Image.fromarray(scene.picture).save(file, "JPEG", quality=90)
            pictures.append(((number + 0.5) / count, file.getvalue()))
    return [data for _, data in sorted(pictures, key=lambda each: each[0])]


def _processes(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _memory(process: psutil.Process) -> float:
    """MiB of all processes, what they share counted once."""
    return sum(each.memory_full_info().pss for each in _processes(process)) / 2**20


def _cpu(process: psutil.Process) -> float:
    """Seconds that all processes have worked."""
    return sum(sum(each.cpu_times()[:2]) for each in _processes(process))


class _Watch:
    """Looks at the memory of processes until it is stopped."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._stopped = Event()
        self._peak = 0.0
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._stopped.wait(0.02):
            # A child may end while it is looked at.
            with suppress(psutil.Error):
                self._peak = max(self._peak, _memory(self._process))

    def stop(self) -> float:
        """The largest sum seen, in MiB."""
        self._stopped.set()
        self._thread.join()
        return self._peak
