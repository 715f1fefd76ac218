"""The picture with its codes outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from qr_decoder.domain.codes import Code

_OUTLINE: Final = (0, 170, 0)
_FIRST_CORNER: Final = (220, 0, 0)

# Characters of a content that are written beside its code.
_LABEL: Final = 40


def annotated(picture: NDArray[np.uint8], codes: Sequence[Code]) -> Image.Image:
    """The picture, uint8 [height, width, 3] RGB, with the outline and content of each code.

    A dot marks each code's own top left corner.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    width = max(2, max(image.size) // 400)
    for code in codes:
        draw.polygon([*code.corners], outline=_OUTLINE, width=width)
        x, y = code.corners[0]
        draw.ellipse((x - 2 * width, y - 2 * width, x + 2 * width, y + 2 * width), fill=_FIRST_CORNER)
        label = " ".join(code.content.split())
        text = label if len(label) <= _LABEL else label[: _LABEL - 3] + "..."
        # Pillow's own font; what it has no shape for becomes a box, and nothing fails.
        bottom = max(corner[1] for corner in code.corners) + 2 * width
        left = min(corner[0] for corner in code.corners)
        size = max(12.0, max(image.size) / 60)
        box = draw.textbbox((left, bottom), text, font_size=size)
        draw.rectangle(box, fill=(255, 255, 255))
        draw.text((left, bottom), text, fill=_OUTLINE, font_size=size)
    return image
