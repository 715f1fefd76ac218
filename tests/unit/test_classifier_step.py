from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from classifier.step import Shadow, make_step
from visionmesh.contracts import ImageFeatures
from visionmesh.errors import Rejected, Unavailable
from visionmesh.model_store import Model
from visionmesh.observability import metrics
from visionmesh.registry import FixedSource, ModelSource
from visionmesh.results import PredictionRow, ShadowPredictionRow
from visionmesh.worker.step import Done, Step, Verdict


class FirstModel:
    """Stands in for a classifier: a cat if the first descriptor is positive."""

    name = "classifier-first"
    kind = "classifier"
    labels = ("dog", "cat")
    descriptor_count = 20
    extractor = "extractor@1.0.0"

    def __init__(self, version: str = "3") -> None:
        self.version = version
        self.address = f"classifier-first@{version}"
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


def source(model: FirstModel | None = None) -> FixedSource:
    return FixedSource(cast(Model, model or FirstModel()))


def features(
    name: str, first: float, *, length: int = 20, said: int = 20, model: str | None = None
) -> ImageFeatures:
    return ImageFeatures(name, (first,) + (0.5,) * (length - 1), said, model)


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
    features("foreign", 1.0, model="extractor@2.0.0"),
    features("another-cat", 2.0, model="extractor@1.0.0"),
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
    found = [plain(make_step("first", source(), clock=clock())(MIXED)) for _ in range(2)]
    assert found[0] == found[1]
    step = make_step("first", source(), clock=lambda: 0.0)
    assert plain(step(MIXED)) == plain(step(MIXED))


def test_bad_descriptors_cost_only_themselves() -> None:
    verdicts = make_step("first", source())(MIXED)
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
        "wrong_extractor",
        "Done",
    ]


def test_what_is_stored() -> None:
    (verdict,) = make_step("first", source(), clock=clock())([features("cat", 1.0)])
    assert isinstance(verdict, Done)
    (found,) = verdict.rows
    assert isinstance(found, PredictionRow)
    assert found == row("cat", "cat", found.latency_ms)
    assert round(found.latency_ms, 6) == 10
    assert verdict.messages == ()


