"""Pictures of lines -> their text, by a network that says of every eighth pixel which character is there.

How it says so is CTC (Graves et al., Connectionist Temporal Classification, 2006): what is said several times
in a row is one character, unless blanks stand between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

# uint8 [HEIGHT, width, 3], RGB.
LineImage = NDArray[np.uint8]

HEIGHT: Final = 48

# Lines are filled up to a multiple of this, so that lines of about one width go through the network together.
_STEP: Final = 32
_TOGETHER: Final = 8

_BLANK: Final = 0

# Worn print has specks that look like the opening mark (see `letters`), but no closing one behind them.
_OPENING: Final = "¡"
_CLOSING: Final = "!"

# From which on a space is written. Spaces are narrow beside characters, and where printers leave little room
# the network prefers a blank; at 0.1, a quarter of those that were missed on receipts come back.
_SPACE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Recognised:
    """text: without spaces around. confidence: mean probability of its characters; 0 without any."""

    text: str
    confidence: float


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
    text = "".join(characters[at] for at in best[steps]).strip()
    if not text:
        return Recognised("", 0.0)
    confidence = float(probabilities[steps, best[steps]].mean())
    return Recognised(_spaced(probabilities, characters, best, steps).strip(), confidence)


def _spaced(
    probabilities: NDArray[np.float32],
    characters: Sequence[str],
    best: NDArray[np.intp],
    steps: NDArray[np.intp],
) -> str:
    """The characters, with a space also where the network only leaned to one."""
    of_space = probabilities[:, characters.index(" ")]
    text = ""
    for before, step in zip((-1, *steps), steps, strict=False):
        if before >= 0 and (between := of_space[before + 1 : step]).size and between.max() > _SPACE:
            text += " "
        text += characters[best[step]]
    return " ".join(text.split())


def _filled(width: int) -> int:
    return -(-width // _STEP) * _STEP
