"""The weights of the consensus: how much each classifier's answer counts in the pool of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from visionmesh.consensus import PROBABILITY_FLOOR, pool


def fit(probabilities: Sequence[NDArray[Any]], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights [K], 0 or more, under which the log-linear pool makes the labels [N] most likely.

    probabilities: of K classifiers, each [N,C], for pictures that none of them was fitted to. The loss is
    convex in the weights, so where the search starts does not matter.
    """
    stacked = np.stack([np.asarray(each, np.float64) for each in probabilities])
    logarithms = np.log(np.clip(stacked, PROBABILITY_FLOOR, 1))
    rows = np.arange(len(labels))

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        pooled = pool(stacked, weights)
        expected = (logarithms * pooled).sum(axis=2)
        gradient = (expected - logarithms[:, rows, labels]).mean(axis=1)
        return float(-np.log(pooled[rows, labels]).mean()), gradient

    start = np.full(len(stacked), 1 / len(stacked))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(stacked))
    weights: NDArray[np.float64] = np.round(found.x, 4)
    # Weights of nothing at all say that no classifier knows anything: then they count alike.
    return weights if weights.any() else start
