"""Boxes of a page -> pictures of its lines, level and all of one height."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import cv2
import numpy as np

from ocr_worker.domain.detection import Boxes, heights_of, run_upright
from ocr_worker.domain.engine import PageImage
from ocr_worker.domain.recognition import HEIGHT, LineImage

# Of a line of 48 pixels height; 3,200 are some two hundred characters.
_WIDEST: Final = 3200


def crops_of(page: PageImage, boxes: Boxes) -> list[LineImage]:
    """A picture of each box. Text that runs up is turned to the right; the page is upright by now."""
    if not len(boxes):
        return []
    upright = run_upright(boxes)
    pages = {1: page}
    crops = []
    for box, height, turned in zip(boxes, heights_of(boxes), upright, strict=True):
        # Large text is reduced first: sampling every so many pixels would skip strokes.
        factor = max(1, int(height) // HEIGHT)
        if factor not in pages:
            pages[factor] = cv2.resize(page, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        crops.append(_level(pages[factor], np.roll(box, 1, axis=0) if turned else box, factor))
    return crops


def cut(box: Boxes, width: int, lefts: Sequence[float], turned: bool) -> Iterator[Boxes]:
    """The parts of a box, float32 [4, 2] each, that begin at some pixels of its picture.

    width: of the picture. turned: whether the text runs up.
    """
    along = np.roll(box, int(turned), axis=0)
    for edges in pairwise((*lefts, width)):
        share = np.array(edges, np.float32)[:, None] / width
        upper = along[0] + share * (along[1] - along[0])
        lower = along[3] + share * (along[2] - along[3])
        yield np.roll(np.concatenate((upper, lower[::-1])), -int(turned), axis=0)


def _level(page: PageImage, box: Boxes, factor: int) -> LineImage:
    """One line. box: float32 [4, 2] in pixels of the page before it was reduced by the factor."""
    width, height = math.dist(box[0], box[1]), math.dist(box[0], box[3])
    across = min(max(round(width * HEIGHT / height), 1), _WIDEST)
    corners = np.array(((0, 0), (across, 0), (across, HEIGHT), (0, HEIGHT)), np.float32)
    way = cv2.getPerspectiveTransform(box / factor, corners)
    line: LineImage = cv2.warpPerspective(
        page, way, (across, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return line
