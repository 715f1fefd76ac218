"""The networks of PP-OCR as they come in the wheel of rapidocr -> sessions that run them.

Two things are changed on the way, neither of which changes what is read:

* Weights that training has let fade to almost nothing become nothing. A third of a million of the detector's
  are denormal numbers, which a processor multiplies a hundred times slower than others: they make up three
  quarters of the detector's time.
* The recogniser knows 18,708 characters, nearly all of them Chinese. Those that no wanted language has are
  taken out of its last layer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

# Smaller than this, a weight is noise: the largest values that flow through the networks are some hundreds.
_FADED: Final = 1e-12


class ModelsMissingError(RuntimeError):
    """The package whose wheel brings the networks is not installed."""


def bundled(name: str) -> Path:
    """A network from the wheel of rapidocr, which is not imported for it. Raises `ModelsMissingError`."""
    package = importlib.util.find_spec("rapidocr")
    for folder in () if package is None else package.submodule_search_locations or ():
        path = Path(folder) / "models" / name
        if path.is_file():
            return path
    raise ModelsMissingError(f"There is no {name}; it comes with the package rapidocr: pip install rapidocr.")


def session_of(model: onnx.ModelProto, threads: int) -> Any:
    """An `onnxruntime.InferenceSession` on the processor."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Warnings are about shapes that the file itself announces; they are for its maker.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def loaded(path: Path) -> onnx.ModelProto:
    """The network of a file, without faded weights."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            weights = numpy_helper.to_array(tensor)
            faded = np.abs(weights) < _FADED
            if np.any(faded & (weights != 0)):
                tensor.CopyFrom(numpy_helper.from_array(np.where(faded, np.float32(0), weights), tensor.name))
    return model


def characters_of(model: onnx.ModelProto) -> list[str]:
    """What each output of a recogniser stands for: nothing (CTC's blank), its characters, a space."""
    written = next(entry.value for entry in model.metadata_props if entry.key == "character")
    return ["", *written.split("\n"), " "]


def only(model: onnx.ModelProto, wanted: Callable[[str], bool]) -> list[str]:
    """Takes the outputs of characters that are not wanted out of a recogniser; what is left is returned."""
    characters = characters_of(model)
    kept = [at for at, character in enumerate(characters) if not character or wanted(character)]
    for tensor in _of_last_layer(model):
        weights = numpy_helper.to_array(tensor)[..., kept]
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights), tensor.name))
    # The file announces how wide its layers are, which is no longer so.
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = len(kept)
    return [characters[at] for at in kept]


def with_letter(model: onnx.ModelProto, weights: NDArray[np.float32]) -> None:
    """Adds a character to a recogniser, behind those it has. weights: of its last layer, then the bias."""
    for tensor in _of_last_layer(model):
        known = numpy_helper.to_array(tensor)
        added = weights[:-1, None] if known.ndim > 1 else weights[-1:]
        tensor.CopyFrom(numpy_helper.from_array(np.concatenate((known, added), axis=-1), tensor.name))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value += 1


def last_layer(model: onnx.ModelProto) -> onnx.NodeProto:
    """The product that the scores of the characters come from; a bias and a softmax follow."""
    product: onnx.NodeProto = next(node for node in reversed(model.graph.node) if node.op_type == "MatMul")
    return product


def _of_last_layer(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The weights and the bias of the last layer."""
    product = last_layer(model)
    bias = next(node for node in model.graph.node if product.output[0] in node.input)
    return [tensor for tensor in model.graph.initializer if tensor.name in (*product.input, *bias.input)]
