"""What is measured in a picture of the camera: brightness, sharpness, and where the laser spot is.

All three work on one grey picture, which nobody changes, so that they can run at once; sharpness, which takes
longest, in as many parts as there are threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]

# Of some values: how many, their sum, the sum of their squares.
Sums = tuple[int, float, float]

# A laser overexposes what it hits. At least so bright, and so much brighter than the picture is elsewhere.
_LASER_BRIGHTNESS: Final = 230
_LASER_CONTRAST: Final = 50.0

# Smaller is a hot pixel; larger, as a share of the picture, is a lamp or the sky.
_LASER_LEAST_PX: Final = 4
_LASER_LARGEST_SHARE: Final = 0.01

# A spot is about as wide as it is high, and fills its box (a disc: 0.785); an edge or a reflex does not.
_LASER_LONGEST: Final = 3.0
_LASER_LEAST_FILL: Final = 0.4

# Of a picture with more bright places than these, the largest are looked at.
_LASER_CANDIDATES: Final = 64

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
    return variance([laplacian_sums(grey, 0, len(grey))])


def laplacian_sums(grey: Grey, top: int, bottom: int) -> Sums:
    """What `variance` needs of the rows from `top` to `bottom`: each thread can have some of them."""
    above = max(0, top - 1)
    # 16 bits hold every value that the 3 x 3 kernel can give, at a quarter of the memory of doubles.
    laplacian = cv2.Laplacian(grey[above : bottom + 1], cv2.CV_16S)[top - above : bottom - above]
    # Half the time of OpenCV's own mean and deviation.
    return laplacian.size, float(cv2.sumElems(laplacian)[0]), float(cv2.norm(laplacian, cv2.NORM_L2SQR))


def variance(parts: Sequence[Sums]) -> float:
    """Of all the values whose sums these are."""
    count = sum(part[0] for part in parts)
    mean = sum(part[1] for part in parts) / count
    return sum(part[2] for part in parts) / count - mean**2


def rows_of(height: int, parts: int) -> list[tuple[int, int]]:
    """The rows of a picture in so many parts: from, to."""
    edges = [height * number // parts for number in range(parts + 1)]
    return list(itertools.pairwise(edges))


def laser(grey: Grey) -> Laser | None:
    """The largest bright round spot, or None."""
    if luminosity(grey) + _LASER_CONTRAST > _LASER_BRIGHTNESS:
        return None
    _, bright = cv2.threshold(grey, _LASER_BRIGHTNESS - 1, 255, cv2.THRESH_BINARY)
    # A picture is dark but for a few spots: following their edges takes a hundredth of the time of labelling
    # every pixel.
    edges, _ = cv2.findContours(bright, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    boxes = sorted(((*cv2.boundingRect(edge), edge) for edge in edges), key=_box_area, reverse=True)
    spots = (_spot(grey, bright, *box) for box in boxes[:_LASER_CANDIDATES])
    return max(filter(None, spots), key=lambda spot: spot.area, default=None)


def _box_area(box: tuple[int, int, int, int, Any]) -> int:
    return box[2] * box[3]


def _spot(
    grey: Grey, bright: Grey, left: int, top: int, width: int, height: int, edge: NDArray[np.int32]
) -> Laser | None:
    """The spot within an edge, if it is one."""
    if max(width, height) > _LASER_LONGEST * min(width, height):
        return None
    rows, columns = slice(top, top + height), slice(left, left + width)
    within = np.zeros((height, width), np.uint8)
    cv2.drawContours(within, [edge], 0, 1, cv2.FILLED, offset=(-left, -top))
    weights = np.where((within > 0) & (bright[rows, columns] > 0), grey[rows, columns], 0).astype(np.float64)
    area = int(np.count_nonzero(weights))
    if not (_LASER_LEAST_PX <= area <= _LASER_LARGEST_SHARE * grey.size):
        return None
    if area < _LASER_LEAST_FILL * width * height:
        return None
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
