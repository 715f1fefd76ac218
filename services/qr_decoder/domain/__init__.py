"""Picture -> contents of its QR codes: the pure work.

`read` is the whole of it; `decode` makes the picture of a file's bytes first. What is where:

* `cascade`: levels, profiles, budget, the rule for stopping
* `transforms`: the strategies, pictures made from pictures
* `decoders`: zxing-cpp, zbar, OpenCV, and how the latter two are verified; `barcodes`: of zxing-cpp's codes
* `finders`, `outlines`, `grid`, `symbol`, `bits`: the own sampler
* `locator`: learned locators in ONNX
* `ultralight`: the profile of that name, without OpenCV
* `codes`: what a decoder gives, what is told of a picture, and structured append messages joined
* `drawing`: the picture with its codes outlined

What needs OpenCV is loaded when it is first asked for, so that `ultralight` never loads it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from qr_decoder.domain import ultralight
from qr_decoder.domain.codes import Result
from visionmesh import images

if TYPE_CHECKING:
    from qr_decoder.domain.cascade import BUDGET, LEVELS, NUMBERS, PROFILES, UnknownLevelError, levels_of
    from qr_decoder.domain.drawing import annotated
    from qr_decoder.domain.locator import Located, Locator, locators_in

__all__ = [
    "BUDGET",
    "LEVELS",
    "NUMBERS",
    "PROFILES",
    "Located",
    "Locator",
    "Result",
    "UnknownLevelError",
    "annotated",
    "decode",
    "lacks_locators",
    "levels_of",
    "locators_in",
    "read",
]

_MODULES: Final = {
    **dict.fromkeys(("BUDGET", "LEVELS", "NUMBERS", "PROFILES", "UnknownLevelError", "levels_of"), "cascade"),
    **dict.fromkeys(("Located", "Locator", "locators_in"), "locator"),
    "annotated": "drawing",
}

# The levels that read nothing without a locator, and the sizes that they ask.
_ASKED: Final = {**{f"locator-{size}": (size,) for size in ("n", "s", "m", "l")}, "hybrid": ("s", "m")}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def decode(
    data: bytes,
    *,
    profile: str = "cascade",
    budget_ms: float = 2000.0,
    locators: Mapping[str, Locator] | None = None,
) -> Result:
    """Every code of a picture file, by its brightness. The budget begins when the picture is decoded.

    Runs native decoders on someone else's bytes, so it is made to be sent to a child process.
    Raises `Rejected` with a code of `visionmesh.images`, and `UnknownLevelError`.
    """
    return read(images.decode_grey(data), profile=profile, budget_ms=budget_ms, locators=locators)


def lacks_locators(profile: str, locators: Mapping[str, Locator]) -> bool:
    """Whether a profile asks nothing but locators that are not there, so that it can read nothing.

    Raises `UnknownLevelError`.
    """
    from qr_decoder.domain.cascade import levels_of

    levels = levels_of(profile)
    return all(level in _ASKED and locators.keys().isdisjoint(_ASKED[level]) for level in levels)


def read(
    picture: NDArray[np.uint8],
    *,
    profile: str = "cascade",
    budget_ms: float = 2000.0,
    locators: Mapping[str, Locator] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Every code of a picture, uint8 [height, width, 3] RGB upright or [height, width] grey.

    See `cascade.read`. Raises `UnknownLevelError`.
    """
    if profile == ultralight.NAME:
        return ultralight.read(images.grey(picture), budget_ms=budget_ms, clock=clock)
    from qr_decoder.domain import cascade

    return cascade.read(picture, profile=profile, budget_ms=budget_ms, locators=locators, clock=clock)
