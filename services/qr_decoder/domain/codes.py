"""What a picture's codes are told as."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Quad = NDArray[np.float32]

Symbology = Literal["qr", "micro_qr", "rmqr"]


@dataclass(frozen=True, slots=True)
class Sequence:
    """The place of a symbol in a structured append message.

    position: from 0. total: symbols of the message. parity: the same in all of them.
    """

    position: int
    total: int
    parity: int


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
    sequence: Sequence | None = None

    def at(self, corners: Quad) -> Reading:
        """The same code elsewhere."""
        return replace(self, corners=corners)


@dataclass(frozen=True, slots=True)
class Code:
    """One code of a picture.

    content: the text; a binary payload is shown as ISO 8859-1, and `data` holds its bytes.
    corners: x and y in pixels of the upright picture, clockwise from the code's own top left corner.
    decoder: `zxing`, `grid` (the own sampler), `zbar` or `opencv`.
    level_used: the number of the level that read it, `level` its name (the table in `cascade`).
    preprocessing_applied: whether the decoder saw anything but the grey picture, `preprocessing` what.
    rotation_angle: degrees clockwise by which the picture was turned before; None when it was not.
    confidence: 0.5 to 1; half of it is for having passed error correction at all, the rest is the share of
    the error correction that was not needed.
    processing_time_ms: from the beginning of the picture until the code was read.
    parts: of a structured append message that was joined, how many symbols; else 1.
    sequence: of a symbol whose message is incomplete.
    """

    content: str
    data: bytes
    corners: tuple[tuple[float, float], ...]
    decoder: str
    level_used: int
    level: str
    preprocessing_applied: bool
    preprocessing: str
    rotation_angle: int | None
    confidence: float
    processing_time_ms: float
    symbology: Symbology = "qr"
    parts: int = 1
    sequence: Sequence | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What was read of a picture.

    codes: in the order of reading, from top to bottom and left to right within a level.
    truncated: whether the budget ended before the levels did. levels: those that were begun, in order.
    width, height: of the upright picture.
    """

    codes: tuple[Code, ...]
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


def joined(codes: tuple[Code, ...]) -> tuple[Code, ...]:
    """The codes with complete structured append messages as one code each.

    A message stands where its first symbol stood; its corners are those symbol's. What several symbols of one
    place say more than once counts once. Messages that lack a symbol stay apart, each with its `sequence`.
    """
    groups: dict[tuple[int, int], dict[int, Code]] = {}
    for code in codes:
        if code.sequence is not None:
            group = groups.setdefault((code.sequence.total, code.sequence.parity), {})
            group.setdefault(code.sequence.position, code)
    found: list[Code] = []
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


def _message(parts: list[Code]) -> Code:
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
