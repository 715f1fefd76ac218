"""Boxes of a page -> the order in which people read them, and the text in that order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from visionmesh.ocr_document import TextLine

# Of the lower of two boxes' heights: what they must share to stand in one row.
_SAME_ROW: Final = 0.5


def text_of(lines: Sequence[TextLine]) -> str:
    """The text of lines in reading order: a line feed between rows, a space between cells of a row."""
    text = ""
    for at, line in enumerate(lines):
        if at:
            text += " " if _follows_in_row(lines[at - 1], line) else "\n"
        text += line.text
    return text


def _follows_in_row(before: TextLine, line: TextLine) -> bool:
    left, top, right, bottom = _bounds(before)
    next_left, next_top, _, next_bottom = _bounds(line)
    shared = min(bottom, next_bottom) - max(top, next_top)
    lower = min(bottom - top, next_bottom - next_top)
    return next_left > (left + right) / 2 and shared > _SAME_ROW * lower


def _bounds(line: TextLine) -> tuple[float, float, float, float]:
    """Left, top, right, bottom."""
    across = [x for x, _ in line.polygon]
    down = [y for _, y in line.polygon]
    return min(across), min(down), max(across), max(down)
