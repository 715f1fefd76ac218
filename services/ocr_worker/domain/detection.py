"""Page -> boxes around its lines of text, by a network that says of every pixel whether it is inside of one.

The network is a DB detector (Liao et al., Real-time Scene Text Detection with Differentiable Binarization,
2020). It gives a map of probabilities in which every line is shrunk, so that neighbours don't touch; boxes
are the rectangles around what is connected, grown by what the lines were shrunk by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from ocr_worker.domain.engine import PageImage

# float32 [n, 4, 2], x and y in pixels: corners clockwise, the first at the left end of the upper side.
Boxes = NDArray[np.float32]

NO_BOXES: Final[Boxes] = np.empty((0, 4, 2), np.float32)

# The network halves the picture five times.
_STRIDE: Final = 32

# A line of two characters is not that much higher than wide, and one of a single character not that much
# higher than other lines of its page.
_UPRIGHT: Final = 1.5
_HIGHER: Final = 2.0


@dataclass(frozen=True, slots=True)
class Detection:
    """How boxes are looked for.

    probability: from which on a pixel belongs to a line.
    confidence: the mean over a box below which it holds no text.
    growth: how far a box grows, in parts of its area divided by half its perimeter.
    least_side: pixels of the map; what is smaller is no text.
    """

    probability: float = 0.3
    confidence: float = 0.5
    growth: float = 1.6
    least_side: float = 3.0


def detect(session: Any, page: PageImage, scale: float, settings: Detection) -> Boxes:
    """The boxes of a page, in its pixels, in no order.

    scale: of the picture that the network is given, 1 for the page as it is.
    """
    height, width = page.shape[:2]
    across, down = _fitting(width * scale), _fitting(height * scale)
    smaller = across * down < width * height
    seen = cv2.resize(page, (across, down), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    # The networks were trained on BGR from -1 to 1.
    fed = cv2.dnn.blobFromImage(seen, 1 / 127.5, mean=(127.5, 127.5, 127.5), swapRB=True)
    probabilities = session.run(None, {"x": fed})[0][0, 0]
    return boxes_of(probabilities, settings) * np.array((width / across, height / down), np.float32)


def boxes_of(probabilities: NDArray[np.float32], settings: Detection) -> Boxes:
    """The boxes in a map of probabilities, float32 [height, width], in its pixels."""
    mask = cv2.dilate((probabilities > settings.probability).astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in contours:
        middle, (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < settings.least_side:
            continue
        if _mean_inside(probabilities, cv2.boxPoints((middle, (width, height), angle))) < settings.confidence:
            continue
        # Offsetting a rectangle and taking the rectangle around it only moves its sides.
        grown = settings.growth * width * height / (width + height)
        boxes.append(_from_upper_left(cv2.boxPoints((middle, (width + grown, height + grown), angle))))
    return np.stack(boxes).astype(np.float32) if boxes else NO_BOXES


def heights_of(boxes: Boxes) -> NDArray[np.float32]:
    """The shorter sides, float32 [n]: how high the text is, whichever way it is turned."""
    return np.minimum(*_sides(boxes))


def run_upright(boxes: Boxes) -> NDArray[np.bool_]:
    """Which boxes hold text that runs up or down, bool [n].

    They are higher than wide, and higher than a line: a lone 1 is not turned.
    """
    if not len(boxes):
        return np.zeros(0, np.bool_)
    width, height = _sides(boxes)
    return (height >= _UPRIGHT * width) & (height >= _HIGHER * np.median(heights_of(boxes)))


def _sides(boxes: Boxes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return (
        np.linalg.norm(boxes[:, 1] - boxes[:, 0], axis=1),
        np.linalg.norm(boxes[:, 3] - boxes[:, 0], axis=1),
    )


def _fitting(side: float) -> int:
    return max(_STRIDE, round(side / _STRIDE) * _STRIDE)


def _mean_inside(probabilities: NDArray[np.float32], corners: NDArray[np.float32]) -> float:
    height, width = probabilities.shape
    last = np.array((width - 1, height - 1))
    left, top = np.clip(np.floor(corners.min(axis=0)), 0, last).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)), 0, last).astype(int)
    inside = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(inside, [(corners - (left, top)).astype(np.int32)], 1)
    return float(cv2.mean(probabilities[top : bottom + 1, left : right + 1], inside)[0])


def _from_upper_left(corners: NDArray[np.float32]) -> NDArray[np.float32]:
    """Four corners that go clockwise, from the left end of the side that runs most to the right."""
    sides = np.roll(corners, -1, axis=0) - corners
    return np.roll(corners, -int(np.argmax(sides[:, 0] - np.abs(sides[:, 1]))), axis=0)
