"""What is measured in a picture of the camera: brightness, sharpness, and where the laser spot is.

All three work on one grey picture, which nobody changes, so that they can run at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]

# A laser overexposes what it hits. At least so bright, and so much brighter than the picture is elsewhere.
_LASER_BRIGHTNESS: Final = 230
_LASER_CONTRAST: Final = 50.0

# Smaller is a hot pixel; larger, as a share of the picture, is a lamp or the sky.
_LASER_LEAST_PX: Final = 4
_LASER_LARGEST_SHARE: Final = 0.01

# A spot is about as wide as it is high, and fills its box (a disc: 0.785); an edge or a reflex does not.
_LASER_LONGEST: Final = 3.0
_LASER_LEAST_FILL: Final = 0.4

# For telling that the scene changed: small enough that noise averages out, large enough for a hand to show.
_SCENE: Final = (64, 48)


@dataclass(frozen=True, slots=True)
class Laser:
    """A spot. x, y: its centre in pixels from the upper left corner, weighted by brightness. area: pixels."""

    x: float
    y: float
    area: float


def grey_of(picture: NDArray[np.uint8]) -> Grey:
    """Brightness of a picture [height, width, 3] in OpenCV's order of channels; a grey one as it is."""
    if picture.ndim == 2:
        return picture
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))


def luminosity(grey: Grey) -> float:
    """Mean brightness, 0 to 255."""
    return float(cv2.mean(grey)[0])


def sharpness(grey: Grey) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al., ICPR 2000): small of a blurred picture."""
    # 16 bits hold every value that the 3 x 3 kernel can give, at a quarter of the memory of doubles.
    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    return float(deviation[0][0]) ** 2


def laser(grey: Grey) -> Laser | None:
    """The largest bright round spot, or None."""
    if luminosity(grey) + _LASER_CONTRAST > _LASER_BRIGHTNESS:
        return None
    _, bright = cv2.threshold(grey, _LASER_BRIGHTNESS - 1, 255, cv2.THRESH_BINARY)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(bright, connectivity=8)
    largest = _LASER_LARGEST_SHARE * grey.size
    spots = [
        number
        for number in range(1, count)
        if _LASER_LEAST_PX <= boxes[number, cv2.CC_STAT_AREA] <= largest and _is_round(boxes[number])
    ]
    if not spots:
        return None
    best = max(spots, key=lambda number: int(boxes[number, cv2.CC_STAT_AREA]))
    left, top, width, height, area = (int(number) for number in boxes[best])
    within = labels[top : top + height, left : left + width] == best
    weights = np.where(within, grey[top : top + height, left : left + width], 0).astype(np.float64)
    total = weights.sum()
    return Laser(
        x=left + float((weights.sum(axis=0) * np.arange(width)).sum() / total),
        y=top + float((weights.sum(axis=1) * np.arange(height)).sum() / total),
        area=float(area),
    )


def scene_of(grey: Grey) -> Grey:
    """The picture as a small one, to compare with another by `change`."""
    return np.asarray(cv2.resize(grey, _SCENE, interpolation=cv2.INTER_AREA))


def change(one: Grey, other: Grey) -> float:
    """How different two scenes are: mean absolute difference, 0 to 255."""
    return float(cv2.norm(one, other, cv2.NORM_L1)) / one.size


def _is_round(box: NDArray[np.int32]) -> bool:
    _, _, width, height, area = (int(number) for number in box)
    return max(width, height) <= _LASER_LONGEST * min(width, height) and (
        area >= _LASER_LEAST_FILL * width * height
    )
