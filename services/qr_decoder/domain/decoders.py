"""The decoders: a grey picture in, readings out. Nothing is returned that error correction did not prove.

* zxing-cpp returns only codes whose checksum is right. Micro QR codes have so little redundancy (M1 detects
  errors and corrects none) that it sees them in noise when asked often enough; who asks for them in altered
  pictures has to ask twice (see `cascade`).
* OpenCV (`QRCodeDetector`) gives its own text even where its correction failed, so that only its modules are
  used: they are corrected and read again.
* zbar corrects, but tells neither bytes nor symbol (binary payloads are converted on the way): a reading of
  its stands only if zxing-cpp or the own sampler read the same text in the place it names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import zxingcpp

from qr_decoder.domain import grid, symbol
from qr_decoder.domain.barcodes import corners_of, reading_of, same_text
from qr_decoder.domain.codes import Grey, Quad, Reading
from qr_decoder.domain.finders import Triple
from qr_decoder.domain.transforms import rectified
from visionmesh.qr_code import Symbology

_SYMBOLOGIES: Final[dict[zxingcpp.BarcodeFormat, Symbology]] = {
    zxingcpp.BarcodeFormat.QRCode: "qr",
    zxingcpp.BarcodeFormat.QRCodeModel1: "qr",
    zxingcpp.BarcodeFormat.QRCodeModel2: "qr",
    zxingcpp.BarcodeFormat.MicroQRCode: "micro_qr",
    zxingcpp.BarcodeFormat.RMQRCode: "rmqr",
}
_QR: Final = zxingcpp.BarcodeFormats([zxingcpp.BarcodeFormat.QRCode])
_FORMATS: Final = zxingcpp.BarcodeFormats(
    [zxingcpp.BarcodeFormat.QRCode, zxingcpp.BarcodeFormat.MicroQRCode, zxingcpp.BarcodeFormat.RMQRCode]
)

BINARIZERS: Final = {
    "local": zxingcpp.Binarizer.LocalAverage,
    "global": zxingcpp.Binarizer.GlobalHistogram,
}

# Square pixels of a code of version 1 with one pixel a module; without a place zxing-cpp says (0, 0).
_LEAST_AREA: Final = 21 * 21

# Sides of the squares that a located code is rectified to.
_RECTIFIED: Final = (320, 160, 560)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a decoder saw. unread: where it found a code that it could not correct, quadrilaterals."""

    readings: tuple[Reading, ...]
    unread: tuple[Quad, ...] = ()


Decoder = Callable[[Grey], Seen]


def zxing(grey: Grey, binarizer: str = "local") -> Seen:
    """zxing-cpp: QR, Micro QR and rMQR, inverted, mirrored and at any angle."""
    found = zxingcpp.read_barcodes(
        np.ascontiguousarray(grey),
        formats=_FORMATS,
        binarizer=BINARIZERS[binarizer],
        text_mode=zxingcpp.TextMode.Plain,
        return_errors=True,
    )
    readings, unread = [], []
    for barcode in found:
        symbology = _SYMBOLOGIES.get(barcode.format)
        if symbology is None:
            continue
        if barcode.valid:
            readings.append(reading_of(barcode, corners_of(barcode), "zxing", symbology))
        elif symbology == "qr" and cv2.contourArea(corners_of(barcode)) >= _LEAST_AREA:
            unread.append(corners_of(barcode))
    return Seen(tuple(readings), tuple(unread))


def from_symbol(found: grid.Sampled, decoder: str) -> Reading | None:
    """What a corrected symbol says. None when it says nothing that can be read."""
    dark = found.repaired.modules
    picture = np.pad(np.where(dark, 0, 255).astype(np.uint8), 4, constant_values=255)
    picture = np.ascontiguousarray(np.repeat(np.repeat(picture, 2, axis=0), 2, axis=1))
    read = zxingcpp.read_barcodes(
        picture, formats=_QR, is_pure=True, text_mode=zxingcpp.TextMode.Plain, try_invert=False
    )
    if not read:
        return None
    return Reading(
        content=read[0].text,
        data=bytes(read[0].bytes),
        corners=found.corners,
        decoder=decoder,
        unused=1.0 - found.repaired.used,
        sequence=found.repaired.sequence,
    )


def sampler(grey: Grey, triple: Triple) -> Reading | None:
    """The own sampler, on three finder patterns."""
    found = grid.read_triple(grey, triple)
    return None if found is None else from_symbol(found, "grid")


def worn(grey: Grey, frame: grid.Frame) -> Reading | None:
    """The own sampler bit by bit, on a code whose version and place are known."""
    found = grid.read_worn(grey, frame)
    return None if found is None else from_symbol(found, "grid")


def located(grey: Grey, corners: Quad) -> Reading | None:
    """A code whose four corners are roughly known: rectified and read by zxing-cpp and the own sampler."""
    for side in _RECTIFIED:
        variant = rectified(grey, corners, side)
        for binarizer in BINARIZERS:
            for reading in zxing(variant.grey, binarizer).readings:
                # Micro QR codes are never located, and are read too easily in the grain of a crop.
                if reading.symbology == "qr":
                    return reading.at(variant.original(reading.corners))
    found = grid.read_quad(grey, corners)
    return None if found is None else from_symbol(found, "grid")


def opencv(grey: Grey) -> Seen:
    """OpenCV's detector and sampler; its text is not used."""
    try:
        _, _, corners, codes = cv2.QRCodeDetector().detectAndDecodeMulti(grey)
    # It fails an assertion of its own on some pictures that hold no code.
    except cv2.error:
        return Seen(())
    if corners is None:
        return Seen(())
    readings, unread = [], []
    for quad, modules in zip(corners.astype(np.float32), codes or (), strict=False):
        repaired = None if modules is None or not modules.size else symbol.repaired(modules < 128)
        reading = None
        if repaired is not None:
            version = symbol.version_of(len(repaired.modules)) or 1
            reading = from_symbol(grid.Sampled(repaired, version, quad, mirrored=False), "opencv")
        if reading is None:
            unread.append(quad)
        else:
            readings.append(reading)
    return Seen(tuple(readings), tuple(unread))


def zbar(grey: Grey) -> Seen:
    """Zbar by pyzbar, confirmed. Raises ImportError where libzbar is not installed."""
    from pyzbar import pyzbar

    try:
        found = pyzbar.decode(grey, symbols=[pyzbar.ZBarSymbol.QRCODE])
    # pyzbar knows no corners of the whole of a structured append message.
    except ValueError:
        return Seen(())
    readings, unread = [], []
    for each in found:
        quad = _four(np.array([(point.x, point.y) for point in each.polygon], np.float32))
        if quad is None:
            continue
        reading = located(grey, quad)
        if reading is not None and same_text(reading.content, each.data):
            readings.append(
                Reading(reading.content, reading.data, reading.corners, "zbar", "qr", reading.unused)
            )
        else:
            unread.append(quad)
    return Seen(tuple(readings), tuple(unread))


def _four(polygon: Quad) -> Quad | None:
    """Four corners, clockwise: zxing-cpp would take what runs the other way as mirrored."""
    if len(polygon) < 3:
        return None
    quad = polygon if len(polygon) == 4 else np.asarray(cv2.boxPoints(cv2.minAreaRect(polygon)), np.float32)
    return quad if cv2.contourArea(quad, oriented=True) > 0 else quad[::-1]


DECODERS: Final[dict[str, Decoder]] = {"zxing": zxing, "zbar": zbar, "opencv": opencv}
