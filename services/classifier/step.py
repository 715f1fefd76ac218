"""Descriptors -> a label, stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from classifier.domain import Classifier, Prediction, validate
from visionmesh.contracts import ImageFeatures
from visionmesh.errors import Rejected
from visionmesh.results import PredictionRow
from visionmesh.worker.step import Done, Step, Verdict


def make_step(
    name: str, classifier: Classifier, *, clock: Callable[[], float] = time.perf_counter
) -> Step[ImageFeatures]:
    """The step of the classifier that users know as `name`. clock: seconds, for `latency_ms`."""

    def check(message: ImageFeatures) -> NDArray[np.float32] | Rejected:
        found = len(message.descriptors)
        if message.descriptor_count != found:
            return Rejected(
                "wrong_descriptor_count",
                f"descriptor_count is {message.descriptor_count}, but there are {found} descriptors.",
            )
        try:
            return validate(message.descriptors, classifier.model.descriptor_count)
        except Rejected as error:
            return error

    def step(messages: Sequence[ImageFeatures]) -> list[Verdict]:
        checked = [check(message) for message in messages]
        good = [found for found in checked if isinstance(found, np.ndarray)]
        started = clock()
        predictions = iter(classifier.classify(np.stack(good)) if good else ())
        latency_ms = (clock() - started) * 1000 / max(1, len(good))
        return [
            _done(name, message, next(predictions), classifier, latency_ms)
            if isinstance(found, np.ndarray)
            else found
            for message, found in zip(messages, checked, strict=True)
        ]

    return step


def _done(
    name: str, message: ImageFeatures, prediction: Prediction, classifier: Classifier, latency_ms: float
) -> Done:
    row = PredictionRow(
        image_id=message.image_id,
        classifier=name,
        label=prediction.label,
        confidence=prediction.confidence,
        labels=classifier.model.labels,
        probabilities=prediction.probabilities,
        model=classifier.model.name,
        model_version=classifier.model.version,
        latency_ms=latency_ms,
    )
    return Done(rows=(row,))
