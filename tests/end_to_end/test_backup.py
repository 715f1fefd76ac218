"""Backup, wipe, restore: a mesh that was lost answers as before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from running_mesh import RunningMesh, running_mesh, until
from visionmesh.settings import ROOT

SAMPLES = ("cat.jpg", "qr.png", "ship.jpg")
EVERYBODY = {
    "feature-extractor",
    "qr-decoder",
    "ocr-worker",
    "classifier-fast",
    "classifier-balanced",
    "classifier-accurate",
}

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two meshes start, one after the other.
    monkeypatch.setattr("running_mesh.DEADLINE_SECONDS", 300.0)


def run(mesh: RunningMesh, *arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "visionmesh.cli", *arguments, "--directory", str(mesh.directory)],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert ended.returncode == 0, ended.stderr
    print(ended.stderr)


def answers(mesh: RunningMesh, image_id: str) -> dict[str, Any]:
    """All that the mesh says of a picture when everybody has looked at it."""

    def ended() -> dict[str, Any] | None:
        answer = mesh.http.get(f"/results/{image_id}")
        if answer.status_code != 200:
            return None
        found: dict[str, Any] = answer.json()
        done = {each["worker"] for each in found["outcomes"] if each["state"] in ("done", "skipped")}
        return found if done >= EVERYBODY else None

    found = until(ended, f"results of {image_id}")
    found["content"] = mesh.http.get(f"/images/{image_id}/content").content
    found["text"] = mesh.http.get(f"/images/{image_id}/text.txt").text
    return found


def test_a_mesh_that_was_lost_answers_as_before(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with running_mesh(first) as mesh:
        image_ids = [
            mesh.http.post("/upload", files={"file": (name, (ROOT / "samples" / name).read_bytes())}).json()[
                "image_id"
            ]
            for name in SAMPLES
        ]
        before = {image_id: answers(mesh, image_id) for image_id in image_ids}
        listed = mesh.http.get("/images").json()
        gone = mesh.http.post("/upload", files={"file": (ROOT / "samples" / "horse.png").read_bytes()}).json()
        assert mesh.http.delete(gone["links"]["image"]).status_code == 204
        # A dead letter, which Kafka alone has.
        mesh.publish("images-input-stream", "plain", b'{"image_id": "plain", "minio_path": "raw-images/x"}')
        mesh.dead_letter("images-input-stream", "qr-decoder", "plain")
        run(mesh, "backup", str(tmp_path / "backup"))
    with running_mesh(second) as mesh:
        assert mesh.http.get(f"/results/{image_ids[0]}").status_code == 404
        run(mesh, "restore", str(tmp_path / "backup"))
        assert {image_id: answers(mesh, image_id) for image_id in image_ids} == before
        assert mesh.http.get("/images").json() == listed
        assert mesh.http.get(gone["links"]["results"]).status_code == 404
        picture = (ROOT / "samples" / "horse.png").read_bytes()
        again = mesh.http.post("/upload", params={"image_id": gone["image_id"]}, files={"file": picture})
        assert (again.status_code, again.json()["code"]) == (410, "image_deleted")
        mesh.dead_letter("images-input-stream", "qr-decoder", "plain")
