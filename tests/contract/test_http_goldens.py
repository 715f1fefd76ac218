"""Golden answers over HTTP: what clients of the first version read is there, with the same values."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ingest_api.http import result_routes
from ingest_api.sensors import sensor_routes
from visionmesh.results import OutcomeRow, PredictionRow, ShadowFeaturesRow, ShadowPredictionRow
from visionmesh.sensors import SensorReadingRow
from visionmesh.testing.object_store import MemoryObjectStore
from visionmesh.testing.results import MemoryImages, MemoryResultStore

HERE = Path(__file__).parent / "http"
LABELS = ("cat", "dog")


def golden(name: str) -> dict[str, Any]:
    return dict(json.loads((HERE / name).read_text()))


def answered(path: str) -> dict[str, Any]:
    """The answer about a picture that two of three classifiers and two shadows have seen."""
    store = MemoryResultStore()
    store.save(
        [
            PredictionRow("uuid", "fast", "dog", 0.6, LABELS, (0.4, 0.6), "classifier-fast", "1.0.0", 0.25),
            PredictionRow(
                "uuid", "accurate", "cat", 0.96, LABELS, (0.96, 0.04), "classifier-accurate", "1.0.0", 0.125
            ),
            ShadowFeaturesRow("uuid", (0.5,), "extractor@3.0.0", 0.5),
            ShadowPredictionRow(
                "uuid", "fast", "cat", 0.9, LABELS, (0.9, 0.1), "classifier-fast", "3.0.0", 0.5
            ),
            *(
                OutcomeRow("uuid", worker, "done")
                for worker in ("feature-extractor", "classifier-fast", "classifier-accurate")
            ),
        ]
    )
    app = FastAPI()
    app.include_router(result_routes(MemoryImages(store), MemoryObjectStore()))
    with TestClient(app) as client:
        return dict(msgspec.json.decode(client.get(path).content))


def test_predictions_keep_every_field_of_version_1_and_add_the_consensus() -> None:
    answer = answered("/predictions/uuid")
    assert answer == golden("predictions-v1.json") | golden("predictions-v2-adds.json")
    assert [name for name in answer if name != "consensus"] == list(golden("predictions-v1.json"))


def test_results_hold_all_that_predictions_do_and_nothing_of_a_shadow() -> None:
    answer = answered("/results/uuid")
    assert answer.pop("image") is None
    assert answer.pop("features") is None
    assert answer.pop("qr_codes") == []
    assert answer.pop("ocr") is None
    assert answer == answered("/predictions/uuid")


@pytest.mark.parametrize("path", golden("sensors-v1.json"))
def test_what_sensors_measured_keeps_every_field_of_version_1(path: str) -> None:
    store = MemoryResultStore()
    at = datetime(2026, 11, 21, 14, tzinfo=UTC)
    half = timedelta(seconds=0.5)
    store.save(
        [
            SensorReadingRow("pi-1", "tfluna", 1, at, {"distance_cm": 123.0, "valid": True}),
            SensorReadingRow(
                "pi-1", "tfluna", 2, at + half, {"distance_cm": 126.0, "valid": True}, 900_000_000
            ),
        ]
    )
    app = FastAPI()
    app.include_router(sensor_routes(store.sensors))
    with TestClient(app) as client:
        assert client.get(path).json() == golden("sensors-v1.json")[path]
