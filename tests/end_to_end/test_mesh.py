"""The mesh as its users see it: `mesh up`, pictures in by HTTP and by Kafka, answers out by HTTP.

One mesh for the whole module, on free ports, on the stack that MESH_TEST_STACK names.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import segno
from PIL import Image

from openapi_fuzz import fuzzed
from running_mesh import DEADLINE_SECONDS, RunningMesh, running_mesh, until
from visionmesh.settings import ROOT
from visionmesh.worker.dead_letters import DeadLetter, read_dead_letters

CAT = ROOT / "samples" / "cat.jpg"
IMAGES = "images-input-stream"
FEATURES = "image-features-stream"
EXTRACTOR = "feature-extractor"
DECODER = "qr-decoder"

# Calls of each operation beside those at the edges of its schema.
FUZZ_EXAMPLES = int(os.environ.get("MESH_FUZZ_EXAMPLES", 2))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


def assert_served_in_full(mesh: RunningMesh, image_id: str) -> None:
    found = mesh.outcome(image_id)
    assert found["status"] == "done", found
    assert {one["classifier"] for one in found["predictions"]} == {"fast", "balanced", "accurate"}
    for one in found["predictions"]:
        assert one["label"] == "cat"
        assert 0 < one["confidence"] <= 1
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert (found["consensus"]["label"], found["consensus"]["agreement"]) == ("cat", "unanimous")
    assert found["consensus"]["complete"]
    results = mesh.http.get(f"/results/{image_id}").json()
    assert results["features"]["descriptor_count"] == len(results["features"]["descriptors"]) == 20


def test_an_uploaded_picture_gets_three_labels(mesh: RunningMesh) -> None:
    answer = mesh.http.post("/upload", files={"file": ("cat.jpg", CAT.read_bytes())})
    assert answer.status_code == 202, answer.text
    assert_served_in_full(mesh, answer.json()["image_id"])


def test_a_message_of_the_seeds_fields_for_an_object_that_was_never_uploaded_is_served_in_full(
    mesh: RunningMesh,
) -> None:
    image_id = f"plain-{uuid4()}"
    path = mesh.store(f"2024/10/06/{image_id}.jpg", CAT.read_bytes())
    mesh.publish(IMAGES, image_id, json.dumps({"image_id": image_id, "minio_path": path}).encode())
    assert_served_in_full(mesh, image_id)
    assert mesh.http.get(f"/results/{image_id}").json()["image"] is None


def test_the_same_message_twice_changes_nothing(mesh: RunningMesh) -> None:
    image_id = f"twice-{uuid4()}"
    path = mesh.store(f"{image_id}.jpg", CAT.read_bytes())
    message = json.dumps({"image_id": image_id, "minio_path": path}).encode()
    mesh.publish(IMAGES, image_id, message)
    mesh.outcome(image_id)
    first = mesh.http.get(f"/results/{image_id}").json()
    mesh.publish(IMAGES, image_id, message)
    # The next message of the same key is behind the repeated one in its partition.
    follower = {"image_id": image_id, "minio_path": "raw-images/gone.jpg"}
    mesh.publish(IMAGES, image_id, json.dumps(follower).encode())
    mesh.dead_letter(IMAGES, EXTRACTOR, image_id)
    second = mesh.http.get(f"/results/{image_id}").json()
    assert second["features"] == first["features"]
    labels = [[(one["classifier"], one["label"]) for one in each["predictions"]] for each in (first, second)]
    assert labels[0] == labels[1]


def test_the_extract_call_of_the_walk_through_works_as_it_stands(mesh: RunningMesh) -> None:
    (extractor,) = [one["url"] for one in mesh.state()["replicas"] if one["service"] == EXTRACTOR]
    call = {"image_id": "test-123", "minio_path": "raw-images/test.jpg"}
    answer = mesh.http.post(f"{extractor}/extract", json=call).json()
    assert answer["image_id"] == "test-123"
    assert answer["descriptor_count"] == len(answer["descriptors"]) == 20


def test_a_task_that_is_not_the_extractors_is_no_failure(mesh: RunningMesh) -> None:
    answer = mesh.http.post("/upload?tasks=qr", files={"file": ("cat.jpg", CAT.read_bytes())})
    found = mesh.outcome(answer.json()["image_id"])
    assert found["status"] == "done"
    assert found["predictions"] == []


def decoded(mesh: RunningMesh, image_id: str) -> dict[str, Any]:
    """`GET /results/{image_id}` once its codes were looked for."""
    return mesh.result_of(DECODER, image_id)


def qr_picture(*contents: str) -> bytes:
    """A page with a code for each content, one below the other."""
    page = Image.new("L", (400, 300 * len(contents)), 255)
    for number, content in enumerate(contents):
        file = io.BytesIO()
        segno.make(content, error="m", micro=False).save(file, kind="png", scale=5)
        page.paste(Image.open(file).convert("L"), (40, 20 + 300 * number))
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def test_the_codes_of_an_uploaded_picture_stand_in_its_results(mesh: RunningMesh) -> None:
    contents = {f"https://example.org/{uuid4()}", "zwei"}
    answer = mesh.http.post("/upload", files={"file": ("codes.png", qr_picture(*contents))})
    found = decoded(mesh, answer.json()["image_id"])
    assert {code["content"] for code in found["qr_codes"]} == contents
    assert {"worker": DECODER, "state": "done", "error": None} in found["outcomes"]
    shown = mesh.http.get(answer.json()["links"]["annotated"])
    assert (shown.status_code, shown.headers["content-type"]) == (200, "image/png")
    colours = Image.open(io.BytesIO(shown.content)).convert("RGB").getcolors(1 << 24)
    assert any(green > red for _, (red, green, _) in colours or ()), "the outlines of a black and white page"


def test_a_picture_that_is_only_to_be_decoded_gets_its_codes_and_no_labels(mesh: RunningMesh) -> None:
    answer = mesh.http.post("/upload?tasks=qr", files={"file": ("codes.png", qr_picture("alone"))})
    found = decoded(mesh, answer.json()["image_id"])
    assert [code["content"] for code in found["qr_codes"]] == ["alone"]
    assert found["predictions"] == []


def test_a_picture_without_codes_is_done(mesh: RunningMesh) -> None:
    answer = mesh.http.post("/upload", files={"file": ("cat.jpg", CAT.read_bytes())})
    found = decoded(mesh, answer.json()["image_id"])
    assert found["qr_codes"] == []
    assert {"worker": DECODER, "state": "done", "error": None} in found["outcomes"]


def test_the_decoder_answers_over_http_too(mesh: RunningMesh) -> None:
    url = mesh.url_of(DECODER)
    answer = mesh.http.post(f"{url}/qr/hybrid-fallback", content=qr_picture("at once"))
    assert answer.json() == {"content": "at once"}
    assert mesh.http.post(f"{url}/qr/hybrid-fallback", content=CAT.read_bytes()).status_code == 404


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("raw-images/{}/../../secrets.jpg", "bad_path"),
        ("other-bucket/{}.jpg", "bucket_not_allowed"),
        ("raw-images/{}-missing.jpg", "object_not_found"),
    ],
)
def test_a_path_that_can_never_work_is_a_dead_letter_and_a_failed_outcome(
    mesh: RunningMesh, path: str, code: str
) -> None:
    image_id = f"bad-{uuid4()}"
    message = json.dumps({"image_id": image_id, "minio_path": path.format(image_id)}).encode()
    mesh.publish(IMAGES, image_id, message)
    found = mesh.outcome(image_id)
    assert found["status"] == "failed"
    assert code in found["error"]
    for group in (EXTRACTOR, DECODER):
        letter = mesh.dead_letter(IMAGES, group, image_id)
        assert letter.headers["x-error-code"] == code
        assert letter.headers["x-original-topic"] == IMAGES
        assert letter.value == message


def test_a_picture_that_is_none_is_a_dead_letter_and_a_failed_outcome(mesh: RunningMesh) -> None:
    image_id = f"text-{uuid4()}"
    path = mesh.store(f"{image_id}.jpg", b"this is no picture")
    mesh.publish(IMAGES, image_id, json.dumps({"image_id": image_id, "minio_path": path}).encode())
    assert "not_an_image" in mesh.outcome(image_id)["error"]
    assert mesh.dead_letter(IMAGES, EXTRACTOR, image_id).headers["x-error-code"] == "not_an_image"


def test_invalid_json_is_a_dead_letter(mesh: RunningMesh) -> None:
    key = f"json-{uuid4()}"
    mesh.publish(IMAGES, key, b'{"image_id": "half')
    letter = mesh.dead_letter(IMAGES, EXTRACTOR, key)
    assert letter.value == b'{"image_id": "half'
    assert letter.headers["x-error-code"] == "invalid_message"
    assert mesh.outcome(key)["status"] == "failed"


@pytest.mark.parametrize(
    ("descriptors", "count"), [([0.5] * 19, 19), ([0.5] * 19, 20), ([0.5] * 19 + [float("nan")], 20)]
)
@pytest.mark.parametrize("classifier", ["classifier-fast"])
def test_bad_descriptors_are_a_dead_letter_of_each_classifier(
    mesh: RunningMesh, classifier: str, descriptors: list[float], count: int
) -> None:
    image_id = f"floats-{uuid4()}"
    message = {"image_id": image_id, "descriptors": descriptors, "descriptor_count": count}
    mesh.publish(FEATURES, image_id, json.dumps(message).encode())
    letter = mesh.dead_letter(FEATURES, classifier, image_id)
    assert letter.headers["x-error"]
    assert mesh.outcome(image_id)["status"] == "failed"


def test_a_killed_replica_is_started_again(mesh: RunningMesh) -> None:
    def replica() -> dict[str, Any]:
        found: dict[str, Any] = next(
            one for one in mesh.state()["replicas"] if one["service"] == "classifier-fast"
        )
        return found

    before = replica()
    os.kill(before["pid"], signal.SIGKILL)
    answer = mesh.http.post("/upload", files={"file": ("cat.jpg", CAT.read_bytes())})
    assert_served_in_full(mesh, answer.json()["image_id"])
    after = replica()
    assert after["restarts"] == before["restarts"] + 1
    assert after["url"] == before["url"]
    assert after["pid"] != before["pid"]


def run_cli(mesh: RunningMesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "visionmesh.cli", *arguments],
        env=os.environ | mesh.environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def test_upload_waits_and_says_the_labels(mesh: RunningMesh, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    ended = run_cli(mesh, "upload", str(CAT), str(text), "--wait", "--json", "--url", str(mesh.http.base_url))
    first, second = (json.loads(line) for line in ended.stdout.splitlines())
    assert first["status"] == "done", ended.stderr
    assert {one["label"] for one in first["predictions"]} == {"cat"}
    assert second["error"]["code"] == "not_an_image"
    assert ended.returncode == 1


def test_topics_lists_every_group(mesh: RunningMesh) -> None:
    ended = run_cli(mesh, "topics", "--json")
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert {"feature-extractor", "classifier-fast"} <= {row["group"] for row in rows}
    assert {row["partitions"] for row in rows} == {12}


def test_a_dead_letter_is_replayed_once_with_its_key_and_bytes(mesh: RunningMesh) -> None:
    image_id = f"late-{uuid4()}"
    path = f"raw-images/{image_id}.jpg"
    mesh.publish(IMAGES, image_id, json.dumps({"image_id": image_id, "minio_path": path}).encode())
    mesh.dead_letter(IMAGES, EXTRACTOR, image_id)
    mesh.store(f"{image_id}.jpg", CAT.read_bytes())
    topic = f"{IMAGES}.{EXTRACTOR}.dlq"
    ended = run_cli(mesh, "dlq", "replay", topic, "--yes")
    assert ended.returncode == 0, ended.stderr
    until(lambda: True if mesh.outcome(image_id)["status"] == "done" else None, "replayed result")
    assert_served_in_full(mesh, image_id)

    def waiting_letters() -> list[DeadLetter]:
        letters = read_dead_letters(mesh.settings(), topic)
        return [letter for letter in letters if letter.key == image_id.encode() and not letter.replayed]

    assert waiting_letters() == []


def test_no_service_answers_anything_that_its_openapi_does_not_tell_of(mesh: RunningMesh) -> None:
    mesh.http.post("/upload", files={"file": ("cat.jpg", CAT.read_bytes())}, data={"image_id": "fuzzed"})
    known = {"image_id": ["fuzzed"], "task_id": ["fuzzed"], "sensor": ["tfluna"]}
    services = sorted({one["service"] for one in mesh.state()["replicas"]})
    assert {"ingest-api", EXTRACTOR, DECODER, "ocr-worker", "edge-publisher", "sensor-sink"} <= set(services)
    for service in services:
        found = fuzzed(mesh.url_of(service), examples=FUZZ_EXAMPLES, known=known)
        print(f"{service}: {found}")
        assert not found.failures, f"{service}: {found.told()}"
