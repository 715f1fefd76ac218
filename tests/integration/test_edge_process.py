"""The edge-publisher as a process: how it starts, what keeps it from starting, how it ends."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from edge_doubles import DEADLINE_SECONDS, eventually
from visionmesh.stack.ports import free_port


def environment(path: Path, **more: str) -> dict[str, str]:
    """Of a device whose Kafka is away."""
    return os.environ | {
        "EDGE_DEVICE_ID": "pi-1",
        "EDGE_SENSORS": '["tfluna"]',
        "EDGE_SIMULATE": "all",
        "EDGE_QUEUE_PATH": str(path),
        "MESH_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "MESH_HTTP_PORT": str(free_port()),
    } | more  # fmt: skip


def ended(path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_publisher"],
        env=environment(path, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
    )


@contextmanager
def running(path: Path, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    with path.with_suffix(".log").open("ab") as log:
        variables = environment(path, **more)
        process = subprocess.Popen(
            [sys.executable, "-m", "edge_publisher"], env=variables, stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{variables['MESH_HTTP_PORT']}", timeout=30) as client:

            def measures() -> bool:
                try:
                    return int(client.get("/health").json()["queue"]["waiting"]["kafka"]) > 10
                except httpx.TransportError:
                    assert process.poll() is None, path.with_suffix(".log").read_text()
                    return False

            eventually(measures, "readings")
            yield process, client
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("EDGE_TFLUNA_HZ", "1000", "EDGE_TFLUNA_HZ: "),
        ("EDGE_DEVICE_ID", "a b", "EDGE_DEVICE_ID: "),
        ("EDGE_SENSORS", "all", "EDGE_SENSORS: "),
        ("EDGE_MQTT_URL", "http://host", "EDGE_MQTT_URL has to be like"),
    ],
)
def test_a_setting_that_does_not_parse_is_named(tmp_path: Path, variable: str, value: str, says: str) -> None:
    process = ended(tmp_path / "queue.db", **{variable: value})
    assert process.returncode == 2
    assert says in process.stderr
    assert "Traceback" not in process.stderr


def test_readings_are_taken_while_kafka_is_away_and_numbered_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    for _ in range(2):
        with running(path) as (process, client):
            # Kafka is waited for; the device works.
            assert client.get("/ready").status_code == 200
            assert client.get("/tfluna/sensor").json()["sensor"] == "tfluna"
            process.send_signal(signal.SIGKILL)
            process.wait()
    with closing(sqlite3.connect(path)) as connection:
        values = [
            json.loads(value) for (value,) in connection.execute("SELECT value FROM readings ORDER BY id")
        ]
        (last,) = connection.execute("SELECT seq FROM sources").fetchone()
    assert [each["seq"] for each in values] == list(range(1, last + 1))
    assert {each["device_id"] for each in values} == {"pi-1"}


def test_a_second_process_on_the_same_queue_says_why_it_does_not_start(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with running(path):
        second = ended(path)
    assert second.returncode == 1
    assert "is in use by another edge-publisher" in second.stderr


def test_it_ends_by_itself_though_somebody_listens_and_kafka_is_away(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    with running(path) as (process, client):
        address = client.base_url.copy_with(scheme="ws").join("/ws")
        with connect(str(address)) as live:
            assert json.loads(live.recv(timeout=30))["sensor"] == "tfluna"
            process.terminate()
            assert process.wait(DEADLINE_SECONDS) == 0, path.with_suffix(".log").read_text()
    with closing(sqlite3.connect(path)) as connection:
        (clean,) = connection.execute("SELECT clean FROM process").fetchone()
        (held,) = connection.execute("SELECT count(*) FROM readings").fetchone()
        (last,) = connection.execute("SELECT seq FROM sources").fetchone()
    assert (clean, held) == (1, last)
