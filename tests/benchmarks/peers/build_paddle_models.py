"""PP-OCR's networks from the wheel of rapidocr -> folders that PaddleOCR opens, with the same weights.

    build_paddle_models.py DETECTOR.onnx RECOGNISER.onnx FOLDER

Runs in PaddleOCR's environment. Each folder has the network as it is (`inference.onnx`, for PaddleOCR's
onnxruntime) and in Paddle's format (`inference.json`, `inference.pdiparams`): Paddle's own files are on hubs,
so every node of the ONNX graph is made the Paddle operator of its kind. The largest difference between the
two, on noise, is printed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import paddle
import paddle.nn.functional as functional
import yaml
from onnx import numpy_helper

READ = {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}
DETECTOR = {
    "PreProcess": {
        "transform_ops": [
            READ,
            {"DetResizeForTest": None},
            {
                "NormalizeImage": {
                    "mean": [0.5, 0.5, 0.5],
                    "std": [0.5, 0.5, 0.5],
                    "scale": "1./255.",
                    "order": "hwc",
                }
            },
            {"ToCHWImage": None},
            {"KeepKeys": {"keep_keys": ["image", "shape"]}},
        ]
    },
    "PostProcess": {
        "name": "DBPostProcess",
        "thresh": 0.3,
        "box_thresh": 0.6,
        "max_candidates": 1000,
        "unclip_ratio": 1.5,
    },
}


def main(detector: Path, recogniser: Path, folder: Path) -> None:
    build("PP-OCRv6_small_det", detector, DETECTOR, [None, 3, None, None], folder)
    build("PP-OCRv6_small_rec", recogniser, reading(recogniser), [None, 3, 48, None], folder)


def reading(recogniser: Path) -> dict[str, Any]:
    entries = onnx.load(recogniser).metadata_props
    characters = next(entry.value for entry in entries if entry.key == "character").split("\n")
    return {
        "PreProcess": {
            "transform_ops": [
                READ,
                {"RecResizeImg": {"image_shape": [3, 48, 320]}},
                {"KeepKeys": {"keep_keys": ["image"]}},
            ]
        },
        "PostProcess": {"name": "CTCLabelDecode", "character_dict": characters},
    }


def build(name: str, network: Path, config: dict[str, Any], shape: list[int | None], folder: Path) -> None:
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(network, target / "inference.onnx")
    config = {"Global": {"model_name": name}, **config}
    (target / "inference.yml").write_text(yaml.safe_dump(config, allow_unicode=True))
    layer = Network(onnx.load(network))
    layer.eval()
    noise = np.random.default_rng(0).random([1, *(side or 96 for side in shape[1:])], np.float32)
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    difference = np.abs(layer(paddle.to_tensor(noise)).numpy() - session.run(None, {"x": noise})[0]).max()
    print(f"{name}: differs by {difference:.1e} at most", flush=True)
    spec = [paddle.static.InputSpec(shape, "float32", "x")]
    paddle.jit.save(paddle.jit.to_static(layer, input_spec=spec, full_graph=True), str(target / "inference"))


class Network(paddle.nn.Layer):
    """An ONNX graph, its nodes run one after another."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.graph = model.graph
        # Of Resize, Reshape and Slice: shapes and places, which the graph has to know before it runs.
        self.places: dict[str, Any] = {}
        scales = {name for node in self.graph.node if node.op_type == "Resize" for name in node.input[1:]}
        for tensor in self.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype != np.float32 or tensor.name in scales:
                self.places[tensor.name] = values
                continue
            values = values.reshape(values.shape or (1,))
            parameter = self.create_parameter(
                list(values.shape), default_initializer=paddle.nn.initializer.Assign(values)
            )
            self.add_parameter(as_parameter(tensor.name), parameter)

    def forward(self, x: Any) -> Any:
        known = {"x": x, "": None, **self.places}
        for tensor in self.graph.initializer:
            if tensor.name not in known:
                known[tensor.name] = getattr(self, as_parameter(tensor.name))
        for node in self.graph.node:
            given = [known[name] for name in node.input]
            attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            known[node.output[0]] = OPERATORS[node.op_type](attributes, *given)
        return known[self.graph.output[0].name]


def as_parameter(name: str) -> str:
    return "of_" + name.replace(".", "__")


def padding(attributes: dict[str, Any]) -> Any:
    if attributes.get("auto_pad") == b"SAME_UPPER":
        return "SAME"
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return [top, bottom, left, right]


