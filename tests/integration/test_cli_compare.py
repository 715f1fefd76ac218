"""`mesh models compare` on Postgres, with models on the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psycopg
import pytest
import typer
from typer.testing import CliRunner, Result

from small_models import classifier, extractor, write_models
from visionmesh.cli.compare import NOTE, compare
from visionmesh.database import Database
from visionmesh.results import (
    FeaturesRow,
    PostgresResultStore,
    PredictionRow,
    Row,
    ShadowFeaturesRow,
    ShadowPredictionRow,
)
from visionmesh.settings import get_settings

LABELS = ("cat", "dog")
app = typer.Typer()
app.command()(compare)


@pytest.fixture
def store(postgres_dsn: str, tmp_path: Path) -> Iterator[PostgresResultStore]:
    """The database that the command reads, empty, beside models that it can try."""
    write_models(
        tmp_path / "models",
        {
            "extractor": extractor(version="2"),
            "extractor-fp32": extractor(version="2", space="extractor@2"),
            "classifier-fast": classifier(favourite="cat", extractor="extractor@2", version="2"),
            # As `mesh models build other` names it.
            "classifier-fast-other": classifier(favourite="dog", extractor="other@1"),
        },
    )
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("TRUNCATE image_features, predictions, shadow_features, shadow_predictions")
    environment = {
        "MESH_POSTGRES_DSN": postgres_dsn,
        "MESH_MODELS_DIR": str(tmp_path / "models"),
        "MESH_BUILT_MODELS_DIR": str(tmp_path / "none"),
        "COLUMNS": "80",
    }
    with mock.patch.dict(os.environ, environment), Database(postgres_dsn) as database:
        os.environ.pop("MESH_DIRECTORY", None)
        get_settings.cache_clear()
        yield PostgresResultStore(database)
    get_settings.cache_clear()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def seen(number: int, label: str, shadow_label: str) -> list[Row]:
    image_id, shown = f"image-{number:03}", tuple(float(number % 2) for _ in range(20))
    return [
        FeaturesRow(image_id, shown, "extractor@2"),
        PredictionRow(image_id, "fast", label, 0.9, LABELS, (0.9, 0.1), "classifier-fast", "2", 0.1),
        ShadowFeaturesRow(image_id, shown, "extractor-fp32@2", 0.75),
        ShadowPredictionRow(
            image_id, "fast", shadow_label, 0.6, LABELS, (0.4, 0.6), "classifier-fast", "3", 0.2
        ),
    ]


def test_one_object_holds_every_comparison(store: PostgresResultStore) -> None:
    for number in range(300):
        store.save(seen(number, "dog" if number < 30 else "cat", "dog" if number < 60 else "cat"))
    answer = run("--json")
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found["note"] == NOTE
    assert found["since_seconds"] == 3600
    (of_classifier,) = found["classifiers"]
    assert of_classifier == {
        "classifier": "fast",
        "model": "classifier-fast@2",
        "shadow": "classifier-fast@3",
        "pictures": 300,
        "agreement": 0.9,
        "confusions": [{"label": "cat", "shadow_label": "dog", "pictures": 30}],
        "confidence": pytest.approx(0.9),
        "shadow_confidence": pytest.approx(0.6),
        "latency_ms": {"p50": pytest.approx(0.1), "p95": pytest.approx(0.1)},
        "shadow_latency_ms": {"p50": pytest.approx(0.2), "p95": pytest.approx(0.2)},
    }
    (of_extractor,) = found["extractors"]
    assert of_extractor == {
        "model": "extractor@2",
        "shadow": "extractor-fp32@2",
        "same_space": True,
        "pictures": 300,
        "descriptor_count": 20,
        "shadow_descriptor_count": 20,
        "distance": 0,
        "shadow_latency_ms": {"p50": 0.75, "p95": 0.75},
        # It finds a cat in everything, and 30 of the stored labels are dogs. The other space takes no part.
        "labels": [{"classifier": "fast", "model": "classifier-fast@2", "pictures": 300, "agreement": 0.9}],
    }


def test_a_table_for_people(store: PostgresResultStore) -> None:
    for number in range(4):
        store.save(seen(number, "cat", "dog" if number == 0 else "cat"))
    answer = run("--limit", "4")
    assert answer.exit_code == 0, answer.output
    for text in (
        "fast: 4 pictures, the same label for 75.0%",
        "classifier-fast@2",
        "classifier-fast@3",
        "cat is dog to the shadow: 1",
        "feature-extractor: 4 pictures",
        "0.75, 0.75 ms",
        "0 standard deviations",
        "100.0% of 4 by classifier-fast@2",
        NOTE,
        "Only the newest 4 pictures",
    ):
        assert text in answer.stdout
    assert "Only the newest" not in run().stdout


def test_a_shadow_of_another_space_is_tried_with_that_spaces_classifiers(store: PostgresResultStore) -> None:
    store.save([row for row in seen(0, "cat", "cat") if not isinstance(row, ShadowFeaturesRow)])
    store.save([ShadowFeaturesRow("image-000", (0.5,) * 20, "other@1", 0.1)])
    (found,) = json.loads(run("feature-extractor", "--json").stdout)["extractors"]
    assert (found["same_space"], found["distance"]) == (False, None)
    assert found["labels"] == [
        {"classifier": "fast", "model": "classifier-fast-other@1.0.0", "pictures": 1, "agreement": 0}
    ]


def test_without_models_on_the_disk_the_rest_is_compared(store: PostgresResultStore, tmp_path: Path) -> None:
    store.save(seen(0, "cat", "cat"))
    (tmp_path / "models" / "classifier-fast.onnx").write_bytes(b"damaged")
    damaged = run("--json")
    assert json.loads(damaged.stdout)["extractors"][0]["labels"] == []
    assert "classifier-fast is left out" in damaged.stderr
    (tmp_path / "models" / "models.toml").unlink()
    gone = run("--json")
    assert json.loads(gone.stdout)["extractors"][0]["same_space"] is False
    assert "no classifier can be tried" in gone.stderr


def test_nothing_to_compare_says_so(store: PostgresResultStore) -> None:
    empty = run()
    assert (empty.exit_code, empty.stdout) == (1, "")
    assert "No model has answered a picture in the last 1h" in empty.stderr
    store.save(seen(0, "cat", "cat"))
    other = run("accurate", "--since", "2d")
    assert (other.exit_code, other.stdout) == (1, "")
    assert "No model in shadow of accurate has answered a picture in the last 2d" in other.stderr
    assert json.loads(run("accurate", "--json").stdout)["classifiers"] == []
