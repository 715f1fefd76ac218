from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from classifier.domain import Classifier
from classifier.step import make_step
from visionmesh.contracts import ImageFeatures
from visionmesh.errors import Rejected
from visionmesh.model_store import Model
from visionmesh.results import PredictionRow
from visionmesh.worker.step import Done, Verdict


class FirstModel:
    """Stands in for a classifier: a cat if the first descriptor is positive."""

    name = "classifier-first"
    version = "3"
    kind = "classifier"
    labels = ("dog", "cat")
    descriptor_count = 20
    address = "classifier-first@3"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, descriptors: NDArray[np.float32]) -> list[NDArray[Any]]:
        assert descriptors.dtype == np.float32
        self.batches.append(len(descriptors))
        cats = (descriptors[:, 0] > 0).astype(np.int64)
        return [cats, np.stack([np.where(cats, 0.25, 0.75), np.where(cats, 0.75, 0.25)], axis=1)]


def clock() -> Callable[[], float]:
    """Each look at it is 10 ms later."""
    ticks = count()
    return lambda: next(ticks) * 0.010


def classifier(model: FirstModel | None = None) -> Classifier:
    return Classifier(cast(Model, model or FirstModel()))


def features(name: str, first: float, *, length: int = 20, said: int = 20) -> ImageFeatures:
    return ImageFeatures(name, (first,) + (0.5,) * (length - 1), said)


MIXED = [
    features("cat", 1.0),
    features("short", 1.0, length=19),
    features("short-and-says-so", 1.0, length=19, said=19),
    features("dog", -1.0),
    features("nan", float("nan")),
    features("infinite", float("inf")),
    features("huge", 1e39),
    features("none", 1.0, length=1, said=0),
    features("miscounted", 1.0, said=19),
    features("another-cat", 2.0),
]


def plain(verdicts: Sequence[Verdict]) -> list[Any]:
    return [(v.code, v.reason) if isinstance(v, Rejected) else v for v in verdicts]


def row(name: str, label: str, latency_ms: float) -> PredictionRow:
    return PredictionRow(
        image_id=name,
        classifier="first",
        label=label,
        confidence=0.75,
        labels=("dog", "cat"),
        probabilities=(0.25, 0.75) if label == "cat" else (0.75, 0.25),
        model="classifier-first",
        model_version="3",
        latency_ms=latency_ms,
    )


def test_twice_gives_the_same() -> None:
    found = [plain(make_step("first", classifier(), clock=clock())(MIXED)) for _ in range(2)]
    assert found[0] == found[1]
    step = make_step("first", classifier(), clock=lambda: 0.0)
    assert plain(step(MIXED)) == plain(step(MIXED))


def test_bad_descriptors_cost_only_themselves() -> None:
    verdicts = make_step("first", classifier())(MIXED)
    assert [v.code if isinstance(v, Rejected) else type(v).__name__ for v in verdicts] == [
        "Done",
        "wrong_descriptor_count",
        "wrong_descriptor_count",
        "Done",
        "not_finite",
        "not_finite",
        "not_finite",
        "wrong_descriptor_count",
        "wrong_descriptor_count",
        "Done",
    ]


def test_what_is_stored() -> None:
    (verdict,) = make_step("first", classifier(), clock=clock())([features("cat", 1.0)])
    assert isinstance(verdict, Done)
    (found,) = verdict.rows
    assert isinstance(found, PredictionRow)
    assert found == row("cat", "cat", found.latency_ms)
    assert round(found.latency_ms, 6) == 10
    assert verdict.messages == ()


def test_each_message_gets_its_own_label_and_its_share_of_the_time() -> None:
    verdicts = make_step("first", classifier(), clock=clock())(MIXED)
    rows = [r for v in verdicts if isinstance(v, Done) for r in v.rows if isinstance(r, PredictionRow)]
    assert [(r.image_id, r.label) for r in rows] == [("cat", "cat"), ("dog", "dog"), ("another-cat", "cat")]
    assert {round(r.latency_ms, 6) for r in rows} == {round(10 / 3, 6)}


def test_one_run_of_the_model_for_a_batch_and_none_for_nothing() -> None:
    model = FirstModel()
    step = make_step("first", classifier(model))
    step(MIXED)
    step([features("short", 1.0, length=19)])
    assert model.batches == [3]
