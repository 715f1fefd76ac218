"""Boxes of a page -> the order in which people read them, and the text in that order.

Columns of running text are read one after another; everything else row by row. What tells the two apart is
the length of lines: a receipt's amounts stand in a column too, but nobody reads them without what is left of
them. A heading above two columns is read before them, and one between divides them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from visionmesh.ocr_document import TextLine

# Of the lower of two boxes' heights: what they must share to stand in one row.
_SAME_ROW: Final = 0.5

# Running text: this many lines in each column, the middle one of which is so much longer than high.
_COLUMN_LINES: Final = 4
_COLUMN_LENGTH: Final = 9.0

# Between columns, in heights of text.
_GUTTER: Final = 0.5

# Of all lines: those that may lie across a gutter (headings, footers).
_ACROSS: Final = 0.25

# Left, top, right, bottom of each box: float64 [n, 4].
_Bounds = NDArray[np.float64]


def reading_order(boxes: NDArray[np.float32]) -> list[int]:
    """Which box is read first, second, ... boxes: float32 [n, 4, 2], as `detection.Boxes`."""
    if not len(boxes):
        return []
    return _in_order(_levelled(boxes), list(range(len(boxes))))


def text_of(lines: Sequence[TextLine]) -> str:
    """The text of lines in reading order: a line feed between rows, a space between cells of a row."""
    text = ""
    for at, line in enumerate(lines):
        if at:
            text += " " if _follows_in_row(lines[at - 1], line) else "\n"
        text += line.text
    return text


def _levelled(boxes: NDArray[np.float32]) -> _Bounds:
    """The bounds of the boxes when the page is turned so that its lines are level."""
    along = (boxes[:, 1] - boxes[:, 0]).astype(np.float64)
    lengths = np.hypot(along[:, 0], along[:, 1])
    # The long lines know how the page lies; the box of a word leans as its letters do.
    long = lengths >= np.median(lengths)
    angle = np.median(np.arctan2(along[long, 1], along[long, 0]))
    cosine, sine = np.cos(angle), np.sin(angle)
    middles = boxes.mean(axis=1) @ np.array(((cosine, -sine), (sine, cosine)))
    halves = np.stack((lengths, np.linalg.norm(boxes[:, 3] - boxes[:, 0], axis=1)), axis=1) / 2
    return np.concatenate((middles - halves, middles + halves), axis=1)


def _in_order(bounds: _Bounds, these: list[int]) -> list[int]:
    gutter = _gutter(bounds[these])
    if gutter is None:
        return _by_rows(bounds, these)
    order: list[int] = []
    columns: tuple[list[int], list[int]] = ([], [])
    for at in sorted(these, key=lambda at: bounds[at, 1] + bounds[at, 3]):
        if _crosses(bounds[at], gutter):
            order += _columns(bounds, *columns)
            columns = ([], [])
            order.append(at)
        else:
            columns[int(bounds[at, 0] >= gutter)].append(at)
    return order + _columns(bounds, *columns)


def _columns(bounds: _Bounds, left: list[int], right: list[int]) -> list[int]:
    return (_in_order(bounds, left) if left else []) + (_in_order(bounds, right) if right else [])


def _gutter(bounds: _Bounds) -> float | None:
    """Where the page is divided into two columns of running text, if it is: the x that fewest lines cross."""
    left, right = bounds[:, 0], bounds[:, 2]
    height = float(np.median(bounds[:, 3] - bounds[:, 1]))
    best: tuple[int, float] | None = None
    for x in np.unique(left):
        at = float(x) - _GUTTER * height / 2
        crossing = int(np.count_nonzero((left < at) & (right > at - _GUTTER * height / 2)))
        before, behind = bounds[right <= at], bounds[left >= at]
        if crossing > _ACROSS * len(bounds) or not (_is_column(before) and _is_column(behind)):
            continue
        if best is None or crossing < best[0]:
            best = crossing, at
    return None if best is None else best[1]


def _crosses(line: NDArray[np.float64], gutter: float) -> bool:
    return bool(line[0] < gutter < line[2])


def _is_column(bounds: _Bounds) -> bool:
    if len(bounds) < _COLUMN_LINES:
        return False
    lengths = (bounds[:, 2] - bounds[:, 0]) / (bounds[:, 3] - bounds[:, 1])
    return float(np.median(lengths)) >= _COLUMN_LENGTH


def _by_rows(bounds: _Bounds, these: list[int]) -> list[int]:
    """From top to bottom, and boxes that stand beside one another from left to right."""
    rows: list[list[int]] = []
    for at in sorted(these, key=lambda at: bounds[at, 1] + bounds[at, 3]):
        # A row is above all that follow, so that only the last few can still get a cell.
        beside = [row for row in rows[-3:] if all(_share_row(bounds[at], bounds[cell]) for cell in row)]
        if beside:
            beside[-1].append(at)
        else:
            rows.append([at])
    return [at for row in rows for at in sorted(row, key=lambda cell: bounds[cell, 0])]


def _share_row(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    shared = min(one[3], other[3]) - max(one[1], other[1])
    return bool(shared > _SAME_ROW * min(one[3] - one[1], other[3] - other[1]))


def _follows_in_row(before: TextLine, line: TextLine) -> bool:
    """As seen along the line before, for the page may lie on its side."""
    corners = np.array(before.polygon)
    along = corners[1] - corners[0]
    along = along / max(float(np.hypot(*along)), 1.0)
    axes = np.stack((along, (-along[1], along[0])), axis=1)
    one, other = _bounds(corners @ axes), _bounds(np.array(line.polygon) @ axes)
    return bool(other[0] > (one[0] + one[2]) / 2) and _share_row(one, other)


def _bounds(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate((points.min(axis=0), points.max(axis=0)))
