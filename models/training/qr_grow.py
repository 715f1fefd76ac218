"""A wider locator that begins as a narrower, trained one: it says the same, and learns on from there.

After Net2Net (Chen and others, arXiv:1511.05641), with zeros where it repeats channels: what is new of a
layer is drawn as in a new net, but nothing that was there listens to it yet, and blocks that were not there
add nothing yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.qr_net import Width

# Of a convolution: where it stands, and whether it is the last one of a block.
_Place = tuple[str, int, int]


def grow(net: Any, width: Width, wider: Any, new_width: Width) -> None:
    """Gives a new net of `new_width` what `net`, of `width`, has learned; no side may be narrower."""
    numbers = {place: number for number, place in enumerate(_places(width))}
    for number, place in enumerate(_places(new_width)):
        kernel = wider.get_layer(f"conv{number}")
        normalisation = wider.get_layer(f"norm{number}")
        if place in numbers:
            (known,) = net.get_layer(f"conv{numbers[place]}").get_weights()
            kernel.set_weights([_grown(known, kernel.get_weights()[0])])
            learned = net.get_layer(f"norm{numbers[place]}").get_weights()
            normalisation.set_weights(
                [_over(old, new) for old, new in zip(learned, normalisation.get_weights(), strict=True)]
            )
        elif place[2] == 1:
            gamma, beta, *statistics = normalisation.get_weights()
            normalisation.set_weights([np.zeros_like(gamma), np.zeros_like(beta), *statistics])
    known, bias = net.get_layer("head").get_weights()
    head = wider.get_layer("head")
    head.set_weights([_grown(known, head.get_weights()[0]), bias])


def _places(width: Width) -> Iterator[_Place]:
    """Of the convolutions of `qr_net.build`, in the order in which it makes them."""
    yield "stem", 0, 0
    yield "stem", 1, 0
    yield from _blocks("down 8", width.down[0])
    yield "to 16", 0, 0
    yield from _blocks("down 16", width.down[1])
    yield "to 32", 0, 0
    yield from _blocks("down 32", width.down[2])
    yield "back to 16", 0, 0
    yield from _blocks("up 16", width.up[0])
    yield "back to 8", 0, 0
    yield from _blocks("up 8", width.up[1])


def _blocks(stage: str, count: int) -> Iterator[_Place]:
    for number in range(count):
        yield stage, number, 0
        yield stage, number, 1


def _grown(known: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """Of kernels [height, width, in, out]."""
    inputs, outputs = known.shape[2:]
    grown = new.copy()
    grown[..., :outputs] = 0
    grown[:, :, :inputs, :outputs] = known
    return grown


def _over(known: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    grown = new.copy()
    grown[: len(known)] = known
    return grown
