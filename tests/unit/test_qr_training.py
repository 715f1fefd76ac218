"""The training of the locator: what the net is told, that its graph undoes it, and a first step of it all.

The step itself needs the environment of requirements/train.txt.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qr_decoder.domain import locator
from training import qr_export
from training.export import Graph
from training.qr_locator import CHANNELS, TARGETS, targets
from training.qr_net import FIELDS
from training.qr_scenes import Scene
from visionmesh.model_store import ModelStore
from visionmesh.settings import ROOT

TRAIN_PYTHON = Path(os.environ.get("MESH_TRAIN_PYTHON", ROOT / ".venv-train" / "bin" / "python"))

SMALL = np.array([[30, 40], [61, 44], [58, 76], [27, 72]], np.float32)
LARGE = np.array([[110, 30], [235, 60], [210, 190], [90, 160]], np.float32)


def scene(*quads: NDArray[np.float32], ignored: tuple[NDArray[np.float32], ...] = ()) -> Scene:
    picture = np.zeros((224, 256), np.uint8)
    return Scene(picture, list(quads), [quad[[0, 1, 3]] for quad in quads], list(ignored))


def told(made: Scene) -> NDArray[np.float32]:
    rows, columns = made.picture.shape[0] // 8, made.picture.shape[1] // 8
    return targets(made, rows, columns)


def fields_of(target: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a net that has learned its targets says, float32 [1, F, rows, columns]."""
    said = {name: target[..., TARGETS[name]] for name in FIELDS}
    for name in ("middle", "near", "finder"):
        said[name] = np.log((said[name] + 1e-4) / (1.0001 - said[name]))
    return np.concatenate([said[name] for name in FIELDS], axis=-1).transpose(2, 0, 1)[None]


def quads_of(fields: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What the graph makes of fields."""
    graph = Graph()
    qr_export._quads(graph, "fields")
    model = graph.finish(
        "quads",
        [helper.make_tensor_value_info("fields", TensorProto.FLOAT, [1, 14, "rows", "columns"])],
        [
            helper.make_tensor_value_info("quads", TensorProto.FLOAT, ["codes", 4, 2]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["codes"]),
        ],
    )
    session = onnxruntime.InferenceSession(
        qr_export.halved(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    quads, scores = session.run(["quads", "scores"], {"fields": np.ascontiguousarray(fields)})
    return quads, scores


def test_the_graph_gives_back_the_corners_that_the_net_was_told() -> None:
    quads, scores = quads_of(fields_of(told(scene(SMALL, LARGE))))
    assert len(quads) == len(scores) == 2
    assert scores.min() > 0.99
    small, large = sorted(quads, key=lambda quad: float(quad[0, 0]))
    assert np.abs(small - SMALL).max() < 0.1
    assert np.abs(large - LARGE).max() < 0.1


def test_corners_that_are_seen_roughly_are_moved_to_where_they_are() -> None:
    fields = fields_of(told(scene(LARGE)))
    # Corners and size are six per cent off, as a far cell sees them.
    fields[:, 1] += 0.06
    (moved,), _ = quads_of(fields)
    assert np.abs(moved - LARGE).max() < 0.1
    fields[:, 10] = -9.0
    (rough,), _ = quads_of(fields)
    assert 3 < np.abs(rough - LARGE).max() < 9


def test_of_places_that_overlap_the_best_is_given() -> None:
    target = told(scene(LARGE))
    row, column = np.argwhere(target[..., 0] == 1)[0]
    fields = fields_of(target)
    fields[0, :, row, column + 4] = fields[0, :, row, column]
    fields[0, 0, row, column] -= 3
    quads, scores = quads_of(fields)
    assert len(quads) == 1
    assert quads[0].mean(axis=0)[0] > LARGE.mean(axis=0)[0]
    assert list(scores) == sorted(scores, reverse=True)


def test_nothing_is_given_where_nothing_is() -> None:
    quads, scores = quads_of(fields_of(told(scene())))
    assert quads.shape == (0, 4, 2)
    assert scores.shape == (0,)


def test_nothing_counts_where_a_code_is_neither_right_nor_wrong() -> None:
    target = told(scene(SMALL, ignored=(LARGE,)))
    counts = target[..., TARGETS["counts"]][..., 0]
    assert counts[110 // 8, 160 // 8] == 0
    assert counts[27, 2] == 1
    middle = tuple(np.rint((SMALL.mean(axis=0) - 3.5) / 8).astype(int)[::-1])
    assert target[middle][0] == counts[middle] == 1
    assert target.shape == (28, 32, CHANNELS)


def trained(*arguments: Any) -> str:
    done = subprocess.run(
        [TRAIN_PYTHON, "-m", "training.qr_locator", "--workers", "1", "--threads", "1", *map(str, arguments)],
        cwd=ROOT / "models",
        env={**os.environ, "PYTHONPATH": str(ROOT / "models"), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


@pytest.mark.skipif(not TRAIN_PYTHON.exists(), reason=f"no {TRAIN_PYTHON}; `make train-locator` makes it")
@pytest.mark.timeout(900)
def test_a_step_is_taken_resumed_and_written(tmp_path: Path) -> None:
    checkpoint, file = tmp_path / "net.keras", tmp_path / "qreader_nano.onnx"
    said = trained("--pictures", 32, "--checkpoint", checkpoint)
    assert "batch 0 of 1" in said
    said = trained("--pictures", 64, "--checkpoint", checkpoint, "--export", tmp_path)
    assert "batch 1 of 2" in said
    assert ModelStore(tmp_path).names("locator") == ("locator-n",)
    assert file.stat().st_size < 1_000_000
    found = locator.load("n", file)
    assert isinstance(found, locator.QuadLocator)
    picture = np.random.default_rng(1).integers(0, 256, (333, 500, 3)).astype(np.uint8)
    for each in found.locate(picture):
        assert each.corners.shape == (4, 2)
        assert 0 <= each.confidence <= 1
