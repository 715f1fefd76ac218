"""From trained weights to ONNX: the extractor in float32 and in int8, and how any graph is run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from training.data import Pictures

# Old enough for every ONNX Runtime of the last years.
OPSET = 17
IR_VERSION = 9
CALIBRATION = 1_000


class Graph:
    """Collects the nodes of an ONNX graph; each call returns the name of the node's output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind.lower()}{len(self.nodes)}"
        domain = "ai.onnx.ml" if kind.startswith("TreeEnsemble") else ""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def split_in_two(self, x: str, first: str, second: str) -> None:
        """Names the two halves of `x` along its first axis."""
        self.nodes.append(helper.make_node("Split", [x], [first, second], name=first, axis=0))

    def weight(self, values: NDArray[Any]) -> str:
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def finish(self, name: str, given: Sequence[Any], wanted: Sequence[Any]) -> onnx.ModelProto:
        model = helper.make_model(
            helper.make_graph(self.nodes, name, list(given), list(wanted), self.weights),
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 3)],
            ir_version=IR_VERSION,
            producer_name="visionmesh",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def extractor(net: Any) -> onnx.ModelProto:
    """The net up to its descriptors: `pictures` uint8 [N,32,32,3] RGB -> `descriptors` float32 [N,20].

    The descriptors are the mean of those of a picture and of its mirror image: what a picture shows does
    not depend on the side it is seen from, and the second look is worth half a point of accuracy. Scaling,
    whitening and every normalisation are folded into the weights.
    """
    graph = Graph()
    # Width is the third axis; a slice with step -1 from the last column to the first mirrors it.
    ends = [graph.weight(np.int64([bound])) for bound in (-1, np.iinfo(np.int64).min, 2, -1)]
    mirrored = graph.add("Slice", "pictures", *ends)
    x = graph.add("Concat", "pictures", mirrored, axis=0)
    x = graph.add("Cast", x, to=TensorProto.FLOAT)
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    kernel, bias = net.get_layer("whitening").get_weights()
    x = graph.add("Relu", _convolution(graph, x, kernel / 255, bias, padding=0, output="whitening"))
    block = 0
    while f"conv{block}a" in {layer.name for layer in net.layers}:
        kernel, bias = _folded(net, f"conv{block}a", f"norm{block}a")
        x = graph.add("Relu", _convolution(graph, x, kernel, bias, padding=1))
        x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        kernel, bias = _folded(net, f"conv{block}b", f"norm{block}b")
        x = graph.add("Relu", _convolution(graph, x, kernel, bias, padding=1))
        block += 1
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[3, 3])
    x = graph.add("Flatten", x)
    graph.split_in_two(x, "seen", "seen_mirrored")
    # The bottleneck is linear, so the mean before it is the mean after it.
    x = graph.add("Mean", "seen", "seen_mirrored")
    weights, bias = _folded(net, "bottleneck", "descriptors")
    graph.add("Gemm", x, graph.weight(weights), graph.weight(bias), output="descriptors")
    return graph.finish(
        "extractor",
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["N", weights.shape[1]])],
    )


def _convolution(
    graph: Graph, x: str, kernel: NDArray[Any], bias: NDArray[Any], *, padding: int, output: str | None = None
) -> str:
    """`kernel` as Keras has it, [height, width, in, out]."""
    weights = graph.weight(kernel.transpose(3, 2, 0, 1))
    return graph.add("Conv", x, weights, graph.weight(bias), output=output, pads=[padding] * 4)


def _folded(net: Any, layer: str, norm: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Kernel and bias of a layer without bias followed by a normalisation without scale."""
    (kernel,) = net.get_layer(layer).get_weights()
    normalisation = net.get_layer(norm)
    *beta, mean, variance = normalisation.get_weights()
    factor = 1 / np.sqrt(variance + normalisation.epsilon)
    return kernel * factor, (beta[0] if beta else 0) - mean * factor


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its float32 weights stored as float16 and cast back when it is loaded.

    Half the file; ONNX Runtime folds the casts, so it computes in float32 and at the same speed.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    casts = []
    for weight in result.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            name, values = weight.name, numpy_helper.to_array(weight)
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(helper.make_node("Cast", [weight.name], [name], name=name, to=TensorProto.FLOAT))
    nodes = [*casts, *result.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    onnx.checker.check_model(result, full_check=True)
    return result


def quantized(model: onnx.ModelProto, pictures: Pictures) -> onnx.ModelProto:
    """The same graph with int8 weights per channel and uint8 activations, scaled by what `pictures` give.

    Weights use 7 bits: on processors without VNNI the sums of 8-bit products would saturate, and the
    same picture would get other descriptors there. The first layer stays in float, because whitening
    weighs the rarest differences of colour most and 256 levels lose them (half a point of accuracy, and
    it is a hundredth of the work); so does the last, whose outputs are the descriptors.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            source,
            result,
            _Calibration(pictures.rgb[:CALIBRATION]),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=["whitening", "descriptors"],
        )
        return onnx.load(result)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pictures: NDArray[np.uint8]) -> None:
        self.batches = iter(np.array_split(pictures, max(1, len(pictures) // 100)))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pictures": batch}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The model ready to run on one thread, as the services run it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, values: NDArray[Any], batch: int = 256) -> list[NDArray[Any]]:
    """All outputs of the model for all rows of `values`."""
    ready = session(model)
    name = ready.get_inputs()[0].name
    parts = [ready.run(None, {name: values[start : start + batch]}) for start in range(0, len(values), batch)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
