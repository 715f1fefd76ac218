"""The application of every service, with doubles behind it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final
from unittest.mock import MagicMock

from fastapi import FastAPI

import classifier.http
import edge_publisher.http
import feature_extractor.http
import ingest_api.__main__
import ocr_worker.http
import qr_decoder.http
from ocr_worker.http import Terms
from visionmesh.http import create_app
from visionmesh.settings import Settings


def _ocr_worker() -> FastAPI:
    terms = Terms(engines=1, deadline_seconds=1, waiting_limit=1, queue_limit=1, max_bytes=1000)
    return ocr_worker.http.make_app(
        "ocr-worker",
        MagicMock(),
        submit=MagicMock(),
        images=MagicMock(),
        lag=lambda: 0,
        terms=terms,
        checks={},
    )


def _edge_publisher() -> FastAPI:
    forward = MagicMock()
    forward.health.side_effect = lambda: {"problems": []}
    forward.status.return_value = {"ready": True, "waiting_for": None}
    return edge_publisher.http.make_app(
        "edge-publisher", "pi-1", tuple, forward, MagicMock(), max_concurrent=1
    )


def _ingest_api() -> FastAPI:
    # All of them, also of those that are new: without its client a route would not be there.
    names = inspect.signature(ingest_api.__main__.compose).parameters.keys() - {"settings"}
    doubles: Any = {name: MagicMock() for name in names}
    return ingest_api.__main__.compose(Settings(), **doubles)


SERVICES: Final[dict[str, Callable[[], FastAPI]]] = {
    "ingest-api": _ingest_api,
    "feature-extractor": lambda: feature_extractor.http.make_app(
        "feature-extractor", *(MagicMock() for _ in range(4)), checks={}, max_bytes=1000
    ),
    "classifier-fast": lambda: classifier.http.make_app("classifier-fast", "fast", MagicMock(), checks={}),
    "qr-decoder": lambda: qr_decoder.http.make_app(
        "qr-decoder", MagicMock(), own_profile="light", checks={}, max_bytes=1000, max_budget_ms=100
    ),
    "ocr-worker": _ocr_worker,
    "edge-publisher": _edge_publisher,
    "sensor-sink": lambda: create_app("sensor-sink", checks={}),
}
