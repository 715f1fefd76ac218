"""The agreed answer: what the pool does with any classifiers, and what it says of how it came about."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionmesh.consensus import PROBABILITY_FLOOR, Fitted, agree, pool
from visionmesh.results import PredictionRow

LABELS = ("cat", "dog", "ship")
FITTED = Fitted(
    {"fast": "forest@2", "balanced": "svm@2", "accurate": "net@2"},
    {"fast": 0.25, "balanced": 0.25, "accurate": 1.0},
)


def answer(
    classifier: str,
    *probabilities: float,
    labels: Sequence[str] = LABELS,
    model: str = "m",
    version: str = "2",
) -> PredictionRow:
    label = labels[int(np.argmax(probabilities))]
    return PredictionRow(
        "i", classifier, label, max(probabilities), tuple(labels), probabilities, model, version, 0.1
    )


def three() -> list[PredictionRow]:
    return [
        answer("fast", 0.6, 0.3, 0.1, model="forest"),
        answer("balanced", 0.7, 0.2, 0.1, model="svm"),
        answer("accurate", 0.2, 0.7, 0.1, model="net"),
    ]


@st.composite
def distributions(draw: st.DrawFn, size: int = len(LABELS)) -> tuple[float, ...]:
    """Probabilities over `size` labels, zeros and certainties included."""
    parts = draw(
        st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 1)), min_size=size, max_size=size).filter(
            lambda parts: sum(parts) > 0
        )
    )
    return tuple(part / sum(parts) for part in parts)


answers = st.lists(distributions(), min_size=1, max_size=5).map(
    lambda found: [answer(f"c{number}", *probabilities) for number, probabilities in enumerate(found)]
)
weights = st.lists(st.floats(0, 20), min_size=5, max_size=5)


def fitted_to(found: list[PredictionRow], weights: list[float]) -> Fitted:
    return Fitted(
        {row.classifier: "m@2" for row in found},
        {row.classifier: weight for row, weight in zip(found, weights, strict=False)},
    )


@given(answers, weights, st.randoms(use_true_random=False))
def test_the_order_of_the_classifiers_does_not_matter(
    found: list[PredictionRow], weights: list[float], random: Any
) -> None:
    shuffled = found.copy()
    random.shuffle(shuffled)
    fitted = fitted_to(found, weights)
    assert agree(shuffled, fitted) == agree(found, fitted) == agree(found, fitted)


@given(answers, weights, st.permutations(range(len(LABELS))))
def test_the_order_of_a_classifiers_labels_does_not_matter(
    found: list[PredictionRow], weights: list[float], order: list[int]
) -> None:
    first = found[0]
    turned = replace(
        first,
        labels=tuple(first.labels[place] for place in order),
        probabilities=tuple(first.probabilities[place] for place in order),
    )
    fitted = fitted_to(found, weights)
    assert agree([turned, *found[1:]], fitted) == agree(found, fitted)


@given(answers, weights)
def test_probabilities_add_up_to_one(found: list[PredictionRow], weights: list[float]) -> None:
    agreed = agree(found, fitted_to(found, weights))
    assert agreed is not None
    assert math.isclose(sum(agreed.probabilities.values()), 1)
    assert agreed.calibrated
    assert agreed.probabilities.keys() == set(LABELS)
    assert agreed.confidence == agreed.probabilities[agreed.label]
    assert agreed.confidence == pytest.approx(max(agreed.probabilities.values()))


@given(answers, weights, st.integers(0, len(LABELS) - 1))
def test_what_all_say_is_agreed_on(found: list[PredictionRow], weights: list[float], winner: int) -> None:
    """Each classifier's largest probability is moved to the same label."""

    def saying(row: PredictionRow) -> PredictionRow:
        values = list(row.probabilities)
        largest = values.index(max(values))
        values[winner], values[largest] = values[largest], values[winner]
        return replace(row, label=LABELS[winner], probabilities=tuple(values))

    agreed = agree([saying(row) for row in found], fitted_to(found, weights))
    assert agreed is not None
    assert (agreed.label, agreed.agreement) == (LABELS[winner], "unanimous")


@given(distributions())
def test_one_classifier_is_agreed_with(probabilities: tuple[float, ...]) -> None:
    agreed = agree([answer("fast", *probabilities)])
    assert agreed is not None
    assert agreed.agreement == "unanimous"
    assert agreed.weights == {"fast": 1.0}
    for label, probability in zip(LABELS, probabilities, strict=True):
        assert agreed.probabilities[label] == pytest.approx(probability, abs=3 * PROBABILITY_FLOOR)


def test_the_formula() -> None:
    probabilities = np.array([[[0.6, 0.3, 0.1]], [[0.2, 0.5, 0.3]]])
    expected = np.array([0.6**0.5 * 0.2**1.5, 0.3**0.5 * 0.5**1.5, 0.1**0.5 * 0.3**1.5])
    found = pool(probabilities, np.array([0.5, 1.5]))
    assert found.shape == (1, 3)
    np.testing.assert_allclose(found[0], expected / expected.sum())


