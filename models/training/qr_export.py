"""The locator as ONNX: from a grey picture to quadrilaterals and scores, all within the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from training.export import Graph, halved
from training.qr_net import FIELDS, STRIDE, Width, build

# The most codes of a picture; looked at before those that overlap are dropped.
MOST = 128
# Boxes that overlap more are one code.
OVERLAP = 0.45
# Below this nothing is given out; whoever asks has a threshold of their own above it.
LEAST_SCORE = 0.05
# Times that corners are moved to where the cells near them say that they are.
REFINED = 2

# Pixels of a code whose size is exp(0).
UNIT = 32.0


class OnnxLayers:
    """Layers of the graph, with the weights of a trained net in the order in which it was built."""

    def __init__(self, graph: Graph, net: Any) -> None:
        self._graph = graph
        self._net = net
        self._count = 0

    def convolution(self, x: str, channels: int, kernel: int, stride: int = 1, *, relu: bool = True) -> str:
        weights, bias = folded(self._net, self._count)
        self._count += 1
        assert weights.shape[3] == channels
        # As Keras pads: what is odd goes to the bottom and right.
        before, odd = divmod(kernel - stride, 2)
        x = self._graph.add(
            "Conv",
            x,
            self._graph.weight(weights.transpose(3, 2, 0, 1).astype(np.float32)),
            self._graph.weight(bias.astype(np.float32)),
            strides=[stride, stride],
            pads=[before, before, before + odd, before + odd],
        )
        return self._graph.add("Relu", x) if relu else x

    def add(self, x: str, y: str, *, relu: bool) -> str:
        x = self._graph.add("Add", x, y)
        return self._graph.add("Relu", x) if relu else x

    def doubled(self, x: str) -> str:
        scales = self._graph.weight(np.float32([1, 1, 2, 2]))
        attributes = {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        }
        return self._graph.add("Resize", x, "", scales, **attributes)

    def head(self, x: str, channels: int) -> str:
        kernel, bias = self._net.get_layer("head").get_weights()
        assert kernel.shape[3] == channels
        return self._graph.add(
            "Conv", x, self._graph.weight(kernel.transpose(3, 2, 0, 1)), self._graph.weight(bias)
        )


def folded(net: Any, number: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Kernel and bias of a convolution with its normalisation in them."""
    (kernel,) = net.get_layer(f"conv{number}").get_weights()
    normalisation = net.get_layer(f"norm{number}")
    gamma, beta, mean, variance = normalisation.get_weights()
    factor = gamma / np.sqrt(variance + normalisation.epsilon)
    return kernel * factor, beta - mean * factor


def locator(net: Any, width: Width, name: str) -> onnx.ModelProto:
    """`picture` uint8 [1, height, width], sides multiples of 32 -> `quads` and `scores`, float32.

    quads: [M, 4, 2], corners in pixels (x, y), clockwise, the best first. scores: [M]. Weights are stored in
    half precision.
    """
    graph = Graph()
    x = graph.add("Cast", "picture", to=TensorProto.FLOAT)
    x = graph.add("Unsqueeze", x, graph.weight(np.int64([1])))
    fields = build(OnnxLayers(graph, net), x, width)
    _quads(graph, fields)
    model = graph.finish(
        f"locator-{name}",
        [helper.make_tensor_value_info("picture", TensorProto.UINT8, [1, "height", "width"])],
        [
            helper.make_tensor_value_info("quads", TensorProto.FLOAT, ["codes", 4, 2]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["codes"]),
        ],
    )
    return halved(model)


