"""A wider locator that begins as a narrower one: it says the same, and what is new of it can learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from training.export import Graph
from training.qr_export import OnnxLayers
from training.qr_grow import grow
from training.qr_net import FIELDS, Width, build

NARROW = Width(3, (4, 5, 6), (2, 3, 3), (1, 1, 2), (1, 1))
WIDE = Width(4, (6, 8, 7), (3, 3, 5), (2, 1, 3), (2, 3))


class Layer:
    """As much of a Keras layer as is read and written."""

    epsilon = 1e-3

    def __init__(self, *weights: NDArray[np.float32]) -> None:
        self._weights = list(weights)

    def get_weights(self) -> list[NDArray[np.float32]]:
        return [each.copy() for each in self._weights]

    def set_weights(self, weights: list[NDArray[np.float32]]) -> None:
        assert [each.shape for each in weights] == [each.shape for each in self._weights]
        self._weights = list(weights)


class Net:
    """The layers of a width, filled by `draw`; built as Keras' are, with numbers of channels for tensors."""

    def __init__(self, width: Width, draw: Callable[..., NDArray[np.float32]]) -> None:
        self._draw = draw
        self._count = 0
        self._layers: dict[str, Layer] = {}
        build(self, 1, width)

    def get_layer(self, name: str) -> Layer:
        return self._layers[name]

    def convolution(self, x: int, channels: int, kernel: int, stride: int = 1, *, relu: bool = True) -> int:
        self._layers[f"conv{self._count}"] = Layer(self._draw(kernel, kernel, x, channels))
        statistics = [1 + 0.3 * self._draw(channels), *(self._draw(channels) for _ in range(2))]
        self._layers[f"norm{self._count}"] = Layer(*statistics, np.abs(self._draw(channels)) + 0.5)
        self._count += 1
        return channels

    def add(self, x: int, y: int, *, relu: bool) -> int:
        assert x == y
        return x

    def doubled(self, x: int) -> int:
        return x

    def head(self, x: int, channels: int) -> int:
        self._layers["head"] = Layer(self._draw(1, 1, x, channels), self._draw(channels))
        return channels


def drawn(seed: int) -> Callable[..., NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return lambda *shape: (0.3 * random.standard_normal(shape)).astype(np.float32)


def said(net: Any, width: Width, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """The fields, float32 [1, F, rows, columns]."""
    graph = Graph()
    fields = build(OnnxLayers(graph, net), "picture", width)
    graph.add("Identity", fields, output="fields")
    model = graph.finish(
        "fields",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, list(picture.shape))],
        [helper.make_tensor_value_info("fields", TensorProto.FLOAT, [1, sum(FIELDS.values()), None, None])],
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: NDArray[np.float32] = session.run(["fields"], {"picture": picture})[0]
    return answer


PICTURE = np.random.default_rng(3).random((1, 1, 64, 96)).astype(np.float32)


def test_a_wider_net_says_what_the_narrower_one_said() -> None:
    narrow, wide = Net(NARROW, drawn(1)), Net(WIDE, drawn(2))
    before = said(narrow, NARROW, PICTURE)
    assert np.abs(said(wide, WIDE, PICTURE) - before).max() > 0.1
    grow(narrow, NARROW, wide, WIDE)
    assert before.std() > 0.1
    np.testing.assert_allclose(said(wide, WIDE, PICTURE), before, rtol=1e-4, atol=1e-4)


def test_what_is_new_is_drawn_so_that_it_can_learn() -> None:
    wide = Net(WIDE, drawn(2))
    grow(Net(NARROW, drawn(1)), NARROW, wide, WIDE)
    (kernel,) = wide.get_layer("conv1").get_weights()
    assert (kernel[:, :, NARROW.stem :, : NARROW.channels[0]] == 0).all()
    assert (kernel[..., NARROW.channels[0] :] != 0).all()


def test_a_narrower_net_cannot_begin_as_a_wider_one() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        grow(Net(WIDE, drawn(1)), WIDE, Net(NARROW, drawn(2)), NARROW)
