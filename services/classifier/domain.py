"""20 descriptors -> label: the pure work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from visionmesh.errors import Rejected
from visionmesh.model_store import Model

# The most rows of one run. It bounds its memory: the SVM compares every row with all its support vectors.
MICRO_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a classifier thinks of a picture.

    confidence: the probability of `label`, 0 to 1, calibrated on pictures no model was fitted to.
    probabilities: one per label of the model, in its order; they add up to 1.
    """

    label: str
    confidence: float
    probabilities: tuple[float, ...]


def validate(
    model: Model, descriptors: Sequence[float], *, count: int | None = None, space: str | None = None
) -> NDArray[np.float32]:
    """The descriptors of one picture as float32 [model.descriptor_count].

    count, space: how many they are and which extractor gave them, where their sender says so.

    Raises `Rejected`: `wrong_descriptor_count`, `wrong_extractor` for those of an extractor that the model
    was not trained on, or `not_finite` for NaN, infinity and what float32 can't hold.
    """
    found = len(descriptors)
    if count is not None and count != found:
        raise Rejected(
            "wrong_descriptor_count", f"descriptor_count is {count}, but there are {found} descriptors."
        )
    if found != model.descriptor_count:
        raise Rejected(
            "wrong_descriptor_count",
            f"Got {found} descriptors, and {model.address} takes {model.descriptor_count}.",
        )
    # The numbers would fit, and the answer would be as good as a guess.
    if space is not None and model.extractor is not None and space != model.extractor:
        raise Rejected(
            "wrong_extractor",
            f"The descriptors are of {space}, and {model.address} was trained on those of {model.extractor}.",
        )
    try:
        values = np.asarray(descriptors, np.float64)
    except OverflowError:
        # JSON has whole numbers of any length.
        values = np.full(found, np.inf)
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
        """One prediction for each row of float32 [N, descriptor_count]; rows come from `validate`.

        Raises ValueError when the model does not answer every row.
        """
        found: list[Prediction] = []
        for start in range(0, len(descriptors), MICRO_BATCH):
            labels, probabilities = self.model.run(descriptors[start : start + MICRO_BATCH])
            found += [
                Prediction(self.model.labels[label], row[label], tuple(row))
                for label, row in zip(labels.tolist(), probabilities.tolist(), strict=True)
            ]
        if len(found) != len(descriptors):
            raise ValueError(f"{self.model.address} answered {len(found)} of {len(descriptors)} pictures")
        return found
