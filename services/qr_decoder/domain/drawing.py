"""The picture with its codes outlined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visionmesh.drawing import Outline, outlined
from visionmesh.qr_code import QrCode


def annotated(picture: NDArray[np.uint8], codes: Sequence[QrCode]) -> Image.Image:
    """The picture, uint8 [height, width, 3] RGB, with the outline and content of each code.

    A dot marks each code's own top left corner.
    """
    return outlined(picture, [Outline(code.corners, code.content) for code in codes])
