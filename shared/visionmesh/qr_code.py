"""What is told of a QR code, from the process that reads it to the table and to users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class QrCode:
    """One code of a picture.

    content: the text; of a binary payload ISO 8859-1, while `data` holds the bytes of the symbol.
    corners: four of x and y, in pixels of the upright picture, clockwise from the code's own top left.
    symbology: `qr`, `micro_qr` or `rmqr`. level_used: the number of the level of `level`.
    rotation_angle: degrees clockwise by which the picture was turned to read it, None when it was not.
    confidence: 0.5 to 1. processing_time_ms: from the beginning of the picture until the code was read.
    parts: symbols that a structured append message was joined from, else 1.
    sequence: position (from 0), total and parity of a symbol whose message is incomplete.
    """

    content: str
    data: bytes
    corners: tuple[tuple[float, float], ...]
    decoder: str
    symbology: str
    level_used: int
    level: str
    preprocessing_applied: bool
    preprocessing: str
    rotation_angle: int | None
    confidence: float
    processing_time_ms: float
    parts: int = 1
    sequence: tuple[int, int, int] | None = None


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
        position, total, parity = code.sequence
        told["sequence"] = {"position": position, "total": total, "parity": parity}
    return told
