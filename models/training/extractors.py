"""From the trained net to the extractors that are deployed: float32 or int8, and what each look costs."""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from training import export, measure
from training.data import Dataset, Pictures
from visionmesh.images import decode_to

# Width and height of the pictures whose decoding is timed: CIFAR's own, a web camera's, a phone's.
SIZES = ((32, 32), (640, 480), (1280, 960), (4000, 3000))
SIDE = 32
JPEG_QUALITY = 90
DECODED = 20


def variants(net: Any, pictures: Pictures) -> dict[str, onnx.ModelProto]:
    """The net's graphs: `fp32` and `int8`, and both with one look only, at the picture but not its mirror
    image.
    """
    graphs = {"fp32": export.extractor(net)}
    graphs["fp32, one look"] = one_look(graphs["fp32"])
    for name in tuple(graphs):
        graphs[name.replace("fp32", "int8")] = export.quantized(graphs[name], pictures)
    return graphs


def one_look(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float graph of an extractor without the look at the mirror image."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    by_kind = {node.op_type: node for node in result.graph.node}
    renamed = {by_kind["Concat"].output[0]: "pictures", by_kind["Mean"].output[0]: by_kind["Split"].input[0]}
    kept = [node for node in result.graph.node if node.op_type not in ("Slice", "Concat", "Split", "Mean")]
    for node in kept:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del result.graph.node[:]
    result.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    weights = [weight for weight in result.graph.initializer if weight.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(weights)
    onnx.checker.check_model(result, full_check=True)
    return result


def figures(
    graphs: dict[str, onnx.ModelProto], head: list[NDArray[np.float32]], dataset: Dataset
) -> dict[str, dict[str, float]]:
    """Of each graph: top-1 of the head [weights, bias] the net was trained with, milliseconds, bytes."""
    found = {}
    for name, graph in graphs.items():
        found[name] = {
            "top1": round(_top1(graph, head, dataset.test), 4),
            "top1_validation": round(_top1(graph, head, dataset.validation), 4),
            **measure.speed(graph, dataset.test.rgb),
            "bytes": len(graph.SerializeToString()),
        }
        print(f"extractor {name}: {found[name]}", flush=True)
    return found


def _top1(graph: onnx.ModelProto, head: list[NDArray[np.float32]], pictures: Pictures) -> float:
    (descriptors,) = export.run(graph, pictures.rgb)
    weights, bias = head
    return float(((descriptors @ weights + bias).argmax(axis=1) == pictures.labels).mean())


def int8_pays(metrics: dict[str, dict[str, float]]) -> bool:
    """Whether int8 is faster than float32 one picture at a time and loses next to nothing.

    Decided on the validation pictures, so that the figure of the test pictures stays one nobody chose by.
    """
    whole, small = metrics["fp32"], metrics["int8"]
    return (
        small["top1_validation"] >= whole["top1_validation"] - measure.TOLERATED_LOSS
        and small["ms_per_picture"] < whole["ms_per_picture"]
    )


def written(graphs: dict[str, onnx.ModelProto], deployed: str) -> dict[str, onnx.ModelProto]:
    """By the name in models.toml what is kept: the deployed one as `extractor`, and the other.

    Float weights are stored as halves, which keeps the file small enough for a repository.
    """
    other = {"int8": "fp32", "fp32": "int8"}[deployed]
    names = {"extractor": deployed, {"fp32": "extractor-float", "int8": "extractor-int8"}[other]: other}
    return {
        name: export.halved(graphs[precision]) if precision == "fp32" else graphs[precision]
        for name, precision in names.items()
    }


def decoding(seed: int) -> list[dict[str, float]]:
    """Milliseconds of `visionmesh.images.decode_to` for a JPEG of each of SIZES; medians."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    found = []
    for width, height in SIZES:
        content = _photograph(coarse, width, height, random)
        seconds = []
        for _ in range(DECODED):
            start = time.thread_time()
            decode_to(content, SIDE)
            seconds.append(time.thread_time() - start)
        milliseconds = float(f"{1000 * np.median(seconds):.3g}")
        found.append(
            {"width": width, "height": height, "bytes": len(content), "ms_per_picture": milliseconds}
        )
    return found


def _photograph(coarse: NDArray[np.uint8], width: int, height: int, random: np.random.Generator) -> bytes:
    """A JPEG as large as a photograph of that size: soft shapes under the grain of a sensor."""
    shapes = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    # In strips: noise for the largest picture at once would take 300 MB.
    rows = [
        np.clip(strip + random.normal(0, 6, strip.shape).astype(np.float32), 0, 255).astype(np.uint8)
        for strip in np.array_split(shapes, max(1, height // 100))
    ]
    out = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()
