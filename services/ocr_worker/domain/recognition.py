"""Pictures of lines -> their text, by a network that says of every eighth pixel which character is there.

How it says so is CTC (Graves et al., Connectionist Temporal Classification, 2006): what is said several times
in a row is one character, unless blanks stand between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

# uint8 [HEIGHT, width, 3], RGB.
LineImage = NDArray[np.uint8]

HEIGHT: Final = 48

# Lines are filled up to a multiple of this, so that lines of about one width go through the network together.
_STEP: Final = 32
_TOGETHER: Final = 8

# Of a picture to a step of the network.
_PIXELS: Final = 8

_BLANK: Final = 0

# Worn print has specks that look like the opening mark (see `letters`), but no closing one behind them.
_OPENING: Final = "¡"
_CLOSING: Final = "!"

# From which on a space is written. Spaces are narrow beside characters, and where printers leave little room
# the network prefers a blank; at 0.1, a quarter of those that were missed on receipts come back.
_SPACE: Final = 0.1

# A space from which on a cell of a table ends, in steps: as wide as the line is high. Of the spaces of
# running text one in a hundred is so wide, in lines that are driven out.
_GAP: Final = HEIGHT // _PIXELS


class Cell(NamedTuple):
    """A part of a line between wide gaps. left: where it begins, in pixels of the picture."""

    text: str
    left: float


@dataclass(frozen=True, slots=True)
class Recognised:
    """text: without spaces around. confidence: mean probability of its characters; 0 without any.

    cells: of the text, from left to right. The detector finds neighbours of a row in one box now and then.
    """

    text: str
    confidence: float
    cells: tuple[Cell, ...] = ()


def recognise(session: Any, characters: Sequence[str], lines: Sequence[LineImage]) -> list[Recognised]:
    """The text of each line, in the order in which they came."""
    texts = [Recognised("", 0.0)] * len(lines)
    for batch in batches([line.shape[1] for line in lines]):
        width = _filled(max(lines[at].shape[1] for at in batch))
        fed = np.zeros((len(batch), 3, HEIGHT, width), np.float32)
        for row, at in enumerate(batch):
            line = lines[at]
            fed[row, :, :, : line.shape[1]] = cv2.dnn.blobFromImage(
                line, 1 / 127.5, mean=(127.5, 127.5, 127.5), swapRB=True
            )[0]
        for at, probabilities in zip(batch, session.run(None, {"x": fed})[0], strict=True):
            texts[at] = decoded(probabilities, characters)
    return texts


def batches(widths: Sequence[int]) -> Iterator[list[int]]:
    """Which lines go through the network together: such as are filled up to the same width."""
    batch: list[int] = []
    for at in sorted(range(len(widths)), key=widths.__getitem__):
        if batch and (len(batch) == _TOGETHER or _filled(widths[batch[0]]) != _filled(widths[at])):
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def decoded(probabilities: NDArray[np.float32], characters: Sequence[str]) -> Recognised:
    """The text of one line. probabilities: float32 [steps, characters], the first of them CTC's blank.

    A mark that opens what nothing closes behind it is taken for a mistake, and the line read without it.
    """
    read = _said(probabilities, characters)
    _, mark, behind = read.text.rpartition(_OPENING)
    if not mark or _CLOSING in behind:
        return read
    without = probabilities.copy()
    without[:, characters.index(_OPENING)] = 0
    return _said(without, characters)


def _said(probabilities: NDArray[np.float32], characters: Sequence[str]) -> Recognised:
    best = probabilities.argmax(axis=1)
    said = best != _BLANK
    said[1:] &= best[1:] != best[:-1]
    steps = np.flatnonzero(said)
    words = list(_words(probabilities, characters, best, steps))
    if not words:
        return Recognised("", 0.0)
    confidence = float(probabilities[steps, best[steps]].mean())
    return Recognised(" ".join(word.text for word in words), confidence, tuple(_cells(words)))


class _Word(NamedTuple):
    """first, last: steps at which it is said."""

    text: str
    first: int
    last: int


def _words(
    probabilities: NDArray[np.float32],
    characters: Sequence[str],
    best: NDArray[np.intp],
    steps: NDArray[np.intp],
) -> Iterator[_Word]:
    """What stands between spaces, also between such as the network only leaned to."""
    of_space = probabilities[:, characters.index(" ")]
    ends = np.append(np.flatnonzero(np.diff(best)), len(best) - 1)
    word: _Word | None = None
    before = 0
    for step in map(int, steps):
        character, last = characters[best[step]], int(ends[np.searchsorted(ends, step)])
        if word and (character.isspace() or of_space[before + 1 : step].max(initial=0) > _SPACE):
            yield word
            word = None
        if not character.isspace():
            word = (
                word._replace(text=word.text + character, last=last) if word else _Word(character, step, last)
            )
        before = step
    if word:
        yield word


def _cells(words: Sequence[_Word]) -> Iterator[Cell]:
    left, texts = 0.0, [words[0].text]
    for before, word in pairwise(words):
        if word.first - before.last > _GAP:
            yield Cell(" ".join(texts), left)
            left, texts = (before.last + 1 + word.first) / 2 * _PIXELS, []
        texts.append(word.text)
    yield Cell(" ".join(texts), left)


def _filled(width: int) -> int:
    return -(-width // _STEP) * _STEP
