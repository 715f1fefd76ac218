"""Writes `resnet50-fp32.onnx` and `resnet50-int8.onnx` into the folder named on the command line.

ResNet-50 (He et al., 2015; stride in the 3 x 3 convolution as in torchvision's v1.5) takes float32
[1, 3, 224, 224] and gives logits [1, 1000], with batch norm folded into the convolutions as for inference.
The weights are drawn, for they do not change its speed. int8 is static QDQ with unsigned activations and
weights per channel, which ONNX Runtime recommends for x86 with VNNI.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

# Blocks and channels of each stage; the output has four times the channels.
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
CALIBRATION_PICTURES = 4
# Residuals add up over 16 blocks; with half the gain the activations stay in an ordinary range, where no
# denormal number slows the arithmetic down.
LAST_GAIN = 0.5


class Net:
    """The graph so far. Every method appends nodes and returns the name of their result."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def _node(self, kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def _drawn(self, shape: tuple[int, ...], deviation: float) -> str:
        name = f"weight{len(self.weights)}"
        values = self._random.normal(0, deviation, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, value: str, taken: int, given: int, size: int, stride: int = 1, gain: float = 1.0) -> str:
        kernel = self._drawn((given, taken, size, size), gain * (2 / (taken * size * size)) ** 0.5)
        pads = [size // 2] * 4
        inputs = [value, kernel, self._drawn((given,), 0.1)]
        return self._node("Conv", inputs, kernel_shape=[size] * 2, strides=[stride] * 2, pads=pads)

    def relu(self, value: str) -> str:
        return self._node("Relu", [value])

    def block(self, value: str, taken: int, width: int, stride: int) -> str:
        inner = self.relu(self.conv(value, taken, width, 1))
        inner = self.relu(self.conv(inner, width, width, 3, stride))
        inner = self.conv(inner, width, 4 * width, 1, gain=LAST_GAIN)
        if taken != 4 * width:
            value = self.conv(value, taken, 4 * width, 1, stride)
        return self.relu(self._node("Add", [inner, value]))

    def whole(self, value: str) -> str:
        value = self.relu(self.conv(value, 3, 64, 7, 2))
        value = self._node("MaxPool", [value], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        taken = 64
        for stage, (blocks, width) in enumerate(STAGES):
            for block in range(blocks):
                value = self.block(value, taken, width, 2 if stage and not block else 1)
                taken = 4 * width
        value = self._node("Flatten", [self._node("GlobalAveragePool", [value])])
        return self._node("Gemm", [value, self._drawn((taken, 1000), 0.01), self._drawn((1000,), 0.01)])


class Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Normalised pictures of noise: they set scales, and scales do not change the speed."""

    def __init__(self) -> None:
        self._left = CALIBRATION_PICTURES

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
        if self._left == 0:
            return None
        self._left -= 1
        return {
            "pictures": np.random.default_rng(self._left).normal(size=(1, 3, 224, 224)).astype(np.float32)
        }


def main(folder: Path) -> None:
    # Since 1.31 the wheels report to their maker unless told not to.
    onnxruntime.disable_telemetry_events()
    net = Net(seed=50)
    result = net.whole("pictures")
    graph = helper.make_graph(
        net.nodes,
        "resnet50",
        [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, [1, 1000])],
        net.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "resnet50-fp32.onnx")
    quantize_static(
        str(folder / "resnet50-fp32.onnx"),
        str(folder / "resnet50-int8.onnx"),
        Pictures(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
