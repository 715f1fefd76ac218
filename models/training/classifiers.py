"""Three classifiers over the 20 descriptors, of three families, and their ONNX graphs.

Every graph takes `descriptors` float32 [N,20] and gives `label` int64 [N] and `probabilities` float32
[N,10]. Each family gives ten scores; `probabilities` is their softmax, sharpened by one factor that is
fitted on held-out pictures, because the nets know the pictures they were fitted on too well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from training.export import Graph, run

Scores = Callable[[Graph, str], str]

# Descriptors have about unit variance. What lies far beyond comes from no picture, and bounding it keeps
# every finite input from overflowing into probabilities that are no numbers.
BOUND = 100.0
SVM_EXAMPLES = 15_000


def random_forest(x: NDArray[np.float32], y: NDArray[np.int64], seed: int) -> Scores:
    """The logarithm of the mean class frequencies in the leaves of 60 small trees."""
    forest = RandomForestClassifier(60, max_depth=9, min_samples_leaf=8, random_state=seed, n_jobs=2)
    forest.fit(x, y)

    def scores(graph: Graph, descriptors: str) -> str:
        frequencies = graph.add("TreeEnsembleRegressor", descriptors, **_tree_attributes(forest))
        # No leaf having seen a class is no proof that the class is impossible.
        return graph.add("Log", graph.add("Add", frequencies, graph.weight(np.float32([1e-3]))))

    return scores


def _tree_attributes(forest: Any) -> dict[str, Any]:
    """The forest as the attributes of ONNX's TreeEnsembleRegressor, one target per class."""
    nodes: dict[str, list[Any]] = {
        key: []
        for key in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    leaves: dict[str, list[Any]] = {key: [] for key in ("treeids", "nodeids", "ids", "weights")}
    for tree_id, estimator in enumerate(forest.estimators_):
        tree = estimator.tree_
        is_leaf = tree.children_left < 0
        nodes["treeids"] += [tree_id] * tree.node_count
        nodes["nodeids"] += range(tree.node_count)
        nodes["featureids"] += np.where(is_leaf, 0, tree.feature).tolist()
        nodes["values"] += np.where(is_leaf, 0, between_digits(tree.threshold)).tolist()
        nodes["modes"] += np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist()
        nodes["truenodeids"] += np.where(is_leaf, 0, tree.children_left).tolist()
        nodes["falsenodeids"] += np.where(is_leaf, 0, tree.children_right).tolist()
        for node in np.flatnonzero(is_leaf):
            frequencies = tree.value[node, 0] / tree.value[node, 0].sum()
            for target in np.flatnonzero(frequencies):
                leaves["treeids"].append(tree_id)
                leaves["nodeids"].append(int(node))
                leaves["ids"].append(int(target))
                leaves["weights"].append(float(frequencies[target]) / len(forest.estimators_))
    return {
        "n_targets": forest.n_classes_,
        **{f"nodes_{key}": values for key, values in nodes.items()},
        **{f"target_{key}": values for key, values in leaves.items()},
    }


def between_digits(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Thresholds moved up to the middle between two numbers of 4 significant digits.

    Every number then falls on the same side as what is left of it on the wire, so that sending 4 digits
    changes no label; and numbers of 4 digits fall on the side where they fell before.
    """
    unit = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(thresholds), 1e-30))) - 3)
    return ((np.floor(thresholds / unit + 1e-6) + 0.5) * unit).astype(np.float32)


def support_vectors(x: NDArray[np.float32], y: NDArray[np.int64], seed: int) -> Scores:
    """An RBF support vector machine for each pair of classes; a class scores the sum of its margins.

    That sum is linear in the kernel, so the 45 machines fold into one matrix of ten columns.
    """
    chosen = np.random.default_rng(seed).permutation(len(x))[:SVM_EXAMPLES]
    machine = SVC(C=1.0, gamma=1 / x.shape[1])
    machine.fit(x[chosen], y[chosen])
    classes = len(machine.classes_)
    columns = np.zeros((len(machine.support_), classes), np.float32)
    offsets = np.zeros(classes, np.float32)
    starts = np.concatenate([[0], np.cumsum(machine.n_support_)])
    pairs = [(first, second) for first in range(classes) for second in range(first + 1, classes)]
    for (first, second), offset in zip(pairs, machine.intercept_, strict=True):
        # Row k of dual_coef_ holds a vector's weight against the k-th of the other classes.
        for owner, row in ((first, second - 1), (second, first)):
            vectors = slice(starts[owner], starts[owner + 1])
            columns[vectors, first] += machine.dual_coef_[row, vectors]
            columns[vectors, second] -= machine.dual_coef_[row, vectors]
        offsets[first] += offset
        offsets[second] -= offset
    gamma, vectors = machine.gamma, machine.support_vectors_.astype(np.float32)

    def scores(graph: Graph, descriptors: str) -> str:
        """exp(-gamma |x - s|²), with the square multiplied out so that one Gemm does the work."""
        own = graph.add("ReduceSumSquare", descriptors, axes=[1])
        cross = graph.add(
            "Gemm",
            descriptors,
            graph.weight((2 * gamma * vectors.T).astype(np.float32)),
            graph.weight((-gamma * (vectors**2).sum(axis=1)).astype(np.float32)),
        )
        distance = graph.add("Sub", cross, graph.add("Mul", own, graph.weight(np.float32([gamma]))))
        kernel = graph.add("Exp", distance)
        return graph.add("Gemm", kernel, graph.weight(columns), graph.weight(offsets))

    return scores


def perceptron(x: NDArray[np.float32], y: NDArray[np.int64], seed: int) -> Scores:
    """A net with one hidden layer of 64 units."""
    net = MLPClassifier(
        (64,), alpha=1e-2, batch_size=256, early_stopping=True, max_iter=40, random_state=seed
    )
    net.fit(x, y)
    first, second = (
        (weights.astype(np.float32), bias.astype(np.float32))
        for weights, bias in zip(net.coefs_, net.intercepts_, strict=True)
    )

    def scores(graph: Graph, descriptors: str) -> str:
        hidden = graph.add("Relu", graph.add("Gemm", descriptors, *map(graph.weight, first)))
        return graph.add("Gemm", hidden, *map(graph.weight, second))

    return scores


def calibrated(scores: Scores, x: NDArray[np.float32], y: NDArray[np.int64]) -> onnx.ModelProto:
    """The finished graph, its sharpness the one that makes the held-out labels `y` of `x` most likely."""
    (found,) = run(_graph(scores, None), x)

    def surprise(sharpness: float) -> float:
        return float(-log_softmax(sharpness * found, axis=1)[np.arange(len(y)), y].mean())

    return _graph(scores, minimize_scalar(surprise, bounds=(0.01, 20), method="bounded").x)


def _graph(scores: Scores, sharpness: float | None) -> onnx.ModelProto:
    """Scores alone without `sharpness`, else label and probabilities."""
    graph = Graph()
    bounds = [graph.weight(np.float32(bound)) for bound in (-BOUND, BOUND)]
    found = scores(graph, graph.add("Clip", "descriptors", *bounds))
    given = helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["N", 20])
    if sharpness is None:
        wanted = helper.make_tensor_value_info(found, TensorProto.FLOAT, ["N", 10])
        return graph.finish("scores", [given], [wanted])
    sharpened = graph.add("Mul", found, graph.weight(np.float32([sharpness])))
    graph.add("Softmax", sharpened, axis=1, output="probabilities")
    graph.add("ArgMax", "probabilities", axis=1, keepdims=0, output="label")
    return graph.finish(
        "classifier",
        [given],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10]),
        ],
    )
