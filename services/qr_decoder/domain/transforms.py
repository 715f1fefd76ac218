"""The strategies: what is done to a grey picture before a decoder sees it, each by its name.

All pure functions of uint8 [height, width]. The parameters are those that read most of the pictures that
`mesh bench qr` measures on, in neighbourhoods that scale with the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from qr_decoder.domain.codes import Grey, Quad

# Above this many pixels a side a picture is tried reduced first.
REDUCED: Final = 1280

# Beyond this many pixels a side nothing is enlarged: it would hold nothing that a decoder had missed.
_ENLARGED: Final = 1280

_ANGLES: Final = (45, 90, 180, 270)


@dataclass(frozen=True, slots=True)
class Variant:
    """A picture made from another one.

    back: float64 [3, 3], its pixels -> those of the other. angle: degrees clockwise, None when not turned.
    """

    name: str
    grey: Grey
    back: NDArray[np.float64]
    angle: int | None = None

    def original(self, corners: Quad) -> Quad:
        """Points of this picture in the other one, float32 [N, 2]."""
        return np.asarray(
            cv2.perspectiveTransform(corners[None].astype(np.float64), self.back)[0], np.float32
        )


def _same(name: str, grey: Grey) -> Variant:
    return Variant(name, grey, np.eye(3))


def _scaled(name: str, grey: Grey, width: int, height: int, interpolation: int) -> Variant:
    x, y = grey.shape[1] / width, grey.shape[0] / height
    back = np.array([[x, 0, x / 2 - 0.5], [0, y, y / 2 - 0.5], [0, 0, 1]])
    return Variant(name, cv2.resize(grey, (width, height), interpolation=interpolation), back)


def reduced(grey: Grey, limit: int = REDUCED) -> Variant:
    """At most `limit` pixels a side: halved as long as that leaves three quarters of them, then resized.

    Halving averages exactly, and costs a tenth of averaging over other factors.
    """
    if max(grey.shape) <= limit:
        return _same("raw", grey)
    small = grey
    while max(small.shape) >= 1.5 * limit and min(small.shape) > 1:
        even = small[: small.shape[0] // 2 * 2, : small.shape[1] // 2 * 2]
        small = cv2.resize(even, (even.shape[1] // 2, even.shape[0] // 2), interpolation=cv2.INTER_AREA)
    # What halving cut off at the right and below: less than a pixel of the result.
    halvings = round(max(grey.shape) / max(small.shape))
    factor = min(1.0, limit / max(small.shape))
    width, height = max(round(small.shape[1] * factor), 1), max(round(small.shape[0] * factor), 1)
    x, y = halvings * small.shape[1] / width, halvings * small.shape[0] / height
    back = np.array([[x, 0, x / 2 - 0.5], [0, y, y / 2 - 0.5], [0, 0, 1]])
    if factor < 1:
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return Variant("reduced", small, back)


def raw(grey: Grey) -> Iterator[Variant]:
    yield _same("raw", grey)


def otsu(grey: Grey) -> Iterator[Variant]:
    """One threshold for the whole picture (Otsu 1979)."""
    yield _same("otsu", cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1])


def clahe(grey: Grey) -> Iterator[Variant]:
    """Contrast-limited adaptive histogram equalisation."""
    yield _same("clahe", cv2.createCLAHE(clipLimit=3.0, tileGridSize=(8, 8)).apply(grey))


def adaptive(grey: Grey) -> Iterator[Variant]:
    """A threshold for each neighbourhood."""
    window = max(15, max(grey.shape) // 24) | 1
    yield _same(
        "adaptive",
        cv2.adaptiveThreshold(grey, 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY, window, 5),
    )


def equalize(grey: Grey) -> Iterator[Variant]:
    """The histogram spread evenly, which opens up dark pictures."""
    yield _same("equalize", cv2.equalizeHist(grey))


def logarithms(grey: Grey) -> Variant:
    """The logarithm of every tone: steps in the dark become as large as those in the light."""
    table = np.log1p(np.arange(256)) * (255 / np.log(256))
    return _same("logarithms", cv2.LUT(grey, np.rint(table).astype(np.uint8)))


def sharpen(grey: Grey) -> Iterator[Variant]:
    """Unsharp mask, against a light blur."""
    yield _same("sharpen", cv2.addWeighted(grey, 2.5, cv2.GaussianBlur(grey, (0, 0), 2), -1.5, 0))


def smooth(grey: Grey) -> Iterator[Variant]:
    """A light blur, which closes the specks of a worn print."""
    yield _same("smooth", cv2.GaussianBlur(grey, (0, 0), 1.5))


def downscale(grey: Grey) -> Iterator[Variant]:
    """Smaller, by half and by half again: averages noise, print raster and screens away."""
    for factor in (2, 4):
        if min(grey.shape) >= 40 * factor:
            width, height = grey.shape[1] // factor, grey.shape[0] // factor
            yield _scaled("downscale", grey, width, height, cv2.INTER_AREA)


def upscale(grey: Grey) -> Iterator[Variant]:
    """Twice as large, for modules of a pixel or two."""
    if max(grey.shape) <= _ENLARGED:
        yield _scaled("upscale", grey, grey.shape[1] * 2, grey.shape[0] * 2, cv2.INTER_CUBIC)


def rotation(grey: Grey) -> Iterator[Variant]:
    """Turned clockwise by 45, 90, 180 and 270 degrees."""
    height, width = grey.shape
    for angle in _ANGLES:
        turn = np.vstack(
            [cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, 1.0), [0, 0, 1]]
        )
        cosine, sine = abs(turn[0, 0]), abs(turn[0, 1])
        new_width = round(height * sine + width * cosine)
        new_height = round(height * cosine + width * sine)
        turn[0, 2] += (new_width - width) / 2
        turn[1, 2] += (new_height - height) / 2
        turned = cv2.warpAffine(
            grey, turn[:2], (new_width, new_height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT,
            borderValue=255,
        )  # fmt: skip
        yield Variant("rotation", turned, np.linalg.inv(turn), angle)


Strategy = Callable[[Grey], Iterator[Variant]]

STRATEGIES: Final[dict[str, Strategy]] = {
    "raw": raw,
    "otsu": otsu,
    "clahe": clahe,
    "adaptive": adaptive,
    "equalize": equalize,
    "sharpen": sharpen,
    "smooth": smooth,
    "downscale": downscale,
    "upscale": upscale,
    "rotation": rotation,
}


def rectified(grey: Grey, corners: Quad, side: int, margin: float = 0.12) -> Variant:
    """A quadrilateral as a square of `side` pixels, with a margin around it as a share of its side."""
    frame = side * margin / (1 + 2 * margin)
    square = np.array(
        [[frame, frame], [side - frame, frame], [side - frame, side - frame], [frame, side - frame]]
    )
    onto = cv2.getPerspectiveTransform(corners.astype(np.float32), (square - 0.5).astype(np.float32))
    flat = cv2.warpPerspective(
        grey, onto, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return Variant("rectified", flat, np.linalg.inv(onto))
