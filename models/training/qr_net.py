"""The net of the locator: one description, from which Keras trains it and ONNX is written.

Fully convolutional on a grey picture: three stages at strides of 8, 16 and 32 pixels, the coarser two added
back onto the finest, so that a cell of 8 pixels sees about 400 pixels around it. Residual blocks are a 3x3
convolution into few channels and a 1x1 convolution back: about as cheap as depthwise ones, and faster where
they are trained.

What a cell says (`FIELDS`): whether the middle of a code is here; how large that code is; where its corners
are; whether a corner is near, and where; whether the middle of a finder pattern is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

STRIDE = 8
# A picture's sides are multiples of this.
COARSEST = 32
# Of a cell's outputs, in this order.
FIELDS = {"middle": 1, "size": 1, "corners": 8, "near": 1, "offset": 2, "finder": 1}


@dataclass(frozen=True)
class Width:
    """Channels at each stage, channels within its blocks, and blocks on the way down and up."""

    stem: int
    channels: tuple[int, int, int]
    inner: tuple[int, int, int]
    down: tuple[int, int, int]
    up: tuple[int, int]


WIDTHS = {
    "n": Width(24, (48, 80, 96), (16, 24, 24), (2, 3, 4), (1, 2)),
    "s": Width(32, (64, 128, 160), (24, 40, 48), (2, 3, 5), (2, 2)),
    "m": Width(32, (80, 160, 208), (32, 56, 64), (2, 4, 6), (2, 3)),
    "l": Width(40, (96, 184, 208), (40, 64, 72), (3, 5, 6), (3, 3)),
}


class Layers(Protocol):
    """What a net is made of. A tensor is whatever the maker of the layers takes and gives."""

    def convolution(self, x: Any, channels: int, kernel: int, stride: int = 1, *, relu: bool = True) -> Any:
        """Without bias, then normalised. Padded so that each side shrinks by the stride exactly."""
        ...

    def add(self, x: Any, y: Any, *, relu: bool) -> Any: ...

    def doubled(self, x: Any) -> Any:
        """Every cell becomes two by two."""
        ...

    def head(self, x: Any, channels: int) -> Any:
        """A 1x1 convolution with a bias."""
        ...


def build(layers: Layers, picture: Any, width: Width) -> Any:
    """The fields of a picture of one channel, 0 to 255, at a stride of 8 pixels."""
    fine, middle, coarse = width.channels
    x = layers.convolution(picture, width.stem, 6, 4)
    x = layers.convolution(x, fine, 3, 2)
    at_8 = _blocks(layers, x, fine, width.inner[0], width.down[0])
    x = layers.convolution(at_8, middle, 2, 2)
    at_16 = _blocks(layers, x, middle, width.inner[1], width.down[1])
    x = layers.convolution(at_16, coarse, 2, 2)
    x = _blocks(layers, x, coarse, width.inner[2], width.down[2])
    x = layers.add(at_16, layers.doubled(layers.convolution(x, middle, 1, relu=False)), relu=True)
    x = _blocks(layers, x, middle, width.inner[1], width.up[0])
    x = layers.add(at_8, layers.doubled(layers.convolution(x, fine, 1, relu=False)), relu=True)
    x = _blocks(layers, x, fine, width.inner[0], width.up[1])
    return layers.head(x, sum(FIELDS.values()))


def _blocks(layers: Layers, x: Any, channels: int, inner: int, count: int) -> Any:
    for _ in range(count):
        y = layers.convolution(x, inner, 3)
        x = layers.add(x, layers.convolution(y, channels, 1, relu=False), relu=True)
    return x
