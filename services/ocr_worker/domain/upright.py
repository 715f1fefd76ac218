"""Which way up a page is.

When most of the text runs up or down, the page lies on its side. Whether it stands on its head the recogniser
knows: it is less sure of such lines. Only then it reads some of them the other way round, and what it is
surer of is right. The network for this that comes with rapidocr would have to be asked about every page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ocr_worker.domain.detection import Boxes, run_upright
from ocr_worker.domain.engine import PageImage
from ocr_worker.domain.recognition import LineImage, Recognised

# Mean confidence from which on a page is taken as it is. Clean pages have 0.97 and more, pages on their head
# less than 0.85.
_SURE: Final = 0.9

# Lines that are read the other way round; the longest, since a short one may read alike both ways (SOS).
_ASKED: Final = 8


def lies_on_its_side(boxes: Boxes) -> bool:
    """Whether more text runs up or down than across, by length."""
    lengths = np.linalg.norm(boxes - np.roll(boxes, -1, axis=1), axis=2).max(axis=1)
    upright = run_upright(boxes)
    return bool(lengths[upright].sum() > lengths[~upright].sum())


def is_on_its_head(
    lines: Sequence[LineImage],
    texts: Sequence[Recognised],
    read: Callable[[Sequence[LineImage]], Sequence[Recognised]],
) -> bool:
    """Whether the page is upside down. lines: all of it. texts: what was read of them."""
    if not lines or _sureness(texts) >= _SURE:
        return False
    asked = sorted(range(len(lines)), key=lambda at: -lines[at].shape[1])[:_ASKED]
    other_way = read([np.ascontiguousarray(lines[at][::-1, ::-1]) for at in asked])
    return _sureness(other_way) > _sureness([texts[at] for at in asked])


def turned(page: PageImage, quarters: int) -> PageImage:
    """The page turned clockwise by so many quarters."""
    return np.ascontiguousarray(np.rot90(page, -quarters))


def turned_over(boxes: Boxes, width: int, height: int) -> Boxes:
    """The boxes of a page of that size when it is turned by two quarters: the last corners come first."""
    return np.roll(turned_back(boxes, 2, width, height), 2, axis=1)


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


def _sureness(texts: Sequence[Recognised]) -> float:
    """Mean confidence of the characters, 0 to 1."""
    characters = sum(len(text.text) for text in texts)
    return sum(text.confidence * len(text.text) for text in texts) / max(1, characters)
