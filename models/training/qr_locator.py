"""`python -m training.qr_locator`: trains a locator of QR codes on drawn pictures and writes it as ONNX.

A net like CenterNet's (Zhou and others, "Objects as Points", arXiv:1904.07850): the middle of a code is a
peak in a map, and the cell of the peak says where the corners are. Corners are then moved to where the
cells near them say that they are, since a cell can tell a place near to it to a pixel and a far one only
roughly. Finder patterns are learned beside it: they tell the net early what a code is made of. Convolutions
are trained with Muon (see `training.extractor`), all else with AdamW.

Pictures are drawn by processes of their own while the net trains; what a batch shows depends on the seed
and its number alone, so that a training that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training import qr_scenes
from training.qr_net import STRIDE, WIDTHS
from training.qr_scenes import Scene

SEED = 1
PICTURES = 300_000
BATCH = 32
SIDE = 256
CELLS = SIDE // STRIDE

# Batches that are drawn ahead.
AHEAD = 6

UNIT = 32.0
# Cells from a corner at which it is still told where it is.
REACH = 2.5
NEAR = 1.5

# What a batch is told: the channels of a target of a cell.
TARGETS = {
    "middle": slice(0, 1),
    "counts": slice(1, 2),
    "weight": slice(2, 3),
    "size": slice(3, 4),
    "corners": slice(4, 12),
    "near": slice(12, 13),
    "reached": slice(13, 14),
    "offset": slice(14, 16),
    "finder": slice(16, 17),
}
CHANNELS = 17


# Targets.


def targets(scene: Scene, rows: int = CELLS, columns: int = CELLS) -> NDArray[np.float32]:
    """What the net is to say of a scene, float32 [rows, columns, CHANNELS].

    middle: 1 in the cell of a code's middle, less around it. counts: 0 where nothing is right or wrong.
    weight: how much a cell's size and corners matter. size: logarithm of the side in units of 32 pixels.
    corners: from the cell's middle, in sides of the code. near, offset: whether a corner is within 12 pixels,
    and where it is in cells, told within `reached`. finder: as middle.
    """
    found = np.zeros((rows, columns, CHANNELS), np.float32)
    found[..., TARGETS["counts"]] = 1
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    cells = np.stack([x, y], axis=-1) * STRIDE + (STRIDE - 1) / 2
    for quad in scene.ignored:
        low, high = quad.min(axis=0), quad.max(axis=0)
        inside = ((cells >= low - STRIDE) & (cells <= high + STRIDE)).all(axis=-1)
        found[inside, TARGETS["counts"]] = 0
    nearest = np.full((rows, columns), REACH, np.float32)
    for quad, finders in zip(scene.quads, scene.finders, strict=True):
        side = math.sqrt(_area(quad))
        middle = quad.mean(axis=0)
        bump = _bump(cells, middle, float(np.clip(0.1 * side / STRIDE, 0.7, 4.0)))
        found[..., 0] = np.maximum(found[..., 0], bump)
        here = bump > np.maximum(found[..., 2], 0.3)
        found[here, 1] = 1
        found[here, 2] = bump[here]
        found[here, 3] = math.log(side / UNIT)
        found[here, TARGETS["corners"]] = ((quad - cells[here][:, None]) / side).reshape(-1, 8)
        for corner in quad:
            away = (corner - cells) / STRIDE
            distance = np.abs(away).max(axis=-1)
            closer = distance < nearest
            nearest[closer] = distance[closer]
            found[closer, TARGETS["offset"]] = away[closer]
        for finder in finders:
            bump = _bump(cells, finder, float(np.clip(0.03 * side / STRIDE, 0.6, 1.5)))
            found[..., 16] = np.maximum(found[..., 16], bump)
    found[..., 12] = nearest < NEAR
    found[..., 13] = nearest < REACH
    return found


def _bump(cells: NDArray[np.float32], at: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """A bell of so many cells around a point, 1 in the cell that the point is in."""
    bump = np.exp(-(((cells - at) / (STRIDE * width)) ** 2).sum(axis=-1) / 2).astype(np.float32)
    column, row = np.clip(
        np.rint((at - (STRIDE - 1) / 2) / STRIDE).astype(int), 0, np.array(bump.shape)[::-1] - 1
    )
    bump[row, column] = 1
    return bump


def _area(quad: NDArray[np.float32]) -> float:
    x, y = quad.T.astype(float)
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def batch(seed: int, number: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Pictures uint8 [BATCH, SIDE, SIDE] and their targets [BATCH, CELLS, CELLS, CHANNELS]."""
    scenes = [qr_scenes.scene(seed, number * BATCH + n, SIDE, SIDE) for n in range(BATCH)]
    return (
        np.stack([scene.picture for scene in scenes]),
        np.stack([targets(scene) for scene in scenes]).astype(np.float16),
    )


def batches(
    seed: int, numbers: range, workers: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float16]]]:
    """The batches of these numbers in order, drawn ahead by other processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_alone) as pool:
        waiting: list[Future[tuple[NDArray[np.uint8], NDArray[np.float16]]]] = []
        ahead = iter(numbers)
        for number in itertools.islice(ahead, AHEAD):
            waiting.append(pool.submit(batch, seed, number))
        while waiting:
            done = waiting.pop(0).result()
            for number in itertools.islice(ahead, 1):
                waiting.append(pool.submit(batch, seed, number))
            yield done


def _alone() -> None:
    import cv2

    cv2.setNumThreads(1)


# The command line.


def main() -> None:
    arguments = _arguments()
    # Here, and not above: the processes that draw import this module too.
    from training import qr_fit

    if arguments.threads:
        qr_fit.use_threads(arguments.threads)
    narrower = None if arguments.narrower is None else (arguments.narrower[0], Path(arguments.narrower[1]))
    net = qr_fit.fit(
        arguments.size,
        pictures=arguments.pictures,
        seed=arguments.seed,
        checkpoint=arguments.checkpoint,
        workers=arguments.workers,
        narrower=narrower,
    )
    if arguments.export is not None:
        qr_fit.write(
            net,
            arguments.size,
            arguments.export,
            pictures=arguments.pictures,
            seed=arguments.seed,
            narrower=None if narrower is None else narrower[0],
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.qr_locator", description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=sorted(WIDTHS), default="n")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--threads", type=int, help="processor cores to train on; all when absent")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="a .keras file that is written now and then, and resumed from when there",
    )
    parser.add_argument(
        "--narrower",
        nargs=2,
        metavar=("SIZE", "FILE"),
        help="a trained net's size and .keras file, from which a wider one begins",
    )
    parser.add_argument("--export", type=Path, help="folder to write the .onnx file and its table to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
