"""The candidates for the three classifiers: what they learn, their ONNX graphs, and how three are chosen.

Every graph takes `descriptors` float32 [N,K] and gives `label` int64 [N] and `probabilities` float32
[N,10]. Each family gives ten scores; `probabilities` is their softmax after a calibration, because the
scores say too much or too little.

A net knows the pictures it was trained on too well, and so their descriptors lie further apart than those
of any other picture. What a classifier should be fitted to is therefore tried out: on the training
pictures as they are, on those shifted, or on a part of the held-out ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC

from training import measure
from training.export import Graph, run

# Descriptors have about unit variance. What lies far beyond comes from no picture, and bounding it keeps
# every finite input from overflowing into probabilities that are no numbers.
BOUND = 100.0
TINY = 1e-9
SVM_EXAMPLES = 10_000
FOLDS = 5

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """What a family learned.

    add: adds the nodes that turn descriptors into ten scores to a graph; takes and gives a node's name.
    operations: multiplications, comparisons and exponentials for one row; what a row costs, whatever
    machine it is measured on.
    width: how many descriptors it takes.
    """

    add: Callable[[Graph, str], str]
    operations: int
    width: int


Fit = Callable[[Floats, Labels, int], Scores]


def logistic_regression(x: Floats, y: Labels, seed: int) -> Scores:
    """One matrix."""
    model = LogisticRegression(C=0.1, max_iter=2_000, random_state=seed).fit(x, y)
    return _layers([(model.coef_.T, model.intercept_)])


def perceptron(x: Floats, y: Labels, seed: int, hidden: tuple[int, ...] = (64,)) -> Scores:
    """A net with hidden layers of rectified units."""
    epochs = 15 if len(x) > 10_000 else 60
    net = MLPClassifier(
        hidden,
        alpha=0.1,
        batch_size=min(256, len(x)),
        max_iter=epochs,
        n_iter_no_change=epochs,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # That it could go on learning is intended: stopping early is what keeps it from learning by heart.
        warnings.simplefilter("ignore", ConvergenceWarning)
        net.fit(x, y)
    return _layers(list(zip(net.coefs_, net.intercepts_, strict=True)))


def large_perceptron(x: Floats, y: Labels, seed: int) -> Scores:
    return perceptron(x, y, seed, hidden=(128, 128))


def committee(x: Floats, y: Labels, seed: int) -> Scores:
    """The mean of what a logistic regression and the large net say."""
    members = [fit(x, y, seed) for fit in (logistic_regression, large_perceptron)]

    def add(graph: Graph, descriptors: str) -> str:
        return graph.add("Mean", *(member.add(graph, descriptors) for member in members))

    return Scores(add, sum(member.operations for member in members), x.shape[1])


def _layers(weights: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Scores:
    # What regularisation shrank to next to nothing would be denormal numbers, which take processors ten
    # times as long.
    parts = [
        (np.where(np.abs(kernel) < TINY, 0, kernel).astype(np.float32), bias.astype(np.float32))
        for kernel, bias in weights
    ]

    def add(graph: Graph, x: str) -> str:
        for number, (kernel, bias) in enumerate(parts):
            x = graph.add("Gemm", x, graph.weight(kernel), graph.weight(bias))
            x = graph.add("Relu", x) if number + 1 < len(parts) else x
        return x

    return Scores(add, sum(kernel.size for kernel, _ in parts), len(parts[0][0]))


def random_forest(x: Floats, y: Labels, seed: int) -> Scores:
    """The logarithm of the mean class frequencies in the leaves of 60 small trees."""
    depth, least = 9, max(3, len(x) // 5_000)
    forest = RandomForestClassifier(60, max_depth=depth, min_samples_leaf=least, random_state=seed).fit(x, y)
    trees = []
    for estimator in forest.estimators_:
        tree = estimator.tree_
        frequencies = tree.value[:, 0] / tree.value[:, 0].sum(axis=1, keepdims=True) / len(forest.estimators_)
        trees.append(Tree(tree.feature, tree.threshold, tree.children_left, tree.children_right, frequencies))

    def add(graph: Graph, descriptors: str) -> str:
        frequencies = graph.add("TreeEnsembleRegressor", descriptors, **_tree_attributes(trees))
        # No leaf having seen a class is no proof that the class is impossible.
        return graph.add("Log", graph.add("Add", frequencies, graph.weight(np.float32([1e-3]))))

    return Scores(add, sum(tree.depth for tree in trees), x.shape[1])


def boosting(x: Floats, y: Labels, seed: int) -> Scores:
    """Small trees, one for each class in each of 40 rounds, that correct what those before got wrong."""
    model = HistGradientBoostingClassifier(
        max_iter=40,
        learning_rate=0.1,
        max_leaf_nodes=15 if len(x) > 10_000 else 8,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    ).fit(x, y)
    trees = []
    # scikit-learn gives the trees of this model by no public name.
    for predictors in model._predictors:
        for target, predictor in enumerate(predictors):
            nodes = predictor.nodes
            values = np.zeros((len(nodes), len(predictors)))
            values[:, target] = nodes["value"]
            left, right = (
                np.where(nodes["is_leaf"], -1, nodes[side].astype(np.int64)) for side in ("left", "right")
            )
            trees.append(Tree(nodes["feature_idx"], nodes["num_threshold"], left, right, values))
    base = model._baseline_prediction.reshape(-1).astype(np.float32)

    def add(graph: Graph, descriptors: str) -> str:
        sums = graph.add("TreeEnsembleRegressor", descriptors, **_tree_attributes(trees))
        return graph.add("Add", sums, graph.weight(base))

    return Scores(add, sum(tree.depth for tree in trees), x.shape[1])


@dataclass(frozen=True)
class Tree:
    """A tree by its nodes: go left where the feature is at most the threshold; left is -1 at a leaf, and
    values [nodes, classes] is what a leaf adds to the sum.
    """

    feature: NDArray[Any]
    threshold: NDArray[Any]
    left: NDArray[Any]
    right: NDArray[Any]
    values: NDArray[Any]

    @property
    def depth(self) -> int:
        levels, nodes = 0, np.flatnonzero(self.left[:1] >= 0)
        while len(nodes):
            levels += 1
            below = np.concatenate([self.left[nodes], self.right[nodes]])
            nodes = below[self.left[below] >= 0]
        return levels


def _tree_attributes(trees: Sequence[Tree]) -> dict[str, Any]:
    """The trees as the attributes of ONNX's TreeEnsembleRegressor, one target per class."""
    nodes: dict[str, list[Any]] = {
        key: []
        for key in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    leaves: dict[str, list[Any]] = {key: [] for key in ("treeids", "nodeids", "ids", "weights")}
    for tree_id, tree in enumerate(trees):
        is_leaf = tree.left < 0
        nodes["treeids"] += [tree_id] * len(is_leaf)
        nodes["nodeids"] += range(len(is_leaf))
        nodes["featureids"] += np.where(is_leaf, 0, tree.feature).tolist()
        nodes["values"] += np.where(is_leaf, 0, between_digits(tree.threshold)).tolist()
        nodes["modes"] += np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist()
        nodes["truenodeids"] += np.where(is_leaf, 0, tree.left).tolist()
        nodes["falsenodeids"] += np.where(is_leaf, 0, tree.right).tolist()
        for node in np.flatnonzero(is_leaf):
            for target in np.flatnonzero(tree.values[node]):
                leaves["treeids"].append(tree_id)
                leaves["nodeids"].append(int(node))
                leaves["ids"].append(int(target))
                leaves["weights"].append(float(tree.values[node, target]))
    return {
        "n_targets": trees[0].values.shape[1],
        **{f"nodes_{key}": values for key, values in nodes.items()},
        **{f"target_{key}": values for key, values in leaves.items()},
    }


def between_digits(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Thresholds moved up to the middle between two numbers of 4 significant digits.

    Every number then falls on the same side as what is left of it on the wire, so that sending 4 digits
    changes no label; and numbers of 4 digits fall on the side where they fell before.
    """
    unit = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(thresholds), 1e-30))) - 3)
    # A float32 may be a little less than the number of 4 digits that it stands for.
    return ((np.floor(thresholds / unit + 1e-3) + 0.5) * unit).astype(np.float32)


def support_vectors(x: Floats, y: Labels, seed: int) -> Scores:
    """An RBF support vector machine for each pair of classes; a class scores the sum of its margins.

    That sum is linear in the kernel, so the 45 machines fold into one matrix of ten columns.
    """
    chosen = np.random.default_rng(seed).permutation(len(x))[:SVM_EXAMPLES]
    machine = SVC(C=0.3, gamma=1 / x.shape[1])
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

    def add(graph: Graph, descriptors: str) -> str:
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

    return Scores(add, len(vectors) * (x.shape[1] + 1 + classes), x.shape[1])


@dataclass(frozen=True)
class Candidate:
    name: str
    family: str
    fit: Fit


CANDIDATES = (
    Candidate("logistic-regression", "logistic regression", logistic_regression),
    Candidate("random-forest", "random forest", random_forest),
    Candidate("svm", "support vector machine", support_vectors),
    Candidate("perceptron-small", "multilayer perceptron", perceptron),
    Candidate("perceptron-large", "multilayer perceptron", large_perceptron),
    Candidate("committee", "logistic regression and multilayer perceptron", committee),
    Candidate("boosting", "histogram gradient boosting", boosting),
)


@dataclass(frozen=True)
class Calibration:
    """Scores [N,10] -> probabilities: the softmax of scale * score + bias, each [10] or a number."""

    scale: NDArray[Any]
    bias: NDArray[Any]

    def __call__(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.exp(log_softmax(self.scale * scores + self.bias, axis=1))
        return found


def temperature(scores: NDArray[Any], y: Labels) -> Calibration:
    """One sharpness for all classes, the one that makes the labels most likely."""

    def loss(sharpness: float) -> float:
        return float(-log_softmax(sharpness * scores, axis=1)[np.arange(len(y)), y].mean())

    found = minimize_scalar(loss, bounds=(0.01, 20), method="bounded")
    return Calibration(np.array([found.x]), np.zeros(1))


def vector_scaling(scores: NDArray[Any], y: Labels) -> Calibration:
    """A sharpness and an offset for each class (Guo and others, arXiv:1706.04599, section 4.2)."""
    count, classes = scores.shape
    certain = np.eye(classes)[y]

    def loss(parameters: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        scale, bias = np.exp(parameters[:classes]), parameters[classes:]
        logarithms = log_softmax(scale * scores + bias, axis=1)
        wrong = (np.exp(logarithms) - certain) / count
        # The small penalty settles the one direction in which offsets change nothing.
        return (
            float(-(logarithms * certain).sum() / count + 1e-3 * bias @ bias),
            np.concatenate([(wrong * scores).sum(axis=0) * scale, wrong.sum(axis=0) + 2e-3 * bias]),
        )

    found = minimize(loss, np.zeros(2 * classes), jac=True, method="L-BFGS-B")
    return Calibration(np.exp(found.x[:classes]), found.x[classes:])


CALIBRATIONS: Mapping[str, Callable[[NDArray[Any], Labels], Calibration]] = {
    "temperature": temperature,
    "vector scaling": vector_scaling,
}


@dataclass(frozen=True)
class Examples:
    """descriptors float32 [N,K] as they arrive, and labels int64 [N]."""

    descriptors: Floats
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: NDArray[Any] | slice) -> Examples:
        return Examples(self.descriptors[chosen], self.labels[chosen])


HELD_OUT = "held-out pictures"


@dataclass(frozen=True)
class Trial:
    """A candidate fitted in one way.

    source: what it was fitted to. probabilities: of the held-out pictures, each by a classifier and a
    calibration that were fitted without it.
    """

    candidate: Candidate
    source: str
    calibration: str
    operations: int
    graph: onnx.ModelProto
    probabilities: NDArray[np.float64]
    quality: Mapping[str, float]


def trials(
    candidate: Candidate, sources: Mapping[str, Examples], held_out: Examples, seed: int
) -> list[Trial]:
    """The candidate fitted to each of the sources and to the held-out pictures, calibrated in each way."""
    found = []
    for source, examples in sources.items():
        fitted = candidate.fit(examples.descriptors, examples.labels, seed)
        found += _calibrated(candidate, source, fitted, scores_of(fitted, held_out.descriptors), held_out)
    fitted = candidate.fit(held_out.descriptors, held_out.labels, seed)
    found += _calibrated(candidate, HELD_OUT, fitted, _by_others(candidate, held_out, seed), held_out)
    return found


def _by_others(candidate: Candidate, held_out: Examples, seed: int) -> NDArray[np.float32]:
    """The scores of each fold by the candidate fitted to the other folds."""
    folds = _folds(len(held_out))
    scores = np.empty((len(held_out), 10), np.float32)
    for fold in range(FOLDS):
        others = held_out.take(folds != fold)
        fitted = candidate.fit(others.descriptors, others.labels, seed)
        scores[folds == fold] = scores_of(fitted, held_out.descriptors[folds == fold])
    return scores


def _calibrated(
    candidate: Candidate, source: str, fitted: Scores, scores: NDArray[Any], held_out: Examples
) -> list[Trial]:
    folds, found = _folds(len(held_out)), []
    for name, calibrate in CALIBRATIONS.items():
        probabilities = np.empty(scores.shape)
        for fold in range(FOLDS):
            others = folds != fold
            calibration = calibrate(scores[others], held_out.labels[others])
            probabilities[folds == fold] = calibration(scores[folds == fold])
        graph = _graph(fitted, calibrate(scores, held_out.labels))
        quality = measure.quality(probabilities, held_out.labels)
        found.append(Trial(candidate, source, name, fitted.operations, graph, probabilities, quality))
    return found


def _folds(count: int) -> NDArray[np.int64]:
    """A fold for each picture; drawn, because pictures may come class by class or in turns."""
    return np.random.default_rng(count).permutation(count) % FOLDS


def best(found: Sequence[Trial]) -> Trial:
    """The trial that is surprised least by the held-out pictures."""
    return min(found, key=lambda trial: trial.quality["nll"])


# What the cheapest classifier may lose against the best one; and what counts as equal: the standard error
# of the difference of two classifiers that disagree about 2 % of 5,000 pictures.
TOLERATED = 0.005
EQUAL = 0.002
ECE_LIMIT = 0.02

RULE = f"""\
By the figures on the validation pictures alone, each answered by a classifier and a calibration that were
fitted without it. Candidates whose calibration error is above {ECE_LIMIT:.0%} are left out where three
others remain. *Fast* is the candidate with the fewest operations for a row among those whose top-1 is at
most {100 * TOLERATED:.1f} points below the best. *Accurate* is, of the others, the one with the highest
top-1; those within {100 * EQUAL:.1f} points of it count as equal, and the least NLL decides among them.
*Balanced* is the one with the least NLL of those that cost more than fast and at most a tenth of accurate,
or of all that are left where there is none.
"""


def choose(found: Sequence[Trial]) -> dict[str, Trial]:
    """Which of the candidates, one trial of each, are fast, balanced and accurate: see RULE."""
    calibrated = [trial for trial in found if trial.quality["ece"] <= ECE_LIMIT]
    left = calibrated if len(calibrated) >= 3 else list(found)
    highest = max(trial.quality["top1"] for trial in left)
    able = [trial for trial in left if trial.quality["top1"] >= highest - TOLERATED]
    fast = min(able, key=lambda trial: trial.operations)
    left.remove(fast)
    highest = max(trial.quality["top1"] for trial in left)
    accurate = best([trial for trial in left if trial.quality["top1"] >= highest - EQUAL])
    left.remove(accurate)
    between = [trial for trial in left if fast.operations < trial.operations <= accurate.operations / 10]
    return {"fast": fast, "balanced": best(between or left), "accurate": accurate}


def scores_of(scores: Scores, x: Floats) -> NDArray[np.float32]:
    (found,) = run(_graph(scores, None), x)
    return found


def calibrated(scores: Scores, x: Floats, y: Labels) -> onnx.ModelProto:
    """The finished graph, its sharpness the one that makes the held-out labels `y` of `x` most likely."""
    return _graph(scores, temperature(scores_of(scores, x), y))


def _graph(scores: Scores, calibration: Calibration | None) -> onnx.ModelProto:
    """Scores alone without `calibration`, else label and probabilities."""
    graph = Graph()
    bounds = [graph.weight(np.float32(bound)) for bound in (-BOUND, BOUND)]
    found = scores.add(graph, graph.add("Clip", "descriptors", *bounds))
    given = helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["N", scores.width])
    if calibration is None:
        wanted = helper.make_tensor_value_info(found, TensorProto.FLOAT, ["N", 10])
        return graph.finish("scores", [given], [wanted])
    found = graph.add("Mul", found, graph.weight(calibration.scale.astype(np.float32)))
    found = graph.add("Add", found, graph.weight(calibration.bias.astype(np.float32)))
    graph.add("Softmax", found, axis=1, output="probabilities")
    graph.add("ArgMax", "probabilities", axis=1, keepdims=0, output="label")
    return graph.finish(
        "classifier",
        [given],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10]),
        ],
    )
