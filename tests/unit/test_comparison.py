"""Shadows against what is shown: the figures, from pairs that are written down here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from visionmesh.cli.compare import EXTRACTOR, compare_all, seconds_of
from visionmesh.comparison import (
    Confusion,
    LabelAgreement,
    Latency,
    SpaceClassifier,
    compare_classifiers,
    compare_extractors,
    counterpart,
)
from visionmesh.errors import Unavailable
from visionmesh.mlflow import Mlflow
from visionmesh.results import (
    FeaturesPair,
    FeaturesRow,
    PredictionPair,
    PredictionRow,
    ShadowClassifier,
    ShadowFeaturesRow,
    ShadowPredictionRow,
)
from visionmesh.testing.results import MemoryResultStore, MemoryShadows

SHADOW = ShadowClassifier("fast", "forest", "2")


def pair(
    label: str, shadow_label: str, *, model: str = "forest@1", confidence: float = 0.5, latency: float = 1.0
) -> PredictionPair:
    return PredictionPair("i", model, label, confidence, latency, shadow_label, 0.75, 2 * latency)


def test_agreement_and_where_two_classifiers_differ() -> None:
    pairs = [
        *[pair("cat", "cat", confidence=0.9)] * 5,
        *[pair("cat", "dog", confidence=0.1)] * 2,
        pair("dog", "cat", confidence=0.1),
        pair("bird", "ship", confidence=0.1),
        pair("ship", "ship", confidence=0.1),
    ]
    (found,) = compare_classifiers(SHADOW, pairs)
    assert (found.classifier, found.model, found.shadow) == ("fast", "forest@1", "forest@2")
    assert (found.pictures, found.agreement) == (10, 0.6)
    assert found.confusions == (
        Confusion("cat", "dog", 2),
        Confusion("bird", "ship", 1),
        Confusion("dog", "cat", 1),
    )
    assert found.confidence == pytest.approx(0.5)
    assert found.shadow_confidence == 0.75


def test_latencies_are_percentiles_of_the_pictures() -> None:
    (found,) = compare_classifiers(SHADOW, [pair("cat", "cat", latency=float(n)) for n in range(101)])
    assert found.latency_ms == Latency(50, 95)
    assert found.shadow_latency_ms == Latency(100, 190)
    assert (found.agreement, found.confusions) == (1, ())


def test_each_model_that_was_shown_meanwhile_is_compared_by_itself() -> None:
    pairs = [pair("cat", "dog", model="forest@3"), pair("cat", "cat"), pair("cat", "cat")]
    assert [(each.model, each.pictures, each.agreement) for each in compare_classifiers(SHADOW, pairs)] == [
        ("forest@1", 2, 1),
        ("forest@3", 1, 0),
    ]
    assert compare_classifiers(SHADOW, []) == []


def features(
    shown: Sequence[float], shadow: Sequence[float], model: str = "extractor@1", **labels: str
) -> FeaturesPair:
    return FeaturesPair("i", model, tuple(shown), tuple(shadow), 0.5, labels)


def own_space(address: str) -> str:
    return address


def test_descriptors_differ_in_units_of_the_standard_deviation_of_those_shown() -> None:
    # Standard deviations 1, 10 and, of a descriptor that says nothing, 0.
    pairs = [features((0, 0, 7), (2, 0, 9)), features((2, 20, 7), (2, 60, 9))]
    (found,) = compare_extractors("extractor@2", pairs, own_space)
    assert found.distance == pytest.approx((np.sqrt(2**2 / 2) + np.sqrt(4**2 / 2)) / 2)
    assert (found.pictures, found.descriptor_count, found.shadow_descriptor_count) == (2, 3, 3)
    assert found.shadow_latency_ms == Latency(0.5, 0.5)
    assert not found.same_space


@pytest.mark.parametrize(
    "pairs",
    [
        [features((0.0, 1.0), (0.0,)), features((1.0, 2.0), (1.0,))],
        [features((0.0, 1.0), (0.5, 1.0))],
        [features((), ())],
    ],
)
def test_without_the_same_count_or_anything_that_varies_there_is_no_distance(
    pairs: list[FeaturesPair],
) -> None:
    (found,) = compare_extractors("extractor@2", pairs, own_space)
    assert found.distance is None


def test_variants_of_one_net_share_a_space() -> None:
    (found,) = compare_extractors("extractor-fp32@1", [features((1,), (1,))], lambda _: "extractor@1")
    assert found.same_space


def test_a_classifier_for_the_shadows_space_is_held_against_the_stored_labels_of_its_counterpart() -> None:
    def label(descriptors: NDArray[np.float32]) -> list[str]:
        assert descriptors.dtype == np.float32
        return ["cat" if first < 0.5 else "dog" for first, _ in descriptors.tolist()]

    pairs = [
        features((9,), (0, 1), fast="cat", accurate="dog"),
        features((9,), (1, 1), fast="cat", accurate="dog"),
        features((9,), (1, 1), fast="dog"),
        features((9,), (1, 1, 1), fast="dog"),
        features((9,), (1, 1)),
    ]
    classifiers = [SpaceClassifier(name, f"tiny-{name}@1", 2, label) for name in ("fast", "accurate", "none")]
    (found,) = compare_extractors("tiny@1", pairs, own_space, classifiers)
    assert found.labels == (
        LabelAgreement("fast", "tiny-fast@1", 3, 2 / 3),
        LabelAgreement("accurate", "tiny-accurate@1", 2, 0.5),
    )


@pytest.mark.parametrize(
    ("model", "classifier"),
    [
        ("classifier-fast", "fast"),
        ("classifier-fast-resnet50-pca", "fast"),
        ("mine-fast", "fast"),
        ("classifier-fast-night", "fast-night"),
        ("classifier-fastest", None),
        ("classifier-svm", None),
    ],
)
def test_the_name_of_a_model_says_whose_counterpart_it_is(model: str, classifier: str | None) -> None:
    assert counterpart(model, ["accurate", "fast", "fast-night"]) == classifier
    assert counterpart(model, []) is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("1.5h", 5400), ("7d", 604_800)]
)
def test_how_far_back(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1w", "1 h", "1h30m", "nan"])
def test_what_is_no_time(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        seconds_of(text)
    assert ended.value.code == 2
    assert "90s, 15m, 1h or 7d" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("of", "classifiers", "extractors"),
    [
        (None, ["accurate", "fast"], ["e@2"]),
        ("fast", ["fast"], []),
        ("classifier-fast", ["fast"], []),
        (EXTRACTOR, [], ["e@2"]),
        ("slow", [], []),
    ],
)
def test_only_what_was_asked_for_is_compared(
    of: str | None, classifiers: list[str], extractors: list[str]
) -> None:
    store = MemoryResultStore()
    for name in ("fast", "accurate"):
        store.save([PredictionRow("i", name, "cat", 1, ("cat",), (1,), "m", "1", 0.1)])
        store.save([ShadowPredictionRow("i", name, "cat", 1, ("cat",), (1,), "m", "2", 0.1)])
    store.save([FeaturesRow("i", (0.5,), "e@1"), ShadowFeaturesRow("i", (0.5,), "e@2", 0.1)])
    found = compare_all(MemoryShadows(store), None, of, seconds=60, limit=10)
    assert [each.classifier for each in found.classifiers] == classifiers
    assert [each.shadow for each in found.extractors] == extractors


class Registered:
    """Stands in for an MLflow server: version 3 of `extractor` gives what extractor@2.0.0 gives."""

    def describe(self, name: str, version: str) -> Mapping[str, Any]:
        if (name, version) == ("extractor", "3"):
            return {"space": "extractor@2.0.0"}
        raise Unavailable("model_store", "no such thing")


@pytest.mark.parametrize(("shadow", "same"), [("extractor@3", True), ("extractor@4", False)])
def test_the_space_of_a_registered_extractor_is_asked_of_the_registry(shadow: str, same: bool) -> None:
    store = MemoryResultStore()
    store.save([FeaturesRow("i", (0.5,), "extractor@2.0.0"), ShadowFeaturesRow("i", (0.5,), shadow, 0.1)])
    registry = cast(Mlflow, Registered())
    (found,) = compare_all(
        MemoryShadows(store), None, None, seconds=60, limit=10, registry=registry
    ).extractors
    assert found.same_space == same