def test_one_classifiers_zero_does_not_forbid_what_the_others_are_sure_of() -> None:
    agreed = agree(
        [answer("a", 0.999, 0.001, 0.0), answer("b", 0.999, 0.001, 0.0), answer("c", 0.0, 0.6, 0.4)]
    )
    assert agreed is not None
    assert agreed.label == "cat"
    assert all(0 < value < 1 for value in agreed.probabilities.values())


def test_certainties_that_contradict_one_another_and_numbers_that_are_none_stay_finite() -> None:
    agreed = agree([answer("a", 1.0, 0.0, 0.0), answer("b", 0.0, 1.0, 0.0)])
    assert agreed is not None
    assert agreed.probabilities["cat"] == agreed.probabilities["dog"] == pytest.approx(0.5, abs=1e-3)
    strange = pool(np.array([[[math.nan, math.inf, -1.0]]]), np.array([1e6]))
    np.testing.assert_allclose(strange, [[0, 1, 0]], atol=1e-9)


def test_the_fitted_models_are_weighted_and_calibrated() -> None:
    agreed = agree(three(), FITTED)
    assert agreed is not None
    expected = {
        "cat": 0.6**0.25 * 0.7**0.25 * 0.2,
        "dog": 0.3**0.25 * 0.2**0.25 * 0.7,
        "ship": 0.1**1.5,
    }
    assert agreed.label == "dog"
    assert agreed.confidence == pytest.approx(expected["dog"] / sum(expected.values()))
    assert (agreed.calibrated, agreed.weights) == (True, FITTED.weights)
    assert agreed.agreement == "majority"
    assert agreed.votes == {"cat": ("balanced", "fast"), "dog": ("accurate",)}
    assert list(agreed.votes) == ["cat", "dog"]


@pytest.mark.parametrize(
    "others",
    [
        three()[:2],
        [*three()[:2], replace(three()[2], model_version="3")],
        [*three()[:2], replace(three()[2], model="forest")],
        [*three(), answer("fourth", 0.2, 0.5, 0.3)],
    ],
)
def test_other_models_than_those_fitted_are_averaged_and_not_calibrated(others: list[PredictionRow]) -> None:
    agreed = agree(others, FITTED)
    assert agreed is not None
    assert not agreed.calibrated
    assert set(agreed.weights.values()) == {1 / len(others)}
    assert agreed == agree(others)


@pytest.mark.parametrize(
    ("labels", "agreement"),
    [("c", "unanimous"), ("cc", "unanimous"), ("cd", "split"), ("ccd", "majority"), ("cds", "split"),
     ("cccd", "majority"), ("ccdd", "split"), ("ccds", "split")],
)  # fmt: skip
def test_how_many_say_the_same(labels: str, agreement: str) -> None:
    sure = {"c": (0.8, 0.1, 0.1), "d": (0.1, 0.8, 0.1), "s": (0.1, 0.1, 0.8)}
    agreed = agree([answer(f"c{number}", *sure[label]) for number, label in enumerate(labels)])
    assert agreed is not None
    assert agreed.agreement == agreement


def test_of_equally_probable_labels_the_one_with_most_votes_is_agreed_on() -> None:
    ship = replace(answer("b", 0.4, 0.2, 0.4), label="ship")
    agreed = agree([ship, replace(ship, classifier="a")])
    assert agreed is not None
    assert agreed.label == "ship"
    split = agree([ship, replace(ship, classifier="a", label="cat")])
    assert split is not None
    assert split.label == "cat"


def test_other_labels_are_left_out() -> None:
    coarse = answer("coarse", 0.1, 0.9, labels=("animal", "vehicle"))
    agreed = agree([coarse, *three()], FITTED)
    without = agree(three(), FITTED)
    assert agreed is not None
    assert without is not None
    assert agreed == replace(without, left_out=("coarse",))
    # One against one: the set that comes first by name.
    alone = agree([answer("a", 0.6, 0.3, 0.1), coarse])
    assert alone is not None
    assert (alone.label, alone.left_out) == ("vehicle", ("a",))


def test_nobody_agrees_on_nothing() -> None:
    assert agree([], FITTED) is None


def test_the_table_of_a_consensus() -> None:
    table = tomllib.loads(
        'kind = "consensus"\nclassifiers = {fast = "forest@2", balanced = "svm@2", accurate = "net@2"}\n'
        "weights = {fast = 0.25, balanced = 0.25, accurate = 1}\n"
    )
    assert Fitted.from_table(table) == FITTED


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"classifiers": {"fast": "m@1"}},
        {"classifiers": {"fast": "m@1"}, "weights": 0.5},
        {"classifiers": {}, "weights": {}},
        {"classifiers": {"fast": "m@1"}, "weights": {"slow": 1.0}},
        {"classifiers": {"fast": "m@1"}, "weights": {"fast": -0.1}},
        {"classifiers": {"fast": "m@1"}, "weights": {"fast": math.nan}},
        {"classifiers": {"fast": "m@1"}, "weights": {"fast": math.inf}},
        {"classifiers": {"fast": "m@1"}, "weights": {"fast": "1"}},
        {"classifiers": {"fast": "m@1"}, "weights": {"fast": True}},
        {"classifiers": {"fast": "m@1"}, "weights": {"fast": 0.0}},
    ],
)
def test_a_table_that_is_none_says_why(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="consensus"):
        Fitted.from_table(table)
