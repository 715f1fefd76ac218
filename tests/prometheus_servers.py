"""Prometheus itself and its tool, where this machine has them: on the path, or unpacked by `.ci/run`."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from visionmesh.stack.ports import free_port
from visionmesh.stack.prepare import cache_directory

DEADLINE_SECONDS = 60.0


def program(name: str) -> str:
    """Where a program of Debian's package `prometheus` is; skips the test where there is none."""
    unpacked = cache_directory() / "prometheus" / "usr" / "bin"
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{unpacked}")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: prometheus)")
    return found


def promtool() -> str:
    return program("promtool")


@contextmanager
def running_prometheus(directory: Path, configuration: str) -> Iterator[str]:
    """A server with this configuration; gives its address."""
    binary = program("prometheus")
    (directory / "prometheus.yml").write_text(configuration)
    url = f"http://127.0.0.1:{free_port()}"
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={url.removeprefix('http://')}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not _is_ready(url):
            assert process.poll() is None, (directory / "prometheus.log").read_text()
            assert time.monotonic() < deadline, "Prometheus did not become ready"
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False
