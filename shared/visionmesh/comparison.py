"""A model in shadow against the one whose answers are shown, on the pictures that both have seen.

There is no truth in these pictures, so nothing here says which of the two is right: agreement is no
accuracy, and confidence no calibration. `models/REPORT.md` has both, from pictures with labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from visionmesh.results import FeaturesPair, PredictionPair, ShadowClassifier

# Labels of descriptors, float32 [N, descriptor_count].
Label = Callable[[NDArray[np.float32]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of inference per picture, as the services stored them."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many pictures have the one label and, from the shadow, the other."""

    label: str
    shadow_label: str
    pictures: int


@dataclass(frozen=True, slots=True)
class ClassifierComparison:
    """A classifier and its shadow.

    model, shadow: `name@version`. agreement: share of the pictures with the same label, 0 to 1.
    confusions: where they differ, the most frequent first. confidence, shadow_confidence: means.
    """

    classifier: str
    model: str
    shadow: str
    pictures: int
    agreement: float
    confusions: tuple[Confusion, ...]
    confidence: float
    shadow_confidence: float
    latency_ms: Latency
    shadow_latency_ms: Latency


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """How often a classifier says of the shadow's descriptors what is stored of the picture.

    classifier: whose stored labels. model: `name@version` of the classifier for the shadow's descriptors.
    """

    classifier: str
    model: str
    pictures: int
    agreement: float


@dataclass(frozen=True, slots=True)
class ExtractorComparison:
    """The extractor and its shadow.

    model, shadow: `name@version`. same_space: whether a classifier of the one takes those of the other.
    distance: mean over the pictures of the root mean square difference of a descriptor, in units of its
    standard deviation in the descriptors that are shown; None when the counts differ or nothing varies. It
    means little where the spaces are not the same.
    """

    model: str
    shadow: str
    same_space: bool
    pictures: int
    descriptor_count: int
    shadow_descriptor_count: int
    distance: float | None
    shadow_latency_ms: Latency
    labels: tuple[LabelAgreement, ...]


@dataclass(frozen=True, slots=True)
class SpaceClassifier:
    """A classifier for a shadow's descriptors. classifier: its counterpart among those that are stored."""

    classifier: str
    model: str
    descriptor_count: int
    label: Label


def compare_classifiers(
    shadow: ShadowClassifier, pairs: Iterable[PredictionPair]
) -> list[ClassifierComparison]:
    """One comparison for each model that was shown meanwhile, by its name."""
    return [
        _compare_classifier(shadow, model, of_model)
        for model, of_model in _by_model(pairs, lambda pair: pair.model)
    ]


def compare_extractors(
    shadow: str,
    pairs: Iterable[FeaturesPair],
    space: Callable[[str], str],
    classifiers: Sequence[SpaceClassifier] = (),
) -> list[ExtractorComparison]:
    """One comparison for each model that was shown meanwhile, by its name.

    space: of an extractor's `name@version`. classifiers: those of the shadow's space.
    """
    return [
        _compare_extractor(shadow, model, of_model, space, classifiers)
        for model, of_model in _by_model(pairs, lambda pair: pair.model)
    ]


def counterpart(model: str, classifiers: Iterable[str]) -> str | None:
    """Which of these classifiers the name of a model speaks of, None when of none: `classifier-fast`,
    `classifier-fast-resnet50-pca` and `mine-fast` all speak of `fast`. Of two, the one with the longer name.
    """
    named = [classifier for classifier in classifiers if f"-{classifier}-" in f"-{model}-"]
    return max(named, key=lambda classifier: (len(classifier), classifier), default=None)


P = TypeVar("P")


def _by_model(pairs: Iterable[P], model: Callable[[P], str]) -> list[tuple[str, list[P]]]:
    groups: dict[str, list[P]] = {}
    for pair in pairs:
        groups.setdefault(model(pair), []).append(pair)
    return sorted(groups.items())


def _compare_classifier(
    shadow: ShadowClassifier, model: str, pairs: Sequence[PredictionPair]
) -> ClassifierComparison:
    differing = Counter((pair.label, pair.shadow_label) for pair in pairs if pair.label != pair.shadow_label)
    return ClassifierComparison(
        classifier=shadow.classifier,
        model=model,
        shadow=f"{shadow.model}@{shadow.model_version}",
        pictures=len(pairs),
        agreement=1 - differing.total() / len(pairs),
        confusions=tuple(
            Confusion(*labels, count)
            for labels, count in sorted(differing.items(), key=lambda item: (-item[1], item[0]))
        ),
        confidence=float(np.mean([pair.confidence for pair in pairs])),
        shadow_confidence=float(np.mean([pair.shadow_confidence for pair in pairs])),
        latency_ms=_latency(pair.latency_ms for pair in pairs),
        shadow_latency_ms=_latency(pair.shadow_latency_ms for pair in pairs),
    )


def _compare_extractor(
    shadow: str,
    model: str,
    pairs: Sequence[FeaturesPair],
    space: Callable[[str], str],
    classifiers: Sequence[SpaceClassifier],
) -> ExtractorComparison:
    agreements = (_label_agreement(classifier, pairs) for classifier in classifiers)
    return ExtractorComparison(
        model=model,
        shadow=shadow,
        same_space=space(model) == space(shadow),
        pictures=len(pairs),
        # Of the newest: a model has one count.
        descriptor_count=len(pairs[0].descriptors),
        shadow_descriptor_count=len(pairs[0].shadow_descriptors),
        distance=_distance(pairs),
        shadow_latency_ms=_latency(pair.shadow_latency_ms for pair in pairs),
        labels=tuple(agreement for agreement in agreements if agreement is not None),
    )


def _distance(pairs: Sequence[FeaturesPair]) -> float | None:
    count = len(pairs[0].descriptors)
    comparable = [pair for pair in pairs if len(pair.descriptors) == len(pair.shadow_descriptors) == count]
    if not comparable:
        return None
    shown = np.array([pair.descriptors for pair in comparable], np.float64)
    deviation = shown.std(axis=0)
    varying = deviation > 0
    if not varying.any():
        return None
    difference = np.array([pair.shadow_descriptors for pair in comparable], np.float64) - shown
    units = difference[:, varying] / deviation[varying]
    return float(np.sqrt((units**2).mean(axis=1)).mean())


def _label_agreement(classifier: SpaceClassifier, pairs: Sequence[FeaturesPair]) -> LabelAgreement | None:
    """None when no picture has both a stored label and descriptors that the classifier takes."""
    stored = [
        (label, pair.shadow_descriptors)
        for pair in pairs
        if (label := pair.labels.get(classifier.classifier)) is not None
        and len(pair.shadow_descriptors) == classifier.descriptor_count
    ]
    if not stored:
        return None
    found = classifier.label(np.array([descriptors for _, descriptors in stored], np.float32))
    same = sum(label == other for (label, _), other in zip(stored, found, strict=True))
    return LabelAgreement(classifier.classifier, classifier.model, len(stored), same / len(stored))


def _latency(milliseconds: Iterable[float]) -> Latency:
    p50, p95 = np.percentile(np.fromiter(milliseconds, np.float64), [50, 95]).tolist()
    return Latency(p50, p95)
