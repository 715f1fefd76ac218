"""Where a code may lie by its outline alone: a square that is full of edges, with few around it.

For codes whose finder patterns are scratched away. Whatever lies on a code leaves most of its edges; closing
the gaps between them makes it one region, and straight lines around that are good to a module or so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from qr_decoder.domain.codes import Grey, Quad

# At most so many pixels a side are looked at: halved, the edges of print become faint and those of codes not.
_SIDE: Final = 640

# Levels of grey across an edge.
_EDGE: Final = 60

# Gaps that are closed, in pixels: from the light areas of a small code to those of one that fills a picture.
_GAPS: Final = (5, 9, 15)

# Of a code: its least side in pixels, how much longer one side may be, and the share of a rectangle around it
# that it fills.
_LEAST: Final = 24
_LONGER: Final = 2.0
_FILLED: Final = 0.7

# Vertices closer to the hull's outline than this share of its length are rounding.
_ROUNDED: Final = 0.008


def outlines(grey: Grey) -> Iterator[Quad]:
    """Quadrilaterals that may be codes, float32 [4, 2] in pixels, clockwise on the picture; each once.

    One at a time: a sheet of stamps has hundreds, and who asks may have no time for all.
    """
    small, factor = grey, 1
    while max(small.shape) > _SIDE and min(small.shape) > 1:
        even = small[: small.shape[0] // 2 * 2, : small.shape[1] // 2 * 2]
        small = cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA)
        factor *= 2
    found: list[Quad] = []
    for quad in _in_edges(small):
        if not any(_same(quad, other) for other in found):
            found.append(quad)
            yield ((quad + 0.5) * factor - 0.5).astype(np.float32)


def _in_edges(grey: Grey) -> Iterator[Quad]:
    steep = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    edges = (steep > _EDGE).astype(np.uint8)
    for gap in _GAPS:
        closed = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8))
        # What is as thin as a gap was: lines of print, the rim of the paper.
        thick = np.ones((2 * gap - 1, 2 * gap - 1), np.uint8)
        whole = cv2.morphologyEx(closed, cv2.MORPH_OPEN, thick)
        contours, _ = cv2.findContours(whole, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        for contour in contours:
            _, (width, height), _ = cv2.minAreaRect(contour)
            short, long = sorted((width, height))
            if short < _LEAST or long > _LONGER * short:
                continue
            if cv2.contourArea(contour) >= _FILLED * width * height:
                quad = _around(cv2.convexHull(contour))
                middle = quad.mean(axis=0)
                # Edges are two pixels wide, one of which lies outside.
                yield middle + (quad - middle) * (1 - 1 / short)


def _same(quad: Quad, other: Quad) -> bool:
    away = np.hypot(*(quad[:, None] - other[None]).transpose(2, 0, 1)).min(axis=1)
    return float(away.max()) < 4


def _around(hull: NDArray[np.int32]) -> Quad:
    """The smallest of quadrilaterals around a hull that its own sides make, clockwise.

    Sides are left out one after the other, each time the one whose neighbours, made longer, enclose the least
    more: a corner that is missing comes back.
    """
    box = cv2.boxPoints(cv2.minAreaRect(hull))
    polygon = cv2.approxPolyDP(hull, _ROUNDED * cv2.arcLength(hull, True), True)
    corners = [np.asarray(point, np.float64) for point in polygon.reshape(-1, 2)]
    while len(corners) > 4:
        tips = [_tip(corners, n) for n in range(len(corners))]
        added = [_area(corners[n], tip, corners[(n + 1) % len(corners)]) for n, tip in enumerate(tips)]
        least = int(np.argmin(added))
        tip = tips[least]
        if tip is None:
            return _clockwise(box)
        corners[least] = tip
        del corners[(least + 1) % len(corners)]
    return _clockwise(np.array(corners) if len(corners) == 4 else box)


def _tip(corners: list[NDArray[np.float64]], side: int) -> NDArray[np.float64] | None:
    """Where the neighbours of a side meet beyond it; None where they don't."""
    before, begin = corners[side - 1], corners[side]
    end, behind = corners[(side + 1) % len(corners)], corners[(side + 2) % len(corners)]
    along, back = begin - before, end - behind
    turn = along[0] * back[1] - along[1] * back[0]
    if abs(turn) < 1e-9:
        return None
    reach = ((behind - before)[0] * back[1] - (behind - before)[1] * back[0]) / turn
    return before + reach * along if reach >= 1 else None


def _area(begin: NDArray[np.float64], tip: NDArray[np.float64] | None, end: NDArray[np.float64]) -> float:
    if tip is None:
        return float("inf")
    x, y = tip - begin, end - begin
    return abs(float(x[0] * y[1] - x[1] * y[0])) / 2


def _clockwise(quad: NDArray[np.float64] | NDArray[np.float32]) -> Quad:
    turned = quad if cv2.contourArea(quad.astype(np.float32), True) >= 0 else quad[::-1]
    return np.asarray(turned, np.float32)