def convolved(attributes: dict[str, Any], x: Any, weights: Any, bias: Any = None) -> Any:
    return functional.conv2d(
        x,
        weights,
        bias,
        stride=attributes.get("strides", [1, 1]),
        padding=padding(attributes),
        dilation=attributes.get("dilations", [1, 1]),
        groups=attributes.get("group", 1),
    )


def joined(attributes: dict[str, Any], *parts: Any) -> Any:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts, attributes["axis"])
    tensors = [paddle.to_tensor(part) if isinstance(part, np.ndarray) else part for part in parts]
    return paddle.concat(tensors, attributes["axis"])


def reshaped(_: dict[str, Any], x: Any, shape: Any) -> Any:
    if isinstance(x, np.ndarray):
        return x.reshape(shape)
    return paddle.reshape(x, [int(side) for side in shape] if isinstance(shape, np.ndarray) else shape)


def constant(attributes: dict[str, Any]) -> Any:
    values = numpy_helper.to_array(attributes["value"])
    return paddle.to_tensor(values) if values.dtype == np.float32 else values


def squeezed(attributes: dict[str, Any], x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return x.squeeze(tuple(attributes["axes"]))
    return paddle.squeeze(x, attributes["axes"])


def unsqueezed(attributes: dict[str, Any], x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return np.expand_dims(x, tuple(attributes["axes"]))
    return paddle.unsqueeze(x, attributes["axes"])


def sliced(_: dict[str, Any], x: Any, starts: Any, ends: Any, axes: Any, steps: Any = (1,)) -> Any:
    assert all(step == 1 for step in steps)
    to = [min(int(end), 2**31 - 1) for end in ends]
    return paddle.slice(x, [int(axis) for axis in axes], [int(start) for start in starts], to)


OPERATORS: dict[str, Any] = {
    "Add": lambda _, a, b: a + b,
    "BatchNormalization": lambda attributes, x, scale, bias, mean, variance: functional.batch_norm(
        x, mean, variance, scale, bias, training=False, epsilon=attributes.get("epsilon", 1e-5)
    ),
    "Cast": lambda attributes, x: x.astype({1: "float32", 6: "int32", 7: "int64"}[attributes["to"]]),
    "Concat": joined,
    "Conv": convolved,
    "ConvTranspose": lambda attributes, x, weights, bias=None: functional.conv2d_transpose(
        x, weights, bias, stride=attributes["strides"], padding=padding(attributes)
    ),
    "Constant": constant,
    "Div": lambda _, a, b: a / b,
    "Erf": lambda _, x: paddle.erf(x),
    "AveragePool": lambda attributes, x: functional.avg_pool2d(
        x, attributes["kernel_shape"], attributes["strides"], padding(attributes)
    ),
    "GlobalAveragePool": lambda _, x: functional.adaptive_avg_pool2d(x, 1),
    "HardSigmoid": lambda attributes, x: functional.hardsigmoid(
        x, slope=attributes.get("alpha", 0.2), offset=attributes.get("beta", 0.5)
    ),
    "Identity": lambda _, x: x,
    "MatMul": lambda _, a, b: paddle.matmul(a, b),
    "MaxPool": lambda attributes, x: functional.max_pool2d(
        x,
        attributes["kernel_shape"],
        attributes["strides"],
        padding(attributes),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    ),
    "Mul": lambda _, a, b: a * b,
    "Pow": lambda _, a, b: paddle.pow(a, b),
    "ReduceMean": lambda attributes, x: paddle.mean(
        x, attributes["axes"], keepdim=bool(attributes.get("keepdims", 1))
    ),
    "Relu": lambda _, x: functional.relu(x),
    "Reshape": reshaped,
    "Resize": lambda attributes, x, _, scales: functional.interpolate(
        x, scale_factor=[float(scale) for scale in scales[2:]], mode=attributes["mode"].decode()
    ),
    "Shape": lambda _, x: paddle.shape(x),
    "Sigmoid": lambda _, x: functional.sigmoid(x),
    "Slice": sliced,
    "Softmax": lambda attributes, x: functional.softmax(x, attributes["axis"]),
    "Sqrt": lambda _, x: paddle.sqrt(x),
    "Squeeze": squeezed,
    "Sub": lambda _, a, b: a - b,
    "Transpose": lambda attributes, x: paddle.transpose(x, attributes["perm"]),
    "Unsqueeze": unsqueezed,
}

if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
