"""A mesh that is operated while it works: replicas that follow the lag, services that are replaced.

One mesh for the whole module, on free ports, on the stack that MESH_TEST_STACK names.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import Producer

import waiting
from running_mesh import RunningMesh, running_mesh
from steady_uploads import SteadyUploads
from visionmesh.kafka import partition_offsets
from visionmesh.mesh import SERVICES
from visionmesh.object_store import S3ObjectStore
from visionmesh.settings import ROOT
from visionmesh.worker.dead_letters import read_dead_letters

CAT = ROOT / "samples" / "cat.jpg"
CLASSIFIER = "classifier-fast"
IMAGES = "images-input-stream"
FEATURES = "image-features-stream"
READINGS = "sensor-readings-stream"
CONTRACTS = Path(__file__).parent.parent / "contract"

# Services are started one after the other, each of which takes seconds on a busy machine.
DEADLINE_SECONDS = 300.0
until = partial(waiting.eventually, seconds=DEADLINE_SECONDS)

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    # A transaction for every message: so much takes long enough to be followed by new processes.
    slow = {"MESH_WORKER_MAX_BATCH": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("running_mesh.DEADLINE_SECONDS", DEADLINE_SECONDS)
        with running_mesh(tmp_path_factory.mktemp("mesh"), environment=slow) as mesh:
            yield mesh


def command(mesh: RunningMesh, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "visionmesh.cli", *arguments, "--directory", str(mesh.directory)]


@contextmanager
def autoscaling(mesh: RunningMesh, *arguments: str) -> Iterator[Path]:
    """`mesh autoscale` in the background; yields the file of what it says."""
    log = mesh.directory / "autoscale.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command(mesh, "autoscale", *arguments), stderr=file)
    try:
        yield log
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 0, log.read_text()


def lag(mesh: RunningMesh, topic: str, *groups: str) -> int:
    return sum(each.lag for group in groups for each in partition_offsets(mesh.settings(), topic, group))


def replicas(mesh: RunningMesh) -> Counter[str]:
    return Counter(one["service"] for one in mesh.state()["replicas"])


def test_replicas_follow_a_burst_up_and_down_again(mesh: RunningMesh) -> None:
    producer = Producer({"bootstrap.servers": mesh.environment["MESH_KAFKA_BOOTSTRAP"]})

    def three_under_load() -> bool:
        """Keeps messages waiting, whatever the speed of this machine, until there are three replicas."""
        for _ in range(max(0, 500 - lag(mesh, FEATURES, CLASSIFIER))):
            image_id = f"burst-{uuid4()}"
            features = {"image_id": image_id, "descriptors": [0.5] * 20, "descriptor_count": 20}
            producer.produce(FEATURES, json.dumps(features).encode(), image_id)
        assert producer.flush(30) == 0
        return replicas(mesh)[CLASSIFIER] == 3

    rule = (f"{CLASSIFIER}=1:3:50", "--cool-down", "2", "--settle", "0.5", "--every", "0.2")
    with autoscaling(mesh, *rule) as log:
        for _ in range(2):
            until(three_under_load, "three replicas")
            until(lambda: lag(mesh, FEATURES, CLASSIFIER) == 0, "end of the burst")
            until(lambda: replicas(mesh)[CLASSIFIER] == 1, "one replica again")
    said = log.read_text()
    assert "to 3 replicas" in said
    assert "to 1 replicas" in said
    assert set(replicas(mesh).values()) == {1}


def test_every_service_is_replaced_under_load_and_nothing_is_lost(mesh: RunningMesh) -> None:
    before = {one["pid"] for one in mesh.state()["replicas"]}
    with SteadyUploads(str(mesh.http.base_url)) as uploads:
        until(lambda: len(uploads.accepted) > 3, "first uploads")
        names = [service.name for service in SERVICES]
        done = subprocess.run(
            command(mesh, "restart", *names), capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        reached = len(uploads.accepted)
        until(lambda: len(uploads.accepted) > reached + 3, "uploads afterwards")
    after = [one["pid"] for one in mesh.state()["replicas"]]
    assert not before & set(after)
    assert len(after) == len(before)
    assert uploads.refused == []
    print(f"{len(uploads.accepted)} pictures accepted, {uploads.again} tried again")
    for image_id in uploads.accepted:
        found = mesh.outcome(image_id)
        assert found["status"] == "done", found
        assert [one["label"] for one in found["predictions"]] == ["cat"] * 3
        assert found["consensus"]["complete"]


def ended(mesh: RunningMesh, image_id: str) -> bool:
    """Whether everybody has come to an end with a picture."""
    answer = mesh.http.get(f"/results/{image_id}")
    if answer.status_code != 200:
        return False
    states = {one["worker"]: one["state"] for one in answer.json()["outcomes"]}
    return len(states) == 6 and "running" not in states.values()


def test_pictures_that_are_deleted_while_workers_have_them_do_not_come_back(mesh: RunningMesh) -> None:
    picture = CAT.read_bytes()
    pauses = itertools.cycle((0.0, 0.01, 0.05, 0.2, 0.5))
    deleted = []
    for _ in range(10):
        answer = mesh.http.post("/upload", files={"file": picture}).json()
        # At another moment of their work each time; whichever it is, nothing may come back.
        time.sleep(next(pauses))
        assert mesh.http.delete(answer["links"]["image"]).status_code == 204
        deleted.append(answer)
    last = mesh.http.post("/upload", files={"file": picture}).json()["image_id"]
    until(lambda: ended(mesh, last), "results of the last picture")
    groups = ("feature-extractor", "qr-decoder", "ocr-worker")
    until(lambda: lag(mesh, IMAGES, *groups) == 0, "end of the messages")
    store = S3ObjectStore.from_settings(mesh.settings())
    there = {each.minio_path for each in store.objects()}
    letters = [
        each.key for group in groups for each in read_dead_letters(mesh.settings(), f"{IMAGES}.{group}.dlq")
    ]
    for answer in deleted:
        for link in ("results", "predictions", "image", "content"):
            assert mesh.http.get(answer["links"][link]).status_code == 404
        assert mesh.http.delete(answer["links"]["image"]).status_code == 204
        assert answer["minio_path"] not in there
        assert answer["image_id"].encode() not in letters


def test_a_mesh_that_was_operated_on_fits_together(mesh: RunningMesh) -> None:
    done = subprocess.run(
        command(mesh, "reconcile", "--older-than", "0", "--look-only", "--json"),
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    # The simulated camera's pictures go on coming.
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [each for each in found if each["finding"] == "object without a row"], found


def goldens(topic: str) -> list[dict[str, Any]]:
    """A message of every version and kind that services of this topic have to take."""
    found = [json.loads(golden.read_text()) for golden in sorted((CONTRACTS / topic).glob("v*/*.json"))]
    assert len(found) >= 3
    return found


def test_messages_of_old_and_new_services_are_served_side_by_side(mesh: RunningMesh) -> None:
    path = mesh.store(f"versions/{uuid4()}.jpg", CAT.read_bytes())
    ids = []
    for golden in goldens(IMAGES):
        message = golden | {"image_id": f"version-{uuid4()}", "minio_path": path}
        # What a digest claims has to be true.
        message.pop("sha256", None)
        message.pop("tasks", None)
        mesh.publish(IMAGES, message["image_id"], json.dumps(message).encode())
        ids.append(message["image_id"])
    for image_id in ids:
        assert [one["label"] for one in mesh.outcome(image_id)["predictions"]] == ["cat"] * 3


def test_descriptors_of_old_and_new_extractors_are_served_side_by_side(mesh: RunningMesh) -> None:
    path = mesh.store(f"versions/{uuid4()}.jpg", CAT.read_bytes())
    seen = f"version-{uuid4()}"
    mesh.publish(IMAGES, seen, json.dumps({"image_id": seen, "minio_path": path}).encode())
    mesh.outcome(seen)
    found = mesh.http.get(f"/results/{seen}").json()["features"]
    for golden in goldens(FEATURES):
        # Those of a picture, and where a model is named, the one that they are of.
        truth = {name: found[name] for name in golden.keys() & {"descriptors", "descriptor_count", "model"}}
        message = golden | truth | {"image_id": f"version-{uuid4()}"}
        mesh.publish(FEATURES, message["image_id"], json.dumps(message).encode())
        outcome = mesh.outcome(message["image_id"])
        assert [one["label"] for one in outcome["predictions"]] == ["cat"] * 3, outcome


def test_readings_of_old_and_new_devices_are_served_side_by_side(mesh: RunningMesh) -> None:
    for golden in goldens(READINGS):
        device = f"version-{uuid4()}"
        message = golden | {"device_id": device, "captured_at": datetime.now(UTC).isoformat()}
        mesh.publish(READINGS, device, json.dumps(message).encode())
        address = f"/sensors/{device}/{message['sensor']}/readings"
        until(partial(is_known, mesh, address), f"the reading {message}")
        (stored,) = mesh.http.get(address).json()["readings"]
        expected = {name: golden.get(name) for name in ("seq", "values", "monotonic_ns")}
        assert {name: stored[name] for name in expected} == expected


def is_known(mesh: RunningMesh, address: str) -> bool:
    return mesh.http.get(address).status_code == 200
