"""Small models of any width, made on the spot: folders of models as the mesh reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from training.tables import toml

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Old enough for every ONNX Runtime.
_OPSET = 17
_IR_VERSION = 9


def classifier(
    *,
    favourite: str = "cat",
    width: int = 20,
    said_width: int | None = None,
    labels: Sequence[str] = LABELS,
    extractor: str = "extractor@1.0.0",
    version: str = "1.0.0",
    batch: str | int = "N",
) -> tuple[dict[str, Any], bytes]:
    """Table and file of a classifier that finds `favourite` in every picture.

    said_width: what the table says, where it is to be wrong. batch: a number for a graph of so many rows.
    """
    bias = np.where(np.array(labels) == favourite, 3, 0).astype(np.float32)
    weights = {"w": np.zeros((width, len(labels)), np.float32), "b": bias}
    nodes = [
        helper.make_node("Gemm", ["descriptors", "w", "b"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, [batch, width])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [batch]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, len(labels)]),
        ],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return _model(
        graph,
        version=version,
        kind="classifier",
        family="favourite",
        labels=list(labels),
        descriptor_count=width if said_width is None else said_width,
        extractor=extractor,
    )


def extractor(
    *, width: int = 20, side: int = 32, space: str | None = None, version: str = "1.0.0"
) -> tuple[dict[str, Any], bytes]:
    """Table and file of an extractor that finds the same in every picture."""
    nodes = [
        helper.make_node("Cast", ["pictures"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("MatMul", ["column", "w"], ["descriptors"]),
    ]
    graph = helper.make_graph(
        nodes,
        "extractor",
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", side, side, 3])],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["N", width])],
        [
            numpy_helper.from_array(np.array([1], np.int64), "one"),
            numpy_helper.from_array(np.zeros((1, width), np.float32), "w"),
        ],
    )
    named = {} if space is None else {"space": space}
    return _model(graph, version=version, kind="extractor", family="mean", descriptor_count=width, **named)


def write_models(folder: Path, models: Mapping[str, tuple[Mapping[str, Any], bytes]]) -> Path:
    """A folder with models.toml and the files, each named as its model."""
    folder.mkdir(parents=True, exist_ok=True)
    text = ""
    for name, (table, content) in models.items():
        (folder / f"{name}.onnx").write_bytes(content)
        text += f"{toml({**table, 'file': f'{name}.onnx'}, name)}\n"
    (folder / "models.toml").write_text(text)
    return folder


def _model(graph: GraphProto, **table: Any) -> tuple[dict[str, Any], bytes]:
    """Table and file; the table's input and output are those of the graph."""
    content = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    ).SerializeToString()
    (taken,), given = graph.input, graph.output
    return table | {
        "file": "model.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "input": taken.name,
        "output": [each.name for each in given],
    }, content
