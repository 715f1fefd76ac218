"""A classifier takes whatever waits in one run of its model, up to 256."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import small_models
import waiting
from classifier import __main__ as main
from classifier.domain import MICRO_BATCH
from classifier.step import make_step
from visionmesh.contracts import ImageFeatures
from visionmesh.kafka import Record
from visionmesh.model_store import Model, load_model
from visionmesh.registry import FixedSource
from visionmesh.settings import Settings
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.testing.results import MemoryResultStore
from visionmesh.topics import FEATURES
from visionmesh.worker.loop import Worker

GROUP = "classifier-fast"
DEADLINE = 30.0
until = partial(waiting.eventually, seconds=DEADLINE)


class Counting(Model):
    """Counts the rows of every run."""

    runs: list[int]

    @classmethod
    def made(cls) -> Counting:
        model = load_model("small", *small_models.classifier(), source="the test")
        counting = cls(**{name: getattr(model, name) for name in Model.__dataclass_fields__})
        object.__setattr__(counting, "runs", [])
        return counting

    def run(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        self.runs.append(len(values))
        return super().run(values)


@contextmanager
def working(broker: MemoryBroker, model: Model, store: MemoryResultStore) -> Iterator[None]:
    worker = Worker(
        name=GROUP,
        topic=FEATURES,
        step=make_step("fast", FixedSource(model)),
        consumer=broker.consumer(GROUP),
        publisher=broker.publisher(),
        store=store,
        max_batch=MICRO_BATCH,
    )
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    yield
    worker.stop()
    thread.join(15)
    assert not thread.is_alive()


@pytest.mark.parametrize("waiting", [1, 255, 256, 600])
def test_whatever_waits_goes_through_the_model_together(waiting: int) -> None:
    broker, model, store = MemoryBroker(), Counting.made(), MemoryResultStore()
    random = np.random.default_rng(7)
    for number in range(waiting):
        descriptors = tuple(random.normal(size=20).tolist())
        message = ImageFeatures(f"image-{number}", descriptors, 20)
        broker.append(Record(FEATURES.name, message.image_id.encode(), msgspec.json.encode(message)))
    with working(broker, model, store):
        until(lambda: broker.lag(FEATURES.name, GROUP) == 0, "the end of what waits")
    # What was there before the worker was, in as few runs as there can be.
    assert model.runs == [MICRO_BATCH] * (waiting // MICRO_BATCH) + [waiting % MICRO_BATCH] * (
        waiting % MICRO_BATCH > 0
    )
    assert {row.image_id for row in store.predictions()} == {f"image-{n}" for n in range(waiting)}


@pytest.mark.parametrize(
    ("environment", "limit"), [({}, 256), ({"worker_max_batch": 64}, 64), ({"worker_max_batch": 1000}, 1000)]
)
def test_256_unless_the_setting_says_otherwise(
    environment: dict[str, int], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def from_settings(*_: Any, max_batch: int, **__: Any) -> Any:
        asked.append(max_batch)
        return Worker(
            name=GROUP, topic=FEATURES, step=lambda _: [], consumer=MemoryBroker().consumer(GROUP),
            publisher=MemoryBroker().publisher(),
        )  # fmt: skip

    monkeypatch.setattr(main.Worker, "from_settings", from_settings)
    monkeypatch.setattr(main, "run_service", lambda *_, **__: 0)
    assert main.serve(Settings(**environment)) == 0  # type: ignore[arg-type]
    assert asked == [limit]


def test_a_classifier_outside_the_table_needs_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main.serve(Settings(classifier="night", classifier_model="classifier-fast")) == 1
