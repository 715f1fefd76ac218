"""Sensors as their users see them: simulated devices, real drivers, readings over HTTP and live."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from running_mesh import RunningMesh, running_mesh, until
from visionmesh.contracts import VALUES

# Bluetooth is simulated on a D-Bus.
SENSORS = set(VALUES) - (set() if shutil.which("dbus-daemon") else {"hcsr04"})
DEVICE = "pi-of-the-test"

# About as many readings as all sensors have in one.
A_SECOND = 360


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    environment = {"EDGE_DEVICE_ID": DEVICE, "EDGE_SENSORS": json.dumps(sorted(SENSORS))}
    with running_mesh(tmp_path_factory.mktemp("mesh"), environment=environment) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def edge(mesh: RunningMesh) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=mesh.url_of("edge-publisher"), timeout=30) as client:
        until(lambda: client.get("/health").json()["status"] == "ok" or None, "sensors that are connected")
        yield client


def test_every_sensor_answers_on_the_device(edge: httpx.Client) -> None:
    def reading(sensor: str) -> dict[str, Any] | None:
        answer = edge.get(f"/{sensor}/sensor")
        # A sensor that told nothing for two seconds is answered for with 503.
        return dict(answer.json()) if answer.status_code == 200 else None

    for sensor in SENSORS:
        found = until(partial(reading, sensor), f"a reading of {sensor}")
        assert set(found["values"]) == set(VALUES[sensor].__struct_fields__)


def test_readings_are_read_back_from_the_database(mesh: RunningMesh, edge: httpx.Client) -> None:
    def known() -> dict[str, Any] | None:
        sensors = {one["sensor"]: one for one in mesh.http.get("/sensors").json()["sensors"]}
        return sensors if sensors.keys() == SENSORS else None

    sensors = until(known, "readings of every sensor")
    assert {one["device_id"] for one in sensors.values()} == {DEVICE}
    path = f"/sensors/{DEVICE}/tfluna/readings"

    def readings() -> list[dict[str, Any]] | None:
        found = mesh.http.get(path, params={"limit": 10_000}).json()["readings"]
        return found if len(found) >= 20 else None

    found = until(readings, "twenty distances")
    assert [one["seq"] for one in found] == list(range(1, len(found) + 1))
    assert all(one["values"].keys() == set(VALUES["tfluna"].__struct_fields__) for one in found)
    spans = mesh.http.get(path, params={"resolution": "1s"}).json()["buckets"]
    assert sum(span["readings"] for span in spans) >= len(found)


def test_live_readings_come_with_numbers_that_go_on(edge: httpx.Client) -> None:
    address = edge.base_url.copy_with(scheme="ws").join("/ws?sensor=tfluna")
    with connect(str(address), open_timeout=30) as live:
        found = [json.loads(live.recv(timeout=30)) for _ in range(5)]
    assert [one["seq"] for one in found] == list(range(found[0]["seq"], found[0]["seq"] + 5))
    assert {one["sensor"] for one in found} == {"tfluna"}


def test_the_device_shows_its_threads_and_its_queue(edge: httpx.Client) -> None:
    assert 'mesh_edge_camera_threads{state="size"} 2.0' in edge.get("/metrics").text

    def waiting() -> int:
        sinks = edge.get("/health").json()["queue"]["waiting"]
        assert sinks.keys() == {"kafka"}
        return int(sinks["kafka"])

    # Readings never stop coming, so that it is seldom seen empty.
    until(lambda: waiting() < A_SECOND or None, "a queue that is published as it fills")


def test_the_queue_is_the_meshs_own(mesh: RunningMesh) -> None:
    assert (mesh.directory / "edge" / "queue.db").exists()