def _quads(graph: Graph, fields: str) -> None:
    """From the fields [1, F, rows, columns] to the outputs."""

    def number(value: float) -> str:
        return graph.weight(np.float32([value]))

    def integer(*values: int) -> str:
        return graph.weight(np.int64(values))

    shape = graph.add("Shape", fields)
    rows, columns = graph.add("Gather", shape, integer(2)), graph.add("Gather", shape, integer(3))
    flat = graph.add("Reshape", fields, integer(sum(FIELDS.values()), -1))

    # The middles: cells that are higher than those around them.
    middle = graph.add("Slice", fields, integer(0), integer(1), integer(1))
    highest = graph.add("MaxPool", middle, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    peak = graph.add("GreaterOrEqual", middle, highest)
    heights = graph.add("Reshape", graph.add("Where", peak, middle, number(-50.0)), integer(-1))
    most = graph.add("Min", graph.add("Mul", rows, columns), integer(MOST))
    logits, chosen = "best_logits", "best_cells"
    graph.nodes.append(helper.make_node("TopK", [heights, most], [logits, chosen], name="best", axis=0))
    scores = graph.add("Sigmoid", logits)

    # Where their corners are, at first sight.
    x, y = graph.add("Mod", chosen, columns), graph.add("Div", chosen, columns)
    at = graph.add("Concat", *(graph.add("Unsqueeze", each, integer(1)) for each in (x, y)), axis=1)
    at = graph.add("Cast", at, to=TensorProto.FLOAT)
    middles = graph.add("Add", graph.add("Mul", at, number(STRIDE)), number((STRIDE - 1) / 2))
    said = graph.add("Gather", flat, chosen, axis=1)
    size = graph.add("Slice", said, integer(1), integer(2), integer(0))
    size = graph.add(
        "Mul", graph.add("Exp", graph.add("Clip", size, number(-4.0), number(4.0))), number(UNIT)
    )
    away = graph.add("Mul", graph.add("Slice", said, integer(2), integer(10), integer(0)), size)
    away = graph.add("Transpose", graph.add("Reshape", away, integer(4, 2, -1)), perm=[2, 0, 1])
    corners = graph.add("Add", away, graph.add("Unsqueeze", middles, integer(1)))

    # What the cells at the corners say.
    near = graph.add("Slice", flat, integer(10), integer(13), integer(0))
    last = graph.add("Sub", graph.add("Concat", columns, rows, axis=0), integer(1))
    last = graph.add("Cast", last, to=TensorProto.FLOAT)
    stride = graph.add("Concat", integer(1), columns, axis=0)
    for _ in range(REFINED):
        cell = graph.add("Div", graph.add("Sub", corners, number((STRIDE - 1) / 2)), number(STRIDE))
        cell = graph.add("Min", graph.add("Max", graph.add("Round", cell), number(0.0)), last)
        place = graph.add("Mul", graph.add("Cast", cell, to=TensorProto.INT64), stride)
        place = graph.add("ReduceSum", place, integer(2), keepdims=0)
        seen = graph.add("Gather", near, place, axis=1)
        seen = graph.add("Transpose", seen, perm=[1, 2, 0])
        there = graph.add("Slice", seen, integer(0), integer(1), integer(2))
        # Half sure is sure enough.
        trust = graph.add("Min", graph.add("Mul", graph.add("Sigmoid", there), number(2.0)), number(1.0))
        offset = graph.add("Slice", seen, integer(1), integer(3), integer(2))
        told = graph.add("Mul", graph.add("Add", cell, offset), number(STRIDE))
        told = graph.add("Add", told, number((STRIDE - 1) / 2))
        corners = graph.add("Add", corners, graph.add("Mul", trust, graph.add("Sub", told, corners)))

    # Of those that overlap, the best.
    low = graph.add("ReduceMin", corners, axes=[1], keepdims=0)
    high = graph.add("ReduceMax", corners, axes=[1], keepdims=0)
    boxes = graph.add("Unsqueeze", graph.add("Concat", low, high, axis=1), integer(0))
    ranked = graph.add("Unsqueeze", scores, integer(0, 1))
    kept = graph.add(
        "NonMaxSuppression",
        boxes,
        ranked,
        integer(MOST),
        number(OVERLAP),
        number(LEAST_SCORE),
        center_point_box=0,
    )
    kept = graph.add("Squeeze", graph.add("Gather", kept, integer(2), axis=1), integer(1))
    graph.add("Gather", corners, kept, output="quads", axis=0)
    graph.add("Gather", scores, kept, output="scores", axis=0)
