"""What a picture's codes are told as."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from visionmesh.qr_code import Place, QrCode, Symbology

Grey = NDArray[np.uint8]
Quad = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reading:
    """One code as a decoder gives it, in the pixels of the picture that the decoder was given.

    content: the text. data: the bytes that the symbol holds, without mode and length.
    corners: float32 [4, 2], x and y, clockwise from the code's own top left corner; whole numbers are the
    centres of pixels.
    unused: the share of the error correction that was not needed, 0 to 1.
    """

    content: str
    data: bytes
    corners: Quad
    decoder: str
    symbology: Symbology = "qr"
    unused: float = 0.0
    sequence: Place | None = None

    def at(self, corners: Quad) -> Reading:
        """The same code elsewhere."""
        return replace(self, corners=corners)


@dataclass(frozen=True, slots=True)
class Result:
    """What was read of a picture.

    codes: in the order of reading, from top to bottom and left to right within a level.
    truncated: whether the budget ended before the levels did. levels: those that were begun, in order.
    width, height: of the upright picture.
    """

    codes: tuple[QrCode, ...]
    truncated: bool
    processing_time_ms: float
    width: int
    height: int
    levels: tuple[str, ...] = field(default=())


# Half of the confidence is the proof by error correction.
_PROVEN: Final = 0.5


def confidence(unused: float) -> float:
    """0.5 to 1, from the share of the error correction that was not needed."""
    return round(_PROVEN + (1 - _PROVEN) * min(max(unused, 0.0), 1.0), 3)


def joined(codes: tuple[QrCode, ...]) -> tuple[QrCode, ...]:
    """The codes with complete structured append messages as one code each.

    A message stands where its first symbol stood; its corners are those symbol's. What several symbols of one
    place say more than once counts once. Messages that lack a symbol stay apart, each with its `sequence`.
    """
    groups: dict[tuple[int, int], dict[int, QrCode]] = {}
    for code in codes:
        if code.sequence is not None:
            group = groups.setdefault((code.sequence.total, code.sequence.parity), {})
            group.setdefault(code.sequence.position, code)
    found: list[QrCode] = []
    done: set[tuple[int, int]] = set()
    for code in codes:
        if code.sequence is None:
            found.append(code)
            continue
        key = (code.sequence.total, code.sequence.parity)
        group = groups[key]
        if len(group) < code.sequence.total:
            found.append(code)
        elif key not in done:
            done.add(key)
            found.append(_message([group[n] for n in sorted(group)]))
    return tuple(found)


def _message(parts: list[QrCode]) -> QrCode:
    weakest = min(parts, key=lambda part: part.confidence)
    latest = max(parts, key=lambda part: part.level_used)
    return replace(
        parts[0],
        content="".join(part.content for part in parts),
        data=b"".join(part.data for part in parts),
        confidence=weakest.confidence,
        level_used=latest.level_used,
        level=latest.level,
        processing_time_ms=max(part.processing_time_ms for part in parts),
        parts=len(parts),
        sequence=None,
    )
