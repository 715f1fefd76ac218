"""What an extractor makes of the pictures: what classifiers are fitted to, chosen by and measured on."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from training import data, export, measure
from training.classifiers import Examples

# Further than the net's own training shifts pictures, so that it does not know them as well.
SHIFT = 4


class Seen:
    """What an extractor makes of the training pictures, shifted and as they are, and of the held-out ones.

    features, labels: of `train` (shifted), `validation` and `test`; features are what the bottleneck takes.
    """

    def __init__(self, dataset: data.Dataset, extractor: onnx.ModelProto, seed: int) -> None:
        moved = data.shifted(dataset.train.rgb, SHIFT, np.random.default_rng(seed))
        parts = {
            "train": data.Pictures(moved, dataset.train.labels),
            "validation": dataset.validation,
            "test": dataset.test,
        }
        graph = with_features(extractor)
        found = {name: export.run(graph, part.rgb) for name, part in parts.items()}
        self.labels = {name: part.labels for name, part in parts.items()}
        self.features = {name: features for name, (_, features) in found.items()}
        examples = {
            name: Examples(measure.rounded(descriptors), self.labels[name])
            for name, (descriptors, _) in found.items()
        }
        self.shifted, self.validation, self.test = (examples[name] for name in parts)
        self._extractor, self._train = extractor, dataset.train

    def plain(self) -> Examples:
        (descriptors,) = export.run(self._extractor, self._train.rgb)
        return Examples(measure.rounded(descriptors), self._train.labels)


def with_features(extractor: onnx.ModelProto) -> onnx.ModelProto:
    """The extractor with a second output, `features` float32 [N,D]: what its bottleneck takes."""
    (last,) = (node for node in extractor.graph.node if "descriptors" in node.output)
    result = onnx.ModelProto()
    result.CopyFrom(extractor)
    result.graph.node.append(helper.make_node("Identity", [last.input[0]], ["features"]))
    result.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", "D"]))
    return result
