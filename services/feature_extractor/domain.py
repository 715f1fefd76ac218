"""Picture -> 20 descriptors: the pure work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from visionmesh import images

# The child process that decodes imports this module, and has no use for ONNX Runtime.
if TYPE_CHECKING:
    from visionmesh.model_store import Model

# Width and height of what the net looks at. CIFAR-10, on which it was trained, has this size.
SIDE: Final = 32

# Activations of one run stay below 20 MB at this size; more pictures at once are no faster on one core.
_BATCH: Final = 64


def prepare(data: bytes) -> NDArray[np.uint8]:
    """The bytes of a picture file -> what the net looks at, uint8 [32, 32, 3] RGB.

    Runs a native decoder on someone else's bytes, so it is made to be sent to a child process.
    Raises `Rejected` with a code of `visionmesh.images`.
    """
    return images.decode_to(data, SIDE)


class Extractor:
    """Turns prepared pictures into descriptors with one model.

    Raises ValueError when the model is no extractor.
    """

    def __init__(self, model: Model) -> None:
        if model.kind != "extractor":
            raise ValueError(f"{model.address} is a {model.kind}, not an extractor")
        self.model = model

    def extract(self, pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Descriptors float32 [N, 20] of N pictures, each uint8 [32, 32, 3] RGB.

        Each of the descriptors has about zero mean and unit variance over natural pictures.
        """
        found = np.empty((len(pictures), self.model.descriptor_count), np.float32)
        for start in range(0, len(pictures), _BATCH):
            batch = np.asarray(pictures[start : start + _BATCH], np.uint8)
            found[start : start + _BATCH] = self.model.run(batch)[0]
        return found


def on_the_wire(descriptors: NDArray[np.float32]) -> list[tuple[float, ...]]:
    """Descriptors float32 [N, 20] as they are published: 4 significant digits, the shortest text in JSON."""
    return [tuple(float(f"{value:.4g}") for value in row) for row in descriptors.tolist()]
