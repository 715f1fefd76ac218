"""One answer out of several: the log-linear pool of what the classifiers say of a picture.

A pool of log-probabilities (Genest and Zidek, "Combining probability distributions", Statistical Science
1(1), 1986, section 3) gives each label exp(sum_k w_k log p_k). Weights that were fitted on pictures no
classifier was trained on make it a calibrated one; they stand in `models.toml`, table `consensus`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

# A forest gives a label that no tree voted for the probability 0, which no number of pictures could show
# it to have, and which would forbid the label whatever the others say.
PROBABILITY_FLOOR: Final = 1e-6

METHOD: Final = "log-linear pool"

# Sums of logarithms that differ by less differ by the order of their terms.
_TIE: Final = 1e-9

Votes = Literal["unanimous", "majority", "split"]


class Answer(Protocol):
    """What one classifier says of a picture; `visionmesh.results.PredictionRow` is one.

    labels, probabilities: of equal length, in the same order.
    """

    @property
    def classifier(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def probabilities(self) -> tuple[float, ...]: ...
    @property
    def model(self) -> str: ...
    @property
    def model_version(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Fitted:
    """The weights of a pool, and what they were fitted to.

    classifiers: the model, `name@version`, that each classifier was. weights: of the same classifiers,
    0 or more; their sum is the sharpness of the pool.
    """

    classifiers: Mapping[str, str]
    weights: Mapping[str, float]

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Self:
        """From the table of `models.toml`. Raises ValueError with what is wrong with it."""
        classifiers, weights = table.get("classifiers"), table.get("weights")
        if not isinstance(classifiers, Mapping) or not isinstance(weights, Mapping) or not weights:
            raise ValueError("A consensus needs the tables `classifiers` and `weights`.")
        if classifiers.keys() != weights.keys():
            raise ValueError("`classifiers` and `weights` of a consensus must name the same classifiers.")
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise ValueError(f"The weight of {name} in the consensus must be a number from 0 on.")
        if not any(weights.values()):
            raise ValueError("At least one weight of a consensus must be above 0.")
        return cls(
            {name: str(model) for name, model in classifiers.items()},
            {name: float(weight) for name, weight in weights.items()},
        )


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreed answer about a picture, and how it came about.

    confidence: the pooled probability of `label`.
    probabilities: of every label; they add up to 1.
    agreement: `majority` when more than half of the classifiers say the same, whether or not it is `label`.
    votes: which classifiers say which label, the label with most of them first.
    weights: of each classifier whose answer was pooled.
    calibrated: whether the weights were fitted to exactly these models.
    left_out: the classifiers that know other labels than those that were pooled.
    """

    label: str
    confidence: float
    probabilities: Mapping[str, float]
    agreement: Votes
    votes: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, float]
    calibrated: bool
    left_out: tuple[str, ...]


def pool(probabilities: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """The log-linear pool: proportional to exp(sum_k w_k log p_k), float64 [N, L].

    probabilities: of K classifiers for N pictures and L labels, [K, N, L]; none counts as less than
    `PROBABILITY_FLOOR`, nor does what is no number. weights: [K], 0 or more.
    """
    bounded = np.fmin(np.fmax(np.asarray(probabilities, np.float64), PROBABILITY_FLOOR), 1.0)
    summed = np.tensordot(np.asarray(weights, np.float64), np.log(bounded), axes=1)
    # The largest becomes exp(0): however sharp the pool, one label keeps its probability.
    pooled = np.exp(summed - summed.max(axis=-1, keepdims=True))
    normalised: NDArray[np.float64] = pooled / pooled.sum(axis=-1, keepdims=True)
    return normalised


def agree(answers: Iterable[Answer], fitted: Fitted | None = None) -> Agreement | None:
    """The agreed answer of the classifiers that answered, None when none did; the order does not matter.

    Only answers over one and the same set of labels can be pooled: those over the set that most classifiers
    know are, and of two such sets the one that comes first by name. Where the pooled models are not exactly
    those of `fitted`, their logarithms are averaged and the outcome is not calibrated. Of labels that are
    equally probable the one with most votes is agreed on, then the first by name.
    """
    pooled, left_out = _poolable(sorted(answers, key=lambda answer: answer.classifier))
    if not pooled:
        return None
    weights, calibrated = _weights(pooled, fitted)
    labels = sorted(pooled[0].labels)
    table = [
        [[probability_of[label] for label in labels]]
        for probability_of in (dict(zip(each.labels, each.probabilities, strict=True)) for each in pooled)
    ]
    (row,) = pool(np.array(table), np.array(list(weights.values())))
    probabilities = dict(zip(labels, row.tolist(), strict=True))
    votes = _votes(pooled)
    label = _most_probable(probabilities, votes)
    return Agreement(
        label=label,
        confidence=probabilities[label],
        probabilities=probabilities,
        agreement=_agreement(votes),
        votes=votes,
        weights=weights,
        calibrated=calibrated,
        left_out=tuple(answer.classifier for answer in left_out),
    )


def _poolable(answers: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    """The answers over the set of labels that most of them know, and the others."""
    by_labels: dict[tuple[str, ...], list[Answer]] = {}
    for answer in answers:
        by_labels.setdefault(tuple(sorted(set(answer.labels))), []).append(answer)
    largest = min(by_labels, key=lambda labels: (-len(by_labels[labels]), labels), default=())
    pooled = by_labels.pop(largest, [])
    return pooled, [answer for answer in answers if answer not in pooled]


def _weights(answers: Sequence[Answer], fitted: Fitted | None) -> tuple[dict[str, float], bool]:
    """The weight of each classifier, and whether the weights are the fitted ones."""
    found = {answer.classifier: f"{answer.model}@{answer.model_version}" for answer in answers}
    if fitted is not None and found == dict(fitted.classifiers):
        return {classifier: fitted.weights[classifier] for classifier in found}, True
    return dict.fromkeys(found, 1 / len(found)), False


def _votes(answers: Sequence[Answer]) -> dict[str, tuple[str, ...]]:
    votes: dict[str, tuple[str, ...]] = {}
    for answer in answers:
        votes[answer.label] = (*votes.get(answer.label, ()), answer.classifier)
    return dict(sorted(votes.items(), key=lambda vote: (-len(vote[1]), vote[0])))


def _most_probable(probabilities: Mapping[str, float], votes: Mapping[str, tuple[str, ...]]) -> str:
    highest = max(probabilities.values())
    tied = [label for label, value in probabilities.items() if value >= highest * (1 - _TIE)]
    return min(tied, key=lambda label: (-len(votes.get(label, ())), label))


def _agreement(votes: Mapping[str, tuple[str, ...]]) -> Votes:
    if len(votes) == 1:
        return "unanimous"
    counts = [len(classifiers) for classifiers in votes.values()]
    return "majority" if 2 * max(counts) > sum(counts) else "split"
