"""What is told of a QR code, from the process that reads it to the table and to users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Symbology = Literal["qr", "micro_qr", "rmqr"]


class Place(NamedTuple):
    """Where a symbol stands in a structured append message.

    position: from 0. total: symbols of the message. parity: the same in all of them.
    """

    position: int
    total: int
    parity: int


@dataclass(frozen=True, slots=True)
class QrCode:
    """One code of a picture.

    content: the text; a binary payload is shown as ISO 8859-1, and `data` holds its bytes.
    corners: four of x and y, in pixels of the upright picture, clockwise from the code's own top left.
    decoder: `zxing`, `grid` (the own sampler), `zbar`, `opencv`, or the package `qreader`.
    level_used: the number of the level that read it, `level` its name.
    preprocessing_applied: whether the decoder saw anything but the grey picture, `preprocessing` what.
    rotation_angle: degrees clockwise by which the picture was turned to read it, None when it was not.
    confidence: 0.5 to 1; half of it is for having passed error correction at all, the rest is the share of
    the error correction that was not needed. `qreader` tells no more than how sure its detector was.
    processing_time_ms: from the beginning of the picture until the code was read.
    parts: symbols that a structured append message was joined from, else 1.
    sequence: of a symbol whose message is incomplete.
    """

    content: str
    data: bytes
    corners: tuple[tuple[float, float], ...]
    decoder: str
    symbology: Symbology
    level_used: int
    level: str
    preprocessing_applied: bool
    preprocessing: str
    rotation_angle: int | None
    confidence: float
    processing_time_ms: float
    parts: int = 1
    sequence: Place | None = None


def as_json(code: QrCode) -> dict[str, Any]:
    """A code as users are told of it, over HTTP and on the command line.

    bytes: in hexadecimal. parts and sequence: only of what has to do with structured append.
    """
    told: dict[str, Any] = {
        "content": code.content,
        "bytes": code.data.hex(),
        "corners": [list(corner) for corner in code.corners],
        "symbology": code.symbology,
        "decoder": code.decoder,
        "level_used": code.level_used,
        "level": code.level,
        "preprocessing_applied": code.preprocessing_applied,
        "preprocessing": code.preprocessing,
        "rotation_angle": code.rotation_angle,
        "confidence": code.confidence,
        "processing_time_ms": round(code.processing_time_ms, 1),
    }
    if code.parts > 1:
        told["parts"] = code.parts
    if code.sequence is not None:
        told["sequence"] = code.sequence._asdict()
    return told