def test_answers_are_counted_by_label_and_confidence_and_those_of_a_shadow_are_not() -> None:
    def count(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    make_step("counted", source(), shadow=Shadow("counted", source()))(MIXED)
    assert count("mesh_predictions_total", classifier="counted", label="cat") == 2
    assert count("mesh_predictions_total", classifier="counted", label="dog") == 1
    assert count("mesh_prediction_confidence_count", classifier="counted") == 3
    assert count("mesh_prediction_confidence_bucket", classifier="counted", le="0.7") == 0


def test_each_message_gets_its_own_label_and_its_share_of_the_time() -> None:
    verdicts = make_step("first", source(), clock=clock())(MIXED)
    rows = [r for v in verdicts if isinstance(v, Done) for r in v.rows if isinstance(r, PredictionRow)]
    assert [(r.image_id, r.label) for r in rows] == [("cat", "cat"), ("dog", "dog"), ("another-cat", "cat")]
    assert {round(r.latency_ms, 6) for r in rows} == {round(10 / 3, 6)}


def test_one_run_of_the_model_for_a_batch_and_none_for_nothing() -> None:
    model = FirstModel()
    step = make_step("first", source(model))
    step(MIXED)
    step([features("short", 1.0, length=19)])
    assert model.batches == [3]


def test_one_model_answers_all_of_a_batch() -> None:
    class Changing:
        """Another version whenever it is asked."""

        def __init__(self) -> None:
            self.models = [FirstModel(str(version)) for version in range(1, 9)]

        def current(self) -> Model:
            return cast(Model, self.models.pop(0))

    step = make_step("first", Changing())
    versions = [
        {row.model_version for verdict in step(MIXED) if isinstance(verdict, Done) for row in verdict.rows}
        for _ in range(3)
    ]
    assert versions == [{"1"}, {"2"}, {"3"}]


def test_no_model_yet_is_waited_for() -> None:
    class Empty:
        def current(self) -> Model:
            raise Unavailable("model_store", "MLflow is away")

    with pytest.raises(Unavailable, match="MLflow is away"):
        make_step("first", Empty())(MIXED)


# A model in shadow -----------------------------------------------------------------------------------------


def shadowed(shadow: ModelSource, **options: Any) -> Step[ImageFeatures]:
    return make_step("first", source(), shadow=Shadow("first", shadow, **options), clock=clock())


def failures() -> float:
    return metrics.SHADOW_FAILURES.labels("classifier-first")._value.get()


def answers(verdicts: Sequence[Verdict]) -> list[Any]:
    """What the loop stores and publishes but for the rows of the shadow."""
    return [
        tuple(row for row in v.rows if not isinstance(row, ShadowPredictionRow))
        if isinstance(v, Done)
        else plain([v])
        for v in verdicts
    ]


def test_a_shadow_answers_beside_the_model() -> None:
    before = failures()
    for _ in range(2):
        verdicts = shadowed(source(FirstModel("4")), clock=lambda: 0.0)(MIXED)
        assert answers(verdicts) == answers(make_step("first", source(), clock=clock())(MIXED))
        unseen = [v.rows[1] for v in verdicts if isinstance(v, Done)]
        assert all(isinstance(row, ShadowPredictionRow) for row in unseen)
        assert [(row.image_id, row.label, row.model_version) for row in unseen] == [
            ("cat", "cat", "4"),
            ("dog", "dog", "4"),
            ("another-cat", "cat", "4"),
        ]
        # Of the shadow's own clock, which stands still here.
        assert {row.latency_ms for row in unseen} == {0.0}
    assert failures() == before


def raises(_: Any) -> list[Any]:
    raise RuntimeError("out of memory")


def too_few(_: Any) -> list[Any]:
    return [np.array([1]), np.array([[0.25, 0.75]])]


def out_of_range(descriptors: Any) -> list[Any]:
    return [np.full(len(descriptors), 7), np.full((len(descriptors), 2), 0.5)]


def no_pair(_: Any) -> list[Any]:
    return [np.array([1])]


@pytest.mark.parametrize("run", [raises, too_few, out_of_range, no_pair])
def test_a_shadow_that_fails_costs_only_its_own_rows(run: Any) -> None:
    model = FirstModel("4")
    model.run = run  # type: ignore[method-assign]
    step = shadowed(source(model))
    before = failures()
    with capture_logs() as logs:
        found = [step(MIXED) for _ in range(2)]
    unshadowed = make_step("first", source(), clock=clock())
    assert [answers(verdicts) for verdicts in found] == [answers(unshadowed(MIXED)) for _ in range(2)]
    assert all(len(v.rows) == 1 for verdicts in found for v in verdicts if isinstance(v, Done))
    assert failures() == before + 2
    # Said once, not for every batch.
    assert [line["event"] for line in logs] == ["shadow_failed"]


def test_a_shadow_without_a_model_yet_costs_nothing() -> None:
    class Empty:
        def current(self) -> Model:
            raise Unavailable("model_store", "MLflow is away")

    before = failures()
    verdicts = shadowed(Empty())(MIXED)
    assert all(len(v.rows) == 1 for v in verdicts if isinstance(v, Done))
    assert failures() == before + 1


def test_a_shadow_of_another_width_or_extractor_answers_what_it_can() -> None:
    model = FirstModel("4")
    model.extractor = "extractor@2.0.0"  # type: ignore[misc]
    before = failures()
    verdicts = shadowed(source(model))(MIXED)
    # Of the three answered, one says which extractor it is of.
    assert [len(v.rows) for v in verdicts if isinstance(v, Done)] == [2, 2, 1]
    assert failures() == before + 1
    model.descriptor_count = 10  # type: ignore[misc]
    assert [len(v.rows) for v in shadowed(source(model))(MIXED) if isinstance(v, Done)] == [1, 1, 1]
