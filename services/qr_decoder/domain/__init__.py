"""Picture -> contents of its QR codes: the pure work.

`read` is the whole of it; `decode` makes the picture of a file's bytes first. What is where:

* `cascade`: levels, profiles, budget, the rule for stopping
* `transforms`: the strategies, pictures made from pictures
* `decoders`: zxing-cpp, zbar, OpenCV, and how the latter two are verified
* `finders`, `grid`, `symbol`: the own sampler
* `locator`: learned locators in ONNX
* `codes`: what a decoder gives, what is told of a picture, and structured append messages joined
* `drawing`: the picture with its codes outlined
"""

from __future__ import annotations

from collections.abc import Mapping

from qr_decoder.domain.cascade import BUDGET, LEVELS, NUMBERS, PROFILES, UnknownLevelError, levels_of, read
from qr_decoder.domain.codes import Result
from qr_decoder.domain.drawing import annotated
from qr_decoder.domain.locator import Located, Locator, locators_in
from visionmesh import images

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
    "levels_of",
    "locators_in",
    "read",
]


def decode(
    data: bytes,
    *,
    profile: str = "cascade",
    budget_ms: float = BUDGET,
    locators: Mapping[str, Locator] | None = None,
) -> Result:
    """Every code of a picture file, by its brightness. The budget begins when the picture is decoded.

    Runs native decoders on someone else's bytes, so it is made to be sent to a child process.
    Raises `Rejected` with a code of `visionmesh.images`, and `UnknownLevelError`.
    """
    return read(images.decode_grey(data), profile=profile, budget_ms=budget_ms, locators=locators)
