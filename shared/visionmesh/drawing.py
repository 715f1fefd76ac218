"""Pictures with what was found in them drawn over."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from visionmesh import images

_OUTLINE: Final = (0, 170, 0)
_FIRST_CORNER: Final = (220, 0, 0)

# Characters of a text that are written beside its outline.
_LABEL: Final = 40

# A picture is held three times while it is drawn on: with this many pixels in 450 MB.
LIMITS: Final = images.Limits(pixels=50_000_000)

_JPEG_QUALITY: Final = 90


@dataclass(frozen=True, slots=True)
class Outline:
    """A polygon in a picture, x and y in pixels, and what is written beside it."""

    corners: tuple[tuple[float, float], ...]
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A picture file and what is drawn on it."""

    data: bytes
    outlines: tuple[Outline, ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture file again."""

    data: bytes
    media_type: str


def outlined(picture: NDArray[np.uint8], outlines: Sequence[Outline]) -> Image.Image:
    """The picture, uint8 [height, width, 3] RGB, with each outline and its text.

    A dot marks the first corner of each.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    width = max(2, max(image.size) // 400)
    for outline in outlines:
        draw.polygon([*outline.corners], outline=_OUTLINE, width=width)
        x, y = outline.corners[0]
        draw.ellipse((x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width), fill=_FIRST_CORNER)
        label = " ".join(outline.text.split())
        text = label if len(label) <= _LABEL else label[: _LABEL - 3] + "..."
        # Pillow's own font; what it has no shape for becomes a box, and nothing fails.
        bottom = max(corner[1] for corner in outline.corners) + 2 * width
        left = min(corner[0] for corner in outline.corners)
        size = max(12.0, max(image.size) / 60)
        box = draw.textbbox((left, bottom), text, font_size=size)
        draw.rectangle(box, fill=(255, 255, 255))
        draw.text((left, bottom), text, fill=_OUTLINE, font_size=size)
    return image


def draw_on(asked: Asked) -> Drawn:
    """The upright picture with its outlines: a JPEG when the file is one, else a PNG.

    Runs a native decoder on someone else's bytes, so it is made to be sent to a child process.
    Raises `Rejected` with a code of `visionmesh.images`.
    """
    image = outlined(images.decode(asked.data, limits=LIMITS), asked.outlines)
    file = io.BytesIO()
    if images.media_type(asked.data[:64]) == "image/jpeg":
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
        return Drawn(file.getvalue(), "image/jpeg")
    # The fastest of its compressions: somebody waits.
    image.save(file, "PNG", compress_level=1)
    return Drawn(file.getvalue(), "image/png")
