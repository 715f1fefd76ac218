"""What zxing-cpp tells of a code, as a reading."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import zxingcpp

from qr_decoder.domain import symbol
from qr_decoder.domain.codes import Quad, Reading
from visionmesh.qr_code import Place, Symbology


def corners_of(barcode: zxingcpp.Barcode) -> Quad:
    at = barcode.position
    points = (at.top_left, at.top_right, at.bottom_right, at.bottom_left)
    return np.array([(point.x, point.y) for point in points], np.float32)


def reading_of(barcode: zxingcpp.Barcode, corners: Quad, decoder: str, symbology: Symbology) -> Reading:
    return Reading(
        content=barcode.text,
        data=bytes(barcode.bytes),
        corners=corners,
        decoder=decoder,
        symbology=symbology,
        unused=float(_extra(barcode).get("UEC", 0.0)),
        sequence=_sequence(barcode) if symbology == "qr" else None,
    )


def same_text(content: str, data: bytes) -> bool:
    """Whether zbar's bytes of a text, which it converts to UTF-8, are those of a content."""
    return content.encode() == data or content.encode("latin-1", "replace") == data


def _extra(barcode: zxingcpp.Barcode) -> dict[str, Any]:
    """What zxing-cpp knows besides; UEC is the share of the error correction that was not used."""
    return cast(dict[str, Any], barcode.extra)


def _sequence(barcode: zxingcpp.Barcode) -> Place | None:
    """zxing-cpp joins nothing and keeps to itself which part of a message it read: the modules tell it."""
    modules = np.asarray(barcode.to_image(scale=1, add_quiet_zones=False)) < 128
    return symbol.sequence_of(modules)
