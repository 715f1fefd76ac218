"""Character error rates: what was read against what is there.

An error is a character to insert, to delete or to replace (Levenshtein distance); the rate is errors by
characters that are there. Runs of white space count as one space.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Of a line that was read: what must lie inside of a true one for being part of it.
INSIDE = 0.5


class Box(NamedTuple):
    """Sides in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @staticmethod
    def around(points: Sequence[Sequence[float]]) -> Box:
        across, down = [point[0] for point in points], [point[1] for point in points]
        return Box(min(across), min(down), max(across), max(down))


class Line(NamedTuple):
    """A line of text, or a word of it."""

    text: str
    box: Box


class Errors(NamedTuple):
    """errors: characters that are wrong. characters: that are there."""

    errors: int
    characters: int

    def __add__(self, other: object) -> Errors:
        assert isinstance(other, Errors)
        return Errors(self.errors + other.errors, self.characters + other.characters)

    @property
    def rate(self) -> float:
        return self.errors / self.characters


def in_order(true: Sequence[str], read: Sequence[str]) -> Errors:
    """Of the whole text, lines one after another."""
    there = plain(" ".join(true))
    return Errors(distance(there, plain(" ".join(read))), len(there))


def matched(true: Sequence[Line], read: Sequence[Line]) -> Errors:
    """Of each true line by itself, in any order, beside what was read inside of it from left to right.

    What was read elsewhere is no error, since the true lines of receipts are not complete.
    """
    parts: list[list[Line]] = [[] for _ in true]
    for line in read:
        shared = [_shared(line.box, other.box) for other in true]
        if shared and max(shared) >= INSIDE:
            parts[int(np.argmax(shared))].append(line)
    errors = Errors(0, 0)
    for line, found in zip(true, parts, strict=True):
        ordered = sorted(found, key=lambda part: part.box.left)
        errors += in_order([line.text], [part.text for part in ordered])
    return errors


def distance(one: str, other: str) -> int:
    """Levenshtein's, a row of the table at a time."""
    codes = np.array([ord(character) for character in other], np.int64)
    steps = np.arange(len(codes) + 1)
    row = steps.copy()
    for number, character in enumerate(one, start=1):
        # Insertions depend on the left neighbour in the same row: the running minimum of what lies before.
        replaced = np.minimum(row[:-1] + (codes != ord(character)), row[1:] + 1)
        row = np.minimum.accumulate(np.concatenate(((number,), replaced)) - steps) + steps
    return int(row[-1])


def plain(text: str) -> str:
    return " ".join(text.split())


def receipt(path: Path) -> list[Line]:
    """The true lines of a receipt of SROIE: eight coordinates and the text, which may have commas too."""
    lines = []
    for row in csv.reader(path.read_text("utf-8", "replace").splitlines(), quoting=csv.QUOTE_NONE):
        if len(row) > 8:
            numbers = [float(value) for value in row[:8]]
            points = list(zip(numbers[::2], numbers[1::2], strict=True))
            lines.append(Line(",".join(row[8:]), Box.around(points)))
    return lines


def _shared(read: Box, true: Box) -> float:
    """Which part of what was read lies inside of a true line, 0 to 1."""
    across = min(read.right, true.right) - max(read.left, true.left)
    down = min(read.bottom, true.bottom) - max(read.top, true.top)
    area = (read.right - read.left) * (read.bottom - read.top)
    return max(across, 0) * max(down, 0) / area if area > 0 else 0.0
