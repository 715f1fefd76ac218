"""What seldom goes wrong is shown at 0 before it does: else its first time is no gain to Prometheus."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import REGISTRY

from edge_publisher.publisher import Forwarder, Sink
from edge_publisher.queue import ReadingQueue
from visionmesh.contracts import ImageUploaded
from visionmesh.database import Database
from visionmesh.isolated import Isolated
from visionmesh.observability import metrics
from visionmesh.registry import open_source
from visionmesh.settings import Settings
from visionmesh.shadow import open_store
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.testing.results import MemoryResultStore
from visionmesh.topics import Topic
from visionmesh.worker.loop import Worker


def worker(name: str, store: MemoryResultStore | None) -> Worker[ImageUploaded]:
    broker = MemoryBroker()
    return Worker(
        name=name,
        topic=Topic(f"in-{name}", ImageUploaded, "image_id", "", (name,)),
        step=lambda batch: [],
        consumer=broker.consumer(name),
        publisher=broker.publisher(),
        store=store,
    )


def retries(name: str) -> dict[str, float]:
    """By server."""
    (family,) = metrics.RETRIES.collect()
    return {
        sample.labels["server"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_total") and sample.labels["worker"] == name
    }


def test_a_worker_that_never_waited_says_so_of_the_servers_that_it_has() -> None:
    stores, gives = f"stores-{uuid.uuid4().hex}", f"gives-{uuid.uuid4().hex}"
    worker(stores, MemoryResultStore())
    worker(gives, None)
    assert retries(stores) == {"kafka": 0, "database": 0}
    assert retries(gives) == {"kafka": 0}


def test_a_device_that_never_waited_for_its_broker_says_so() -> None:
    name = f"broker-{uuid.uuid4().hex}"

    class Idle:
        def __init__(self) -> None:
            self.name = name

    Forwarder(cast(ReadingQueue, None), cast(Sink, Idle()))
    assert retries("edge-publisher")[name] == 0


def test_children_that_never_ended_early_are_told_of_by_every_reason() -> None:
    metrics.ISOLATED_RESTARTS.clear()
    Isolated(str, deadline_seconds=1, memory_bytes=1)
    for reason in ("crash", "deadline", "grown"):
        assert REGISTRY.get_sample_value("mesh_isolated_restarts_total", {"reason": reason}) == 0


def test_a_worker_whose_shadow_never_failed_says_so() -> None:
    name = f"shadowed-{uuid.uuid4().hex}"
    with open_store(Settings(), cast(Database, None), name, None):
        assert REGISTRY.get_sample_value("mesh_shadow_failures_total", {"worker": name}) == 0


def test_a_model_that_was_never_refused_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    metrics.MODEL_REFUSALS.clear()
    # Nobody answers there.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    settings = Settings(built_models_dir=tmp_path)
    for address, name in {
        "classifier-fast": "classifier-fast",
        "models:/of-registry@champion": "of-registry",
    }.items():
        with open_source(settings, address):
            assert REGISTRY.get_sample_value("mesh_model_refusals_total", {"model": name}) == 0
