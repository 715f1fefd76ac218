"""20 descriptors -> label: the pure work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from visionmesh.errors import Rejected
from visionmesh.model_store import Model

# Bounds the memory of one run: the SVM compares every row of a batch with all its support vectors.
_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a classifier thinks of a picture.

    confidence: the probability of `label`, 0 to 1, calibrated on pictures no model was fitted to.
    probabilities: one per label of the model, in its order; they add up to 1.
    """

    label: str
    confidence: float
    probabilities: tuple[float, ...]


def validate(descriptors: Sequence[float], count: int) -> NDArray[np.float32]:
    """The descriptors of one picture as float32 [count].

    Raises `Rejected`: `wrong_descriptor_count`, or `not_finite` for NaN, infinity and what float32 can't
    hold.
    """
    if len(descriptors) != count:
        raise Rejected("wrong_descriptor_count", f"Got {len(descriptors)} descriptors, expected {count}.")
    try:
        values = np.asarray(descriptors, np.float64)
    except OverflowError:
        # JSON has whole numbers of any length.
        values = np.full(count, np.inf)
    if not (np.abs(values) <= np.finfo(np.float32).max).all():
        raise Rejected("not_finite", "Every descriptor must be a finite 32-bit number.")
    return values.astype(np.float32)


class Classifier:
    """Labels descriptors with one model.

    Raises ValueError when the model is no classifier.
    """

    def __init__(self, model: Model) -> None:
        if model.kind != "classifier":
            raise ValueError(f"{model.address} is an {model.kind}, not a classifier")
        self.model = model

    def classify(self, descriptors: NDArray[np.float32]) -> list[Prediction]:
        """One prediction for each row of float32 [N, 20]; rows come from `validate`."""
        found: list[Prediction] = []
        for start in range(0, len(descriptors), _BATCH):
            labels, probabilities = self.model.run(descriptors[start : start + _BATCH])
            found += [
                Prediction(self.model.labels[label], row[label], tuple(row))
                for label, row in zip(labels.tolist(), probabilities.tolist(), strict=True)
            ]
        return found
