"""`qr-locators`: how well learned locators find codes, apart from whether these can be read then.

Every locator there is in the models folder, and the nano file of QRDet, on the BoofCV pictures with their
true outlines and on the scenes of the `qr` benchmark: mAP@0.5 (of boxes, as for detectors in general, and of
quadrilaterals; of what a locator gives out, so that no curve goes on below its threshold), recall, false
alarms there and in pictures without codes, and milliseconds at two sizes on one thread, alternating, medians.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import qr, qr_scenes
from qr_decoder.domain.locator import FILES, Located, Locator, load
from visionmesh import images
from visionmesh.settings import get_settings

_SIZES = ((640, 480), (1280, 960))

Quad = NDArray[np.float32]
Picture = NDArray[np.uint8]


@dataclass
class Found:
    """What a locator found in all pictures: confidences, and whether each was right by box and by outline."""

    codes: int = 0
    confidences: list[float] = field(default_factory=list)
    boxes: list[bool] = field(default_factory=list)
    quads: list[bool] = field(default_factory=list)

    def add(self, true: list[Quad], located: list[Located]) -> None:
        self.codes += len(true)
        self.confidences += [each.confidence for each in located]
        self.boxes += hits(true, [each.corners for each in located], _box_overlap)
        self.quads += hits(true, [each.corners for each in located], _quad_overlap)


def main(arguments: Sequence[str] = ()) -> int:
    parser = argparse.ArgumentParser(prog="mesh bench qr-locators", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, default=qr.DATA, help="the folder with boofcv/ and zxing/")
    parser.add_argument(
        "--qrdet", type=Path, default=qr.QRDET, help="the nano file of QRDet, when there is one"
    )
    parser.add_argument(
        "--models", type=Path, default=get_settings().models_dir, help="folder of the locators"
    )
    parser.add_argument("--limit", type=int, default=0, help="pictures of each condition; all when 0")
    parser.add_argument("--scenes", type=int, default=20, help="scenes of each condition")
    parser.add_argument("--rounds", type=int, default=15, help="of each measured time")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    files = {size: options.models / name for size, name in FILES.items() if (options.models / name).is_file()}
    if options.qrdet.is_file():
        files["QRDet-n"] = options.qrdet
    locators = {name: load(name, file) for name, file in files.items()}
    if options.data.is_dir():
        _accuracy("boofcv", locators, _boofcv(options.data, options.limit))
        _false_alarms(locators, options.data)
    if options.scenes:
        _accuracy("scenes", locators, _scenes(options.scenes))
    _times(locators, options.rounds)
    return 0


def _boofcv(data: Path, limit: int) -> Iterator[tuple[Picture, list[Quad]]]:
    for condition, cases in qr._conditions(data):
        if condition.startswith("boofcv") and not condition.endswith("decoding"):
            for case in islice(cases, limit or None):
                picture = case.load()
                yield picture, case.quads(picture)


def _scenes(count: int) -> Iterator[tuple[Picture, list[Quad]]]:
    for name in {**qr_scenes.CONDITIONS, **qr_scenes.SCENARIOS}:
        for scene in qr_scenes.scenes(name, count):
            yield scene.picture, [corners for _, corners in scene.codes]


def _accuracy(
    name: str, locators: dict[str, Locator], pictures: Iterable[tuple[Picture, list[Quad]]]
) -> None:
    found = {locator: Found() for locator in locators}
    for picture, true in pictures:
        for locator, where in locators.items():
            found[locator].add(true, where.locate(picture))
    for locator, each in found.items():
        right = sum(each.boxes)
        print(
            f"qr-locators: {name}: {locator}: mAP@0.5 {average_precision(each, each.boxes):.3f} (boxes) "
            f"{average_precision(each, each.quads):.3f} (outlines), "
            f"{right} of {each.codes} codes found ({right / max(each.codes, 1):.1%}), "
            f"{sum(each.quads)} by their outlines, {len(each.boxes) - right} places without one",
            flush=True,
        )


def _false_alarms(locators: dict[str, Locator], data: Path) -> None:
    files = [file for folder in sorted((data / "zxing").glob("falsepos*/")) for file in qr._files(folder)]
    for name, locator in locators.items():
        places = sum(len(locator.locate(images.decode(file.read_bytes()))) for file in files)
        print(f"qr-locators: {name}: {places} places in {len(files)} pictures without codes", flush=True)


def _times(locators: dict[str, Locator], rounds: int) -> None:
    """Of a picture with one code in its middle, which a first look shows."""
    for width, height in _SIZES:
        scene = qr_scenes.Scene(qr_scenes.ground(np.random.default_rng(1), height, width))
        qr_scenes.lay(np.random.default_rng(2), scene, height / 3, (width / 2, height / 2))
        spent: dict[str, list[float]] = {name: [] for name in locators}
        for _ in range(rounds):
            for name, locator in locators.items():
                started = time.process_time()
                locator.locate(scene.picture)
                spent[name].append((time.process_time() - started) * 1000)
        for name, times in spent.items():
            print(f"qr-locators: {name}: {median(times):.1f} ms for {width}x{height}", flush=True)


def hits(true: list[Quad], found: list[Quad], overlap: Callable[[Quad, Quad], float]) -> list[bool]:
    """Which of the places found, the surest first, overlap by half with a code that none before it took."""
    free = list(range(len(true)))
    right = []
    for quad in found:
        overlaps = {n: overlap(true[n], quad) for n in free}
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        right.append(best is not None and overlaps[best] >= 0.5)
        if right[-1] and best is not None:
            free.remove(best)
    return right


def _box_overlap(one: Quad, other: Quad) -> float:
    low, high = np.maximum(one.min(axis=0), other.min(axis=0)), np.minimum(one.max(axis=0), other.max(axis=0))
    common = float(np.prod(np.maximum(high - low, 0)))
    areas = float(np.prod(np.ptp(one, axis=0)) + np.prod(np.ptp(other, axis=0)))
    return common / max(areas - common, 1e-6)


def _quad_overlap(one: Quad, other: Quad) -> float:
    one, other = cv2.convexHull(one.astype(np.float32)), cv2.convexHull(other.astype(np.float32))
    common = cv2.intersectConvexConvex(one, other)[0]
    return float(common / max(cv2.contourArea(one) + cv2.contourArea(other) - common, 1e-6))


def average_precision(found: Found, right: list[bool]) -> float:
    """The area under the curve of precision, made to fall only, over recall."""
    order = np.argsort(-np.array(found.confidences), kind="stable")
    hit = np.cumsum(np.array(right, bool)[order])
    if not len(hit) or not found.codes:
        return 0.0
    precision = np.maximum.accumulate((hit / np.arange(1, len(hit) + 1))[::-1])[::-1]
    recall = np.concatenate([[0], hit / found.codes])
    return float((np.diff(recall) * precision).sum())
