"""ResNet50 by Keras and a reduction of its features, written as one ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from training.export import Graph

NAME = "resnet50-pca"

# What Keras' ResNet50 was trained with: blue, green, red, each less its mean over ImageNet.
MEANS = (103.939, 116.779, 123.68)


@dataclass(frozen=True)
class Reduction:
    """Features [N, 2048] -> descriptors [N, K]: weights float32 [2048, K], bias float32 [K].

    explained: share of the features' variance that is left.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    explained: float

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features @ self.weights + self.bias


def graph_of(net: Any, side: int, reduction: Reduction | None = None) -> onnx.ModelProto:
    """`pictures` uint8 [N, side, side, 3] RGB -> `descriptors` float32 [N, K]; without `reduction`,
    `features` float32 [N, 2048].

    Normalisations and the order of colours are folded into the convolutions. The means are not: the first
    convolution pads with zeros after they are taken away.
    """
    layers = [layer.name for layer in net.layers]
    graph = Graph()
    x = graph.add("Cast", "pictures", to=TensorProto.FLOAT)
    x = graph.add("Sub", x, graph.weight(np.float32(MEANS[::-1])))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    kernel, bias = _folded(net, "conv1")
    x = graph.add("Relu", _convolution(graph, x, kernel[:, :, ::-1], bias, stride=2))
    # Keras pads with zeros and ONNX with nothing that could be greatest; behind a Relu that is the same.
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for block in (name.removesuffix("_out") for name in layers if name.endswith("_out")):
        x = _block(graph, net, block, x, projected=f"{block}_0_conv" in layers)
    x = graph.add("GlobalAveragePool", x)
    if reduction is None:
        output, width = graph.add("Flatten", x, output="features"), net.output_shape[-1]
    else:
        x, weights, offset = graph.add("Flatten", x), *map(graph.weight, (reduction.weights, reduction.bias))
        output, width = graph.add("Gemm", x, weights, offset, output="descriptors"), len(reduction.bias)
    return graph.finish(
        NAME,
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", side, side, 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", width])],
    )


def _block(graph: Graph, net: Any, name: str, x: str, *, projected: bool) -> str:
    """A residual block of three convolutions; the first of a stage projects its shortcut as well."""
    shortcut = _layer(graph, net, f"{name}_0", x) if projected else x
    y = graph.add("Relu", _layer(graph, net, f"{name}_1", x))
    y = graph.add("Relu", _layer(graph, net, f"{name}_2", y))
    return graph.add("Relu", graph.add("Add", shortcut, _layer(graph, net, f"{name}_3", y)))


def _layer(graph: Graph, net: Any, name: str, x: str) -> str:
    kernel, bias = _folded(net, name)
    return _convolution(graph, x, kernel, bias, stride=net.get_layer(f"{name}_conv").strides[0])


def _convolution(graph: Graph, x: str, kernel: NDArray[Any], bias: NDArray[Any], *, stride: int) -> str:
    """`kernel` as Keras has it, [height, width, in, out], and padded on all sides by half its width."""
    weights, offset = graph.weight(kernel.transpose(3, 2, 0, 1)), graph.weight(bias)
    return graph.add("Conv", x, weights, offset, strides=[stride] * 2, pads=[kernel.shape[0] // 2] * 4)


def _folded(net: Any, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernel [height, width, in, out] and bias [out] of a convolution and the normalisation behind it."""
    kernel, bias = net.get_layer(f"{name}_conv").get_weights()
    normalisation = net.get_layer(f"{name}_bn")
    scale, offset, mean, variance = normalisation.get_weights()
    factor = scale / np.sqrt(variance + normalisation.epsilon)
    return kernel * factor, (bias - mean) * factor + offset
