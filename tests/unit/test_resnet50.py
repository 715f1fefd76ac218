"""`mesh models build resnet50-pca`: the graph against a small double of Keras, and the command itself.

The build proper needs the environment of requirements/train.txt.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from training import resnet50_graph as graph
from training_runs import needs_training, npz, trained
from visionmesh.model_store import ModelStore
from visionmesh.settings import ROOT

SIDE = 32
EPSILON = 1.001e-5

ANOTHER = """
[another]
kind = "extractor"
metrics = {top1 = 0.5}
"""


@dataclasses.dataclass
class Layer:
    name: str
    weights: list[NDArray[np.float32]]
    strides: tuple[int, int] = (1, 1)
    epsilon: float = EPSILON

    def get_weights(self) -> list[NDArray[np.float32]]:
        return self.weights


class Net:
    """Three blocks of a ResNet with few channels: what Keras shows of a net, and what it computes."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.layers: list[Layer] = []
        self._convolution("conv1", 7, 3, 4, stride=2)
        self._block("conv2_block1", 4, 2, stride=1, projects=True)
        self._block("conv2_block2", 8, 2, stride=1, projects=False)
        self._block("conv3_block1", 8, 3, stride=2, projects=True)
        self.output_shape = (None, 12)

    def get_layer(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    def _convolution(self, name: str, size: int, given: int, wanted: int, stride: int = 1) -> None:
        normal = self._random.normal
        kernel = normal(size=(size, size, given, wanted)) / np.sqrt(size * size * given)
        statistics = [normal(1, 0.2, wanted), normal(size=wanted), normal(size=wanted)]
        variance = self._random.uniform(0.5, 2, wanted)
        self.layers += [
            Layer(f"{name}_conv", _floats(kernel, normal(size=wanted)), (stride, stride)),
            Layer(f"{name}_bn", _floats(*statistics, variance)),
        ]

    def _block(self, name: str, given: int, width: int, *, stride: int, projects: bool) -> None:
        if projects:
            self._convolution(f"{name}_0", 1, given, 4 * width, stride)
        self._convolution(f"{name}_1", 1, given, width, stride)
        self._convolution(f"{name}_2", 3, width, width)
        self._convolution(f"{name}_3", 1, width, 4 * width)
        self.layers.append(Layer(f"{name}_out", []))

    def features(self, rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
        x = rgb[..., ::-1].astype(float) - [103.939, 116.779, 123.68]
        x = np.maximum(self._normalised("conv1", _zero_padded(x, 3)), 0)
        windows = np.lib.stride_tricks.sliding_window_view(_zero_padded(x, 1), (3, 3), axis=(1, 2))
        x = windows[:, ::2, ::2].max(axis=(-2, -1))
        for name in ("conv2_block1", "conv2_block2", "conv3_block1"):
            shortcut = x if name == "conv2_block2" else self._normalised(f"{name}_0", x)
            y = np.maximum(self._normalised(f"{name}_1", x), 0)
            y = np.maximum(self._normalised(f"{name}_2", _zero_padded(y, 1)), 0)
            x = np.maximum(shortcut + self._normalised(f"{name}_3", y), 0)
        return x.mean(axis=(1, 2))

    def _normalised(self, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        convolution = self.get_layer(f"{name}_conv")
        kernel, bias = convolution.weights
        windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))
        step = convolution.strides[0]
        x = np.einsum("nyxcij,ijco->nyxo", windows[:, ::step, ::step], kernel) + bias
        scale, offset, mean, variance = self.get_layer(f"{name}_bn").weights
        return (x - mean) / np.sqrt(variance + EPSILON) * scale + offset


def _floats(*arrays: Any) -> list[NDArray[np.float32]]:
    return [np.asarray(array, np.float32) for array in arrays]


def _zero_padded(x: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    return np.pad(x, ((0, 0), (width, width), (width, width), (0, 0)))


def run(model: Any, rgb: NDArray[np.uint8]) -> tuple[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,), (wanted,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("pictures", "tensor(uint8)", ["N", SIDE, SIDE, 3])
    return wanted.name, session.run(None, {"pictures": rgb})[0]


def test_the_graph_computes_what_the_net_computes_from_plain_rgb() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    net = Net(seed=2)
    expected = net.features(rgb)
    name, found = run(graph.graph_of(net, SIDE), rgb)
    assert name == "features"
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_the_reduction_is_the_last_node_of_the_same_graph() -> None:
    random = np.random.default_rng(3)
    rgb = random.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    net = Net(seed=4)
    reduction = graph.Reduction(*_floats(random.normal(size=(12, 5)), random.normal(size=5)), explained=0.9)
    name, found = run(graph.graph_of(net, SIDE, reduction), rgb)
    assert (name, found.shape) == ("descriptors", (4, 5))
    expected = net.features(rgb) @ reduction.weights + reduction.bias
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.timeout(900)
@needs_training
def test_a_small_build_gives_models_that_load_and_fit_together(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(ANOTHER)
    options = ["--weights", "none", "--fine-tune", "1", "--side", str(SIDE), "--descriptors", "6"]
    files = ["--data", str(npz(tmp_path, train=100, test=20)), "--into", str(tmp_path)]
    trained("-m", "training.resnet50", *options, *files)
    store = ModelStore(ROOT / "models", tmp_path)
    extractor = store.load("resnet50-pca")
    assert extractor.input_shape == (None, SIDE, SIDE, 3)
    assert store.describe("resnet50-pca")["sha256"].startswith(extractor.version.partition("+")[2])
    (descriptors,) = extractor.run(np.zeros((3, SIDE, SIDE, 3), np.uint8))
    assert descriptors.shape == (3, 6)
    for name in ("fast", "balanced", "accurate"):
        classifier = store.load(f"classifier-{name}-resnet50-pca")
        assert classifier.extractor == extractor.space
        assert classifier.run(descriptors)[1].shape == (3, 10)
    assert store.describe("another")["metrics"] == {"top1": 0.5}
    comparison = json.loads((tmp_path / "resnet50-pca.json").read_text())
    ways = {"pca", "highest_variance", "highest_f_score", "largest_per_picture", "all"}
    assert {name: set(found) for name, found in comparison["top1"].items()} == {
        "logistic_regression": ways,
        "perceptron": ways,
    }
    assert (comparison["features"], comparison["descriptors"]) == (2048, 6)
