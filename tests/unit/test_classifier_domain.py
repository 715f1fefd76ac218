from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import small_models
from classifier.domain import Classifier, validate
from visionmesh.errors import Rejected
from visionmesh.model_store import Model, ModelStore, load_model
from visionmesh.settings import ROOT

NAMES = ("classifier-fast", "classifier-balanced", "classifier-accurate")


@pytest.fixture(scope="module", params=NAMES)
def classifier(request: pytest.FixtureRequest) -> Classifier:
    return Classifier(ModelStore(ROOT / "models").load(request.param))


def descriptors(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(size=(count, 20)).astype(np.float32)


def test_a_prediction_is_the_most_probable_label(classifier: Classifier) -> None:
    for found in classifier.classify(descriptors(50)):
        assert math.isclose(sum(found.probabilities), 1, abs_tol=1e-5)
        assert found.confidence == max(found.probabilities)
        assert found.label == classifier.model.labels[found.probabilities.index(found.confidence)]


def test_labels_differ_from_picture_to_picture(classifier: Classifier) -> None:
    assert len({found.label for found in classifier.classify(descriptors(300))}) >= 5


@pytest.mark.parametrize("count", [0, 1, 256, 257, 600])
def test_any_number_of_rows_in_order(classifier: Classifier, count: int) -> None:
    found = classifier.classify(descriptors(count))
    assert len(found) == count
    if count:
        alone = classifier.classify(descriptors(count)[-1:])[0]
        assert found[-1].label == alone.label
        assert math.isclose(found[-1].confidence, alone.confidence, abs_tol=1e-4)


def test_classifying_twice_gives_the_same(classifier: Classifier) -> None:
    assert classifier.classify(descriptors(20)) == classifier.classify(descriptors(20))


@pytest.mark.parametrize("value", [1e30, -1e30, 3.4e38, 0.0])
def test_extreme_descriptors_still_give_probabilities(classifier: Classifier, value: float) -> None:
    (found,) = classifier.classify(validate(classifier.model, [value] * 20)[np.newaxis])
    assert all(0 <= probability <= 1 for probability in found.probabilities)
    assert math.isclose(sum(found.probabilities), 1, abs_tol=1e-5)


def model(width: int = 20, extractor: str = "extractor@1.0.0") -> Model:
    return load_model("small", *small_models.classifier(width=width, extractor=extractor), source="the test")


def test_valid_descriptors_become_float32() -> None:
    found = validate(model(), [0.42, -0.18, *[0.0] * 18])
    assert found.dtype == np.float32
    assert found.tolist()[:2] == pytest.approx([0.42, -0.18])


@pytest.mark.parametrize("width", [10, 20, 50])
@pytest.mark.parametrize("count", [0, 1, 10, 19, 20, 21, 50, 2048])
def test_a_wrong_number_of_descriptors_is_rejected(width: int, count: int) -> None:
    if count == width:
        assert len(validate(model(width), [0.5] * count)) == count
        return
    with pytest.raises(
        Rejected, match=rf"Got {count} descriptors, and small@1\.0\.0 takes {width}"
    ) as caught:
        validate(model(width), [0.5] * count)
    assert caught.value.code == "wrong_descriptor_count"


def test_a_miscounted_message_is_rejected() -> None:
    with pytest.raises(Rejected, match="descriptor_count is 19, but there are 20 descriptors") as caught:
        validate(model(), [0.5] * 20, count=19)
    assert caught.value.code == "wrong_descriptor_count"


def test_descriptors_of_another_extractor_are_rejected() -> None:
    assert len(validate(model(), [0.5] * 20, space="extractor@1.0.0")) == 20
    assert len(validate(model(), [0.5] * 20, space=None)) == 20
    with pytest.raises(
        Rejected, match=r"are of extractor@2\.0\.0, and small@1\.0\.0 was trained on those of extractor@1"
    ) as caught:
        validate(model(), [0.5] * 20, space="extractor@2.0.0")
    assert caught.value.code == "wrong_extractor"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, 10**400])
def test_what_is_not_finite_is_rejected(value: float) -> None:
    with pytest.raises(Rejected) as caught:
        validate(model(), [0.5] * 19 + [value])
    assert caught.value.code == "not_finite"


def test_a_model_that_does_not_answer_every_row_is_a_bug() -> None:
    class Lazy:
        labels = ("dog", "cat")
        kind = "classifier"
        address = "lazy@1"

        def run(self, _: Any) -> list[NDArray[Any]]:
            return [np.array([1]), np.array([[0.25, 0.75]])]

    with pytest.raises(ValueError, match="lazy@1 answered 1 of 3"):
        Classifier(cast(Model, Lazy())).classify(descriptors(3))


def test_an_extractor_is_no_classifier() -> None:
    with pytest.raises(ValueError, match="is an extractor"):
        Classifier(ModelStore(ROOT / "models").load("extractor"))


def test_four_digits_change_nothing_for_the_forest() -> None:
    """Its thresholds lie between the numbers that can be on the wire."""
    forest = Classifier(ModelStore(ROOT / "models").load("classifier-random-forest"))
    assert forest.model.family == "random forest"
    whole = descriptors(2_000)
    rounded = np.array([[float(f"{value:.4g}") for value in row] for row in whole.tolist()], np.float32)
    changed = [
        one != other for one, other in zip(forest.classify(whole), forest.classify(rounded), strict=True)
    ]
    assert sum(changed) <= 1
