"""The mesh in containers, as a user starts it: `pytest -m docker` (Docker with compose; takes minutes)."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any, Final

import httpx
import numpy as np
import pytest
from confluent_kafka import Producer
from minio import Minio
from PIL import Image, ImageDraw
from websockets.sync.client import connect

import grafana
from compose_mesh import ADDRESS, ROOT, ComposeMesh, compose_mesh, http
from promql import asked, metrics_in
from visionmesh.compose import ComposeError
from visionmesh.topics import CLASSIFIERS, IMAGES

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

REPLICAS: Final = 3
# Read of version 2 of Linux's control groups alone.
MEMORY_OF_CONTAINERS: Final = {"mesh_memory_kills_total", "mesh_memory_limit_bytes"}


def picture(seed: int, size: tuple[int, int] = (96, 64)) -> bytes:
    """A JPEG unlike any other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def eventually(check: Callable[[], Any], seconds: float, what: str) -> Any:
    """Polls until `check` returns something true."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(httpx.TransportError):
            if found := check():
                return found
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(0.25)


def upload(seed: int) -> str:
    answer = httpx.post(
        f"{http(8001)}/upload", files={"file": (f"{seed}.jpg", picture(seed), "image/jpeg")}, timeout=60
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["image_id"])


def predictions(image_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{http(8001)}/predictions/{image_id}", timeout=10).json()
    return answer


def all_three(image_id: str) -> bool:
    found = {prediction["classifier"] for prediction in predictions(image_id).get("predictions", [])}
    return {f"classifier-{name}" for name in found} == set(CLASSIFIERS)


def document(pages: int) -> bytes:
    """A PDF whose pages say which they are."""
    sheets = [Image.new("RGB", (800, 400), "white") for _ in range(pages)]
    for number, sheet in enumerate(sheets, 1):
        ImageDraw.Draw(sheet).text((40, 40), f"Hoja {number} de {pages}", fill="black", font_size=32)
    buffer = io.BytesIO()
    sheets[0].save(buffer, "PDF", save_all=True, append_images=sheets[1:])
    return buffer.getvalue()


def pages_read(worker: str) -> float:
    """What a container of ocr-worker says that it has read since it started."""
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8500/metrics').read().decode())"
    done = subprocess.run(["docker", "exec", worker, "python", "-c", ask], capture_output=True, text=True)
    return float(done.stdout.partition("\nmesh_ocr_pages_total ")[2].partition("\n")[0] or 0)


def control_groups() -> int:
    """Their version, as Docker has them."""
    command = ["docker", "info", "--format", "{{.CgroupVersion}}"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeMesh]:
    with compose_mesh(tmp_path_factory.mktemp("compose")) as mesh:
        try:
            mesh.up("--build", replicas={"classifier-fast": REPLICAS})
            yield mesh
        finally:
            if request.session.testsfailed:
                with suppress(ComposeError):
                    print(mesh.compose("logs", "--no-color", "--tail", "15"))


def test_the_seeds_calls_give_their_answers(mesh: ComposeMesh) -> None:
    assert httpx.get(f"{http(8001)}/health").status_code == 200
    uploaded = httpx.post(f"{http(8001)}/upload", files={"file": picture(0)}).json()
    eventually(lambda: all_three(uploaded["image_id"]), 30, "three predictions")

    # Letter for letter: the picture of the walk-through was put there by `topics`.
    walked = httpx.post(
        f"{http(8006)}/extract", json={"image_id": "test-123", "minio_path": "raw-images/test.jpg"}
    ).json()
    assert walked["image_id"] == "test-123"
    assert walked["descriptor_count"] == len(walked["descriptors"]) == 20

    extracted = httpx.post(
        f"{http(8006)}/extract", json={"image_id": "test-123", "minio_path": uploaded["minio_path"]}
    ).json()

    stored = {one["classifier"]: one["label"] for one in predictions(uploaded["image_id"])["predictions"]}
    for port, classifier in {8003: "fast", 8004: "accurate", 8005: "balanced"}.items():
        answer = httpx.post(f"{http(port)}/predict", json={"descriptors": extracted["descriptors"]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["label"] == stored[classifier]


def test_the_qr_decoder_answers_and_stores(mesh: ComposeMesh) -> None:
    sample = (ROOT / "samples" / "qr.png").read_bytes()
    content = httpx.post(f"{http(8008)}/qr/hybrid-fallback", content=sample).json()["content"]
    for profile in ("ultralight", "cascade"):
        found = httpx.post(f"{http(8008)}/detect", params={"profile": profile}, content=sample).json()
        assert found["data"] == content
    uploaded = httpx.post(f"{http(8001)}/upload", files={"file": sample}).json()
    results = f"{http(8001)}/results/{uploaded['image_id']}"
    codes = eventually(lambda: httpx.get(results).json()["qr_codes"], 30, "the code")
    assert [code["content"] for code in codes] == [content]


def test_the_ocr_worker_answers_stores_and_finds(mesh: ComposeMesh) -> None:
    page = Image.new("RGB", (900, 200), "white")
    ImageDraw.Draw(page).text((40, 30), "Facturas 4711", fill="black", font_size=40)
    file = io.BytesIO()
    page.save(file, "PNG")
    at_once = httpx.post(f"{http(8500)}/ocr", files={"file": file.getvalue()}, timeout=60).json()
    assert at_once["text"] == "Facturas 4711"
    task_id = httpx.post(f"{http(8500)}/process", files={"file": file.getvalue()}, timeout=30).json()[
        "task_id"
    ]
    result = f"{http(8500)}/result/{task_id}"
    found = eventually(lambda: httpx.get(result).json().get("result"), 60, "the text")
    assert found["text"] == "Facturas 4711"
    (hit,) = httpx.get(f"{http(8001)}/search", params={"q": "factura"}).json()["results"]
    assert hit["image_id"] == task_id
    made = httpx.get(f"{http(8001)}/images/{task_id}/text.pdf", timeout=60)
    assert made.headers["content-type"] == "application/pdf"
    drawn = httpx.get(f"{http(8001)}/images/{task_id}/annotated", params={"task": "ocr"}, timeout=60)
    assert Image.open(io.BytesIO(drawn.content)).size == page.size


def test_a_killed_ocr_worker_leaves_its_document_to_another(mesh: ComposeMesh) -> None:
    scale = ("up", "--wait", "--no-recreate", "--no-deps", "--scale", "ocr-worker=2", "ocr-worker")
    mesh.compose(*scale)
    workers = mesh.containers("ocr-worker")
    assert len(workers) == 2
    before = {worker: pages_read(worker) for worker in workers}
    # Long enough to be caught in the middle by questions that take seconds on a busy machine.
    pages = 100
    file = document(pages)
    task_id = httpx.post(f"{http(8500)}/process", files={"file": file}, timeout=60).json()["task_id"]

    def reading() -> str | None:
        with ThreadPoolExecutor(2) as pool:
            read = dict(zip(workers, pool.map(pages_read, workers), strict=True))
        return next((worker for worker in workers if read[worker] >= before[worker] + 2), None)

    doomed = eventually(reading, 60, "a worker in the middle of the document")
    subprocess.run(["docker", "kill", "-s", "KILL", doomed], check=True, capture_output=True)
    result = f"{http(8500)}/result/{task_id}"
    assert httpx.get(result, timeout=10).json()["status"] == "processing", "it was read before the kill"
    found = eventually(lambda: httpx.get(result, timeout=10).json().get("result"), 180, "the whole text")
    assert len(found["pages"]) == pages
    assert all(f"Hoja {page} de {pages}" in found["text"] for page in range(1, pages + 1))
    (survivor,) = set(workers) - {doomed}
    assert pages_read(survivor) >= before[survivor] + pages
    mesh.compose("up", "-d", "--no-deps", "--scale", "ocr-worker=1", "ocr-worker")


def test_a_plain_producer_on_the_host_is_served(mesh: ComposeMesh) -> None:
    values = mesh.values
    store = Minio(f"127.0.0.1:{values['MINIO_PORT']}", "mesh", values["MINIO_ROOT_PASSWORD"], secure=False)
    content = picture(1)
    store.put_object("raw-images", "by-hand/one.jpg", io.BytesIO(content), len(content))
    producer = Producer({"bootstrap.servers": f"127.0.0.1:{values['KAFKA_PORT']}"})
    for image_id, path in {"by-hand-1": "by-hand/one.jpg", "by-hand-2": "by-hand/missing.jpg"}.items():
        message = {"image_id": image_id, "minio_path": f"raw-images/{path}"}
        producer.produce(IMAGES.name, json.dumps(message), image_id)
    assert producer.flush(20) == 0
    eventually(lambda: all_three("by-hand-1"), 30, "three predictions for a plain producer's picture")
    eventually(
        lambda: mesh.sql("select state from task_outcomes where image_id = 'by-hand-2'") == [["failed"]] * 3,
        30,
        "a failed outcome of each reader of pictures for the missing object",
    )


def test_replicas_share_the_group_and_the_work(mesh: ComposeMesh) -> None:
    assert mesh.members("classifier-fast") == [4] * REPLICAS

    with ThreadPoolExecutor(4) as pool:
        image_ids = list(pool.map(upload, range(1000, 1060)))
    for image_id in image_ids:
        eventually(lambda image_id=image_id: all_three(image_id), 60, f"three predictions of {image_id}")  # type: ignore[misc]
    finished = 'sum by (instance) (mesh_messages_finished_total{job="classifier-fast", outcome="done"}) > 0'
    eventually(lambda: len(mesh.prometheus(finished)) == REPLICAS, 30, "work on every replica")


def test_the_gateway_hides_the_death_of_a_replica(mesh: ComposeMesh) -> None:
    doomed = mesh.containers("classifier-fast")[0]
    answers: Counter[int] = Counter()
    over = Event()

    def ask() -> None:
        with httpx.Client(timeout=20) as client:
            while not over.is_set():
                answer = client.post(f"{http(8003)}/predict", json={"descriptors": [0.1] * 20})
                answers[answer.status_code] += 1

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            eventually(lambda: answers.total() > 200, 30, "answers from three replicas")
            subprocess.run(["docker", "kill", "-s", "KILL", doomed], check=True, capture_output=True)
            seen = answers.total()
            eventually(lambda: answers.total() > seen + 400, 30, "answers from the other two")
        finally:
            over.set()
            subprocess.run(["docker", "start", doomed], check=True, capture_output=True)
        for one in asking:
            one.result()
    assert set(answers) == {200}


def test_a_service_without_replicas_is_an_error_that_helps(mesh: ComposeMesh) -> None:
    mesh.compose("stop", "classifier-balanced")
    answer = httpx.post(f"{http(8005)}/predict", json={"descriptors": [0.1] * 20}, timeout=20)
    mesh.compose("up", "-d", "--no-recreate", "--no-deps", "classifier-balanced")
    assert answer.status_code == 503
    assert answer.json()["code"] == "service_unavailable"
    assert "classifier-balanced" in answer.json()["error"]
    assert int(answer.headers["retry-after"]) > 0


def test_a_device_with_simulated_sensors_is_read_back(mesh: ComposeMesh) -> None:
    assert httpx.get(f"{http(8000)}/imx477/sensor", timeout=30).status_code == 200

    def sensors() -> set[str]:
        return {one["sensor"] for one in httpx.get(f"{http(8001)}/sensors", timeout=10).json()["sensors"]}

    eventually(lambda: {"imx477", "mpu6050", "tfluna", "hcsr04"} <= sensors(), 60, "readings of every sensor")
    assert "simulated_otherwise" not in mesh.compose("logs", "edge-publisher"), "bleak has no bus"
    with connect(f"ws://{ADDRESS}:8000/ws?sensor=hcsr04", open_timeout=20) as live:
        assert json.loads(live.recv(timeout=20))["sensor"] == "hcsr04"
    path = f"{http(8001)}/sensors/edge-1/tfluna/readings"
    first = httpx.get(path, params={"limit": 10}).json()["readings"]
    assert [one["seq"] for one in first] == list(range(1, 11))
    (publisher,) = mesh.containers("edge-publisher")
    subprocess.run(["docker", "kill", "-s", "KILL", publisher], check=True, capture_output=True)
    mesh.compose("up", "-d", "--no-recreate", "--no-deps", "edge-publisher")
    counted = "select count(*), max(seq) from sensor_readings where sensor = 'tfluna'"
    (before, _), *_ = mesh.sql(counted)

    def goes_on() -> bool:
        ((count, last),) = mesh.sql(counted)
        return int(count) > int(before) + 100 and count == last

    eventually(goes_on, 60, "numbers that go on, without a hole")


def test_a_killed_extractor_loses_nothing(mesh: ComposeMesh) -> None:
    (extractor,) = mesh.containers("feature-extractor")
    with ThreadPoolExecutor(4) as pool:
        uploads = [pool.submit(upload, seed) for seed in range(2000, 2200)]
        while sum(one.done() for one in uploads) < 60:
            time.sleep(0.02)
        subprocess.run(["docker", "kill", "-s", "KILL", extractor], check=True, capture_output=True)
        # Whoever kills by hand starts again by hand: the engine restarts only what died by itself.
        mesh.compose("up", "-d", "--no-recreate", "--no-deps", "feature-extractor")
        image_ids = [one.result() for one in uploads]
    wanted = ",".join(f"'{image_id}'" for image_id in image_ids)
    per_image = (
        f"select image_id from predictions where image_id in ({wanted}) group by 1 having count(*) = 3"
    )
    eventually(lambda: len(mesh.sql(per_image)) == len(image_ids), 120, "three predictions for all uploads")
    assert mesh.sql(f"select count(*) from image_features where image_id in ({wanted})") == [["200"]]
    unfinished = f"select * from task_outcomes where state <> 'done' and image_id in ({wanted})"
    eventually(lambda: mesh.sql(unfinished) == [], 120, "no outcome but `done`")


def test_containers_run_locked_down(mesh: ComposeMesh) -> None:
    for service in (
        "ingest-api",
        "feature-extractor",
        "qr-decoder",
        "ocr-worker",
        "edge-publisher",
        "sensor-sink",
        *CLASSIFIERS,
        "gateway",
        "minio",
        "redis",
        "kafka",
    ):
        for container in mesh.containers(service):
            host = json.loads(
                subprocess.run(["docker", "inspect", container], check=True, capture_output=True).stdout
            )[0]["HostConfig"]
            assert host["ReadonlyRootfs"] is True
            top = subprocess.run(
                ["docker", "top", container, "-eo", "pid,uid"], check=True, capture_output=True, text=True
            )
            users = [line.split()[1] for line in top.stdout.splitlines()[1:]]
            assert users
            assert "0" not in users, service
    denied = subprocess.run(
        ["docker", "exec", mesh.containers("ingest-api")[0], "touch", "/app/x"],
        capture_output=True,
        text=True,
    )
    assert "Read-only" in denied.stderr


def test_every_panel_of_every_dashboard_shows_data(mesh: ComposeMesh) -> None:
    untold = MEMORY_OF_CONTAINERS if control_groups() == 1 else set()
    # The missing object's dead letter is told of for a quarter of an hour; whatever else fires is shown too.
    silent = [
        f"{where}: {query}"
        for where, query in grafana.queries()
        if not metrics_in(query) & untold
        and not any(math.isfinite(float(series["value"][1])) for series in mesh.prometheus(query))
    ]
    assert not silent
    assert [where for where, sql in grafana.statements() if not mesh.sql(sql)] == []
    (shown,) = (
        panel
        for panel in grafana.BOARDS["overview"]["panels"]
        if panel["title"] == "Dead letters, 1 h" and panel["type"] == "stat"
    )
    (dead,) = mesh.prometheus(asked(shown["targets"][0]["expr"]))
    assert float(dead["value"][1]) == 3, "the missing object, though one of its workers was killed since"


def test_every_replica_is_scraped(mesh: ComposeMesh) -> None:
    # A replica that just came back has to be found first.
    eventually(lambda: len(mesh.prometheus('up{job="classifier-fast"} == 1')) == REPLICAS, 30, "all found")
    eventually(lambda: not mesh.prometheus("up == 0"), 30, "all answering")


def test_the_doctor_finds_nothing_wrong(mesh: ComposeMesh) -> None:
    def wrong() -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "visionmesh.cli", "doctor", "--compose", "--json"],
            cwd=ROOT, env=mesh.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        findings = [json.loads(line) for line in done.stdout.splitlines()]
        assert {"kafka", "schema", "sensor-sink"} <= {one["name"] for one in findings}, done.stderr
        # What this machine has is not the mesh's doing.
        return [one for one in findings if one["problem"] and not one["name"].startswith(("memory", "disk"))]

    # Replicas that were killed by others of these tests may be on their way back.
    with suppress(pytest.fail.Exception):
        eventually(lambda: not wrong(), 90, "health of every container")
    assert not wrong()


def test_prometheus_and_caddy_accept_their_files(mesh: ComposeMesh) -> None:
    mesh.compose("exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    caddy = ["caddy", "validate", "--adapter", "caddyfile", "--config", "/etc/caddy/Caddyfile"]
    mesh.compose("exec", "-T", "gateway", *caddy)


def test_without_env_compose_says_what_to_do(tmp_path: Path) -> None:
    empty = tmp_path / ".env"
    empty.write_text("")
    done = subprocess.run(
        ["docker", "compose", "--env-file", str(empty), "config", "--quiet"],
        cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert re.search(r"[A-Z_]+ is missing a value: run `make env`", done.stderr), done.stderr
