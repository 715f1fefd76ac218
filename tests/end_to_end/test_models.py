"""Models as whoever runs a mesh changes them: a fourth classifier, another champion, a model in shadow.

MLflow is the one in memory, and a real one where MESH_MLFLOW_PYTHON names an interpreter that has it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest

import small_models
from mlflow_servers import RealMlflow, Registry, Server
from running_mesh import RunningMesh, running_mesh, until
from visionmesh.model_store import ModelStore
from visionmesh.settings import ROOT
from visionmesh.testing.mlflow import MemoryMlflow

CAT = ROOT / "samples" / "cat.jpg"
FEATURES = "image-features-stream"
NIGHT = "classifier-night"

# What the extractor of models.toml calls its descriptors.
SPACE = ModelStore(ROOT / "models").load("extractor").space


@dataclass(frozen=True)
class Everything:
    """The mesh, and the registry that one of its classifiers looks at."""

    mesh: RunningMesh
    registry: Registry

    def upload(self) -> str:
        answer = self.mesh.http.post("/upload", files={"file": ("cat.jpg", CAT.read_bytes())})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["image_id"])

    def predictions(self) -> dict[str, dict[str, Any]]:
        """What each classifier says of a picture that is uploaded now."""
        found = self.mesh.outcome(self.upload())
        assert found["status"] == "done", found
        return {one["classifier"]: one for one in found["predictions"]}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    folder = tmp_path_factory.mktemp("models")
    python = os.environ.get("MESH_MLFLOW_PYTHON")
    server: Server = MemoryMlflow() if python is None else RealMlflow(python, folder)
    server.start()
    try:
        registry = Registry(server, "classifier-fast")
        registry.register(*small_models.classifier(favourite="cat", extractor=SPACE))
        built = small_models.write_models(
            folder / "built", {NIGHT: small_models.classifier(favourite="ship", extractor=SPACE)}
        )
        options = [
            *("--classifier", f"night={NIGHT}", "--classifier", f"fast={registry.champion}"),
            *("--shadow", f"classifier-balanced={NIGHT}", "--shadow", "classifier-accurate=nowhere"),
        ]
        environment = {
            "MESH_BUILT_MODELS_DIR": str(built),
            "MLFLOW_TRACKING_URI": server.url,
            "MESH_MODEL_REFRESH_SECONDS": "0.2",
        }
        with running_mesh(folder, *options, environment=environment) as mesh:
            yield Everything(mesh, registry)
    finally:
        server.stop()


def test_a_fourth_classifier_answers_beside_the_three(everything: Everything) -> None:
    found = everything.predictions()
    assert set(found) == {"fast", "balanced", "accurate", "night"}
    assert (found["night"]["label"], found["night"]["model"]) == ("ship", NIGHT)
    assert found["balanced"]["label"] == found["accurate"]["label"] == "cat"


def test_a_fourth_classifier_has_dead_letters_of_its_own(everything: Everything) -> None:
    mesh = everything.mesh
    for width, model, code in ((50, None, "wrong_descriptor_count"), (20, "other@1", "wrong_extractor")):
        image_id = f"foreign-{uuid4()}"
        message = {"image_id": image_id, "descriptors": [0.5] * width, "descriptor_count": width}
        mesh.publish(FEATURES, image_id, json.dumps(message | {"model": model}).encode())
        for group in (NIGHT, "classifier-balanced"):
            assert mesh.dead_letter(FEATURES, group, image_id).headers["x-error-code"] == code


def test_a_shadow_is_stored_apart(everything: Everything) -> None:
    image_id = everything.upload()
    found = everything.mesh.outcome(image_id)
    assert {one["label"] for one in found["predictions"] if one["classifier"] == "balanced"} == {"cat"}
    with psycopg.connect(everything.mesh.environment["MESH_POSTGRES_DSN"], autocommit=True) as connection:
        asked = "SELECT classifier, label, model FROM shadow_predictions WHERE image_id = %s"
        # Nobody waits for it but this test.
        rows = until(
            lambda: connection.execute(asked, (image_id,)).fetchall() or None, "the row of the shadow"
        )
    # `accurate` has a shadow that is nowhere to be had, and runs all the same.
    assert rows == [("balanced", "ship", NIGHT)]


def test_a_new_champion_answers_without_a_restart_and_mlflow_may_die(everything: Everything) -> None:
    registry, server = everything.registry, everything.registry.server
    before = {one["service"]: (one["pid"], one["restarts"]) for one in everything.mesh.state()["replicas"]}

    def answered_by() -> tuple[str, str, str]:
        fast = everything.predictions()["fast"]
        return fast["label"], fast["model"], fast["model_version"]

    def switched(version: str) -> bool | None:
        return True if answered_by()[2] == version else None

    assert answered_by() == ("cat", "classifier-fast", "1")
    registry.register(*small_models.classifier(favourite="dog", extractor=SPACE))
    until(lambda: switched("2"), "the new champion")
    assert answered_by() == ("dog", "classifier-fast", "2")
    url = everything.mesh.url_of("classifier-fast")
    asked = everything.mesh.http.post(f"{url}/predict", json={"descriptors": [0.5] * 20}).json()
    assert (asked["label"], asked["model_version"]) == ("dog", "2")

    # One that does not fit is passed over, and the next one is not.
    registry.register(*small_models.classifier(width=10, extractor=SPACE))
    registry.promote("1")
    until(lambda: switched("1"), "the old champion")

    server.stop()
    assert answered_by() == ("cat", "classifier-fast", "1")

    def ready() -> dict[str, Any] | None:
        answer = everything.mesh.http.get(f"{url}/ready")
        return dict(answer.json()) if answer.status_code == 200 else None

    # Its checks of Kafka and the database have two seconds.
    found = until(ready, "readiness without MLflow")
    assert found["checks"]["model"]["detail"] == "classifier-fast@1"
    server.start()
    registry.promote("2")
    until(lambda: switched("2"), "the champion after MLflow came back")
    after = {one["service"]: (one["pid"], one["restarts"]) for one in everything.mesh.state()["replicas"]}
    assert after == before
