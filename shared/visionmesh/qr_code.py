"""What is told of a QR code, from the process that reads it to the table and to users."""

from __future__ import annotations

from dataclasses import dataclass


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
