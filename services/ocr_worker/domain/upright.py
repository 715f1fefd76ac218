"""Which way up a page is.

Two looks, the cheap one first: when most of the text runs up or down, the page lies on its side. Then a
network says of a few lines whether they stand on their head, and only if it thinks so, the recogniser reads
them both ways; what makes sense to it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from ocr_worker.domain.detection import Boxes, run_upright
from ocr_worker.domain.engine import PageImage
from ocr_worker.domain.recognition import HEIGHT, LineImage, Recognised

# Lines that are asked; the longest, since a short one may read alike both ways ("SOS").
ASKED: Final = 8

# The classifier's picture, and its output for a line on its head.
_WIDTH: Final = 192
_ON_ITS_HEAD: Final = 1


def lies_on_its_side(boxes: Boxes) -> bool:
    """Whether more text runs up or down than across, by length."""
    lengths = np.linalg.norm(boxes - np.roll(boxes, -1, axis=1), axis=2).max(axis=1)
    upright = run_upright(boxes)
    return bool(lengths[upright].sum() > lengths[~upright].sum())


def is_on_its_head(
    classifier: Any, lines: Sequence[LineImage], read: Callable[[Sequence[LineImage]], Sequence[Recognised]]
) -> bool:
    """Whether the page that these lines are from is upside down."""
    asked = sorted(lines, key=lambda line: -line.shape[1])[:ASKED]
    if not _may_be(classifier, asked):
        return False
    turned = [np.ascontiguousarray(line[::-1, ::-1]) for line in asked]
    return _sense(read(turned)) > _sense(read(asked))


def turned(page: PageImage, quarters: int) -> PageImage:
    """The page turned clockwise by so many quarters."""
    return np.ascontiguousarray(np.rot90(page, -quarters))


def turned_back(points: NDArray[np.float32], quarters: int, width: int, height: int) -> NDArray[np.float32]:
    """Points of a turned page, float32 [..., 2], in the pixels of the page that was turned.

    width, height: of that page before it was turned.
    """
    x, y = points[..., 0], points[..., 1]
    match quarters % 4:
        case 1:
            x, y = y, height - x
        case 2:
            x, y = width - x, height - y
        case 3:
            x, y = width - y, x
    return np.stack((x, y), axis=-1)


def _may_be(classifier: Any, lines: Sequence[LineImage]) -> bool:
    """Whether the classifier takes half of the lines and more for upside down."""
    if not lines:
        return False
    fed = np.zeros((len(lines), 3, HEIGHT, _WIDTH), np.float32)
    for at, line in enumerate(lines):
        width = min(line.shape[1], _WIDTH)
        fed[at, :, :, :width] = cv2.dnn.blobFromImage(
            np.ascontiguousarray(line[:, :width]), 1 / 127.5, mean=(127.5, 127.5, 127.5), swapRB=True
        )[0]
    said = classifier.run(None, {"x": fed})[0].argmax(axis=1)
    return 2 * int(np.count_nonzero(said == _ON_ITS_HEAD)) >= len(lines)


def _sense(texts: Sequence[Recognised]) -> float:
    """How sure the recogniser is, weighted by how much it read."""
    return sum(text.confidence * len(text.text) for text in texts) / max(
        1, sum(len(text.text) for text in texts)
    )
