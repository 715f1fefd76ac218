"""Picture -> descriptors: the pure work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from visionmesh import images

# The child process that decodes imports this module, and has no use for ONNX Runtime.
if TYPE_CHECKING:
    from visionmesh.model_store import Model

# Width and height of what the net that is shipped looks at. CIFAR-10, on which it was trained, has this size.
SIDE: Final = 32

# Of one run: 64 pictures of CIFAR's size, or one of 224 x 224. Activations stay below 20 MB with the net that
# is shipped, and more pictures at once are no faster on one core.
_PIXELS_AT_ONCE: Final = 64 * SIDE * SIDE

_RGB: Final = 3


def prepare(data: bytes, side: int = SIDE) -> NDArray[np.uint8]:
    """The bytes of a picture file -> what a net looks at, uint8 [side, side, 3] RGB.

    Runs a native decoder on someone else's bytes, so it is made to be sent to a child process.
    Raises `Rejected` with a code of `visionmesh.images`.
    """
    return images.decode_to(data, side)


def prepare_one(asked: tuple[bytes, int]) -> NDArray[np.uint8]:
    """`prepare` of the bytes and the side: `visionmesh.isolated` calls functions of one argument."""
    return prepare(*asked)


class Extractor:
    """Turns prepared pictures into descriptors with one model.

    side: width and height of the pictures that the model takes.

    Raises ValueError when the model is no extractor.
    """

    def __init__(self, model: Model) -> None:
        if model.kind != "extractor":
            raise ValueError(f"{model.address} is a {model.kind}, not an extractor")
        self.model = model
        self.side = _side(model)

    def extract(self, pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Descriptors float32 [N, descriptor_count] of N pictures, each uint8 [side, side, 3] RGB.

        Each of the descriptors has about zero mean and unit variance over natural pictures.
        """
        at_once = max(1, _PIXELS_AT_ONCE // self.side**2)
        found = np.empty((len(pictures), self.model.descriptor_count), np.float32)
        for start in range(0, len(pictures), at_once):
            batch = np.asarray(pictures[start : start + at_once], np.uint8)
            found[start : start + at_once] = self.model.run(batch)[0]
        return found


def on_the_wire(descriptors: NDArray[np.float32]) -> list[tuple[float, ...]]:
    """Descriptors float32 [N, 20] as they are published: 4 significant digits, the shortest text in JSON."""
    return [tuple(float(f"{value:.4g}") for value in row) for row in descriptors.tolist()]


def _side(model: Model) -> int:
    """Of a graph whose input is [N, side, side, 3]."""
    match model.input_shape:
        case (_, int() as height, int() as width, channels) if height == width and channels == _RGB:
            return height
    raise ValueError(f"{model.address} takes {model.input_shape}, not square pictures [N, side, side, 3]")
