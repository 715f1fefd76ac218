"""Descriptors -> a label, stored."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from classifier.domain import Classifier, Prediction, validate
from visionmesh.contracts import ImageFeatures
from visionmesh.errors import Rejected
from visionmesh.model_store import Model
from visionmesh.observability import metrics
from visionmesh.registry import ModelSource
from visionmesh.results import PredictionRow, ShadowPredictionRow
from visionmesh.shadow import Failures
from visionmesh.worker.step import Done, Step, Verdict

# Seconds since whenever, for `latency_ms`.
Clock = Callable[[], float]

R = TypeVar("R", bound=PredictionRow)


class Shadow:
    """A second model beside the one that answers for the classifier `name`, whose answers are stored apart.

    Whatever befalls it costs its own rows alone: it is counted, and logged once per reason.
    """

    def __init__(self, name: str, source: ModelSource, *, clock: Clock = time.perf_counter) -> None:
        self._name = name
        self._source = source
        self._clock = clock
        self._failures = Failures(f"classifier-{name}")

    def rows(self, messages: Sequence[ImageFeatures]) -> list[tuple[ShadowPredictionRow, ...]]:
        """For each message the shadow's row, or none."""
        try:
            found = _predict(ShadowPredictionRow, self._name, self._source.current(), messages, self._clock)
        # Nothing that a shadow can do may reach the answer.
        except Exception as error:
            self._failures.note(f"{type(error).__name__}: {error}")
            return [()] * len(messages)
        refused = next((each for each in found if isinstance(each, Rejected)), None)
        if refused is not None:
            self._failures.note(refused.reason)
        return [() if isinstance(each, Rejected) else (each,) for each in found]


def make_step(
    name: str, source: ModelSource, *, shadow: Shadow | None = None, clock: Clock = time.perf_counter
) -> Step[ImageFeatures]:
    """The step of the classifier that users know as `name`. It raises `Unavailable` as long as `source` has
    no model.
    """

    def step(messages: Sequence[ImageFeatures]) -> list[Verdict]:
        found = _predict(PredictionRow, name, source.current(), messages, clock)
        answered = [
            message for message, row in zip(messages, found, strict=True) if isinstance(row, PredictionRow)
        ]
        _count(name, found)
        unseen = iter(shadow.rows(answered) if shadow is not None and answered else [()] * len(answered))
        return [row if isinstance(row, Rejected) else Done(rows=(row, *next(unseen))) for row in found]

    return step


def _count(name: str, found: Sequence[PredictionRow | Rejected]) -> None:
    rows = [row for row in found if isinstance(row, PredictionRow)]
    for label, count in Counter(row.label for row in rows).items():
        metrics.PREDICTIONS.labels(name, label).inc(count)
    confidence = metrics.CONFIDENCE.labels(name)
    for row in rows:
        confidence.observe(row.confidence)


def _predict(
    kind: type[R], name: str, model: Model, messages: Sequence[ImageFeatures], clock: Clock
) -> list[R | Rejected]:
    """What the model says of each message, in one run for all that it takes."""
    checked = [_check(model, message) for message in messages]
    good = [values for values in checked if isinstance(values, np.ndarray)]
    started = clock()
    predictions = iter(Classifier(model).classify(np.stack(good)) if good else ())
    latency_ms = (clock() - started) * 1000 / max(1, len(good))
    return [
        values
        if isinstance(values, Rejected)
        else _row(kind, name, model, message.image_id, next(predictions), latency_ms)
        for message, values in zip(messages, checked, strict=True)
    ]


def _check(model: Model, message: ImageFeatures) -> NDArray[np.float32] | Rejected:
    try:
        return validate(model, message.descriptors, count=message.descriptor_count, space=message.model)
    except Rejected as error:
        return error


def _row(
    kind: type[R], name: str, model: Model, image_id: str, prediction: Prediction, latency_ms: float
) -> R:
    return kind(
        image_id=image_id,
        classifier=name,
        label=prediction.label,
        confidence=prediction.confidence,
        labels=model.labels,
        probabilities=prediction.probabilities,
        model=model.name,
        model_version=model.version,
        latency_ms=latency_ms,
    )
