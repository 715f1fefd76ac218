"""The profile `ultralight`: zbar on what Pillow makes of a picture, without OpenCV, which it never loads.

It reads less than the others, in less memory. Its levels are those of the cascade by these names: `raw+zbar`,
`equalize+zbar`, `downscale+zbar`, on the picture reduced to 1280 pixels a side, until one has read a code;
the first of them looks at the whole picture too. As everywhere, a reading of zbar's counts when zxing-cpp
reads the same text in the place that zbar names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import zxingcpp
from numpy.typing import NDArray
from PIL import Image, ImageOps

from qr_decoder.domain.barcodes import corners_of, reading_of, same_text
from qr_decoder.domain.codes import Grey, Quad, Reading, Result, confidence, joined
from visionmesh.qr_code import QrCode

NAME: Final = "ultralight"

# As in `transforms`.
_REDUCED: Final = 1280
_FACTORS: Final = (2, 4)
_LEAST_SIDE: Final = 40

# Sides of the squares that a place is rectified to, and the quiet zone around it as a share of them.
_RECTIFIED: Final = (320, 160, 560)
_MARGIN: Final = 0.1

_QR: Final = zxingcpp.BarcodeFormats([zxingcpp.BarcodeFormat.QRCode])
_BINARIZERS: Final = (zxingcpp.Binarizer.LocalAverage, zxingcpp.Binarizer.GlobalHistogram)

# Square pixels of a code of version 1 with one pixel a module.
_LEAST_AREA: Final = 21 * 21


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A picture that stands for another. back: pixels of that one for each of its own, by x and y."""

    name: str
    image: Image.Image
    back: tuple[float, float]

    def original(self, corners: Quad) -> Quad:
        return np.asarray((corners + 0.5) * np.array(self.back, np.float32) - 0.5, np.float32)


def _raw(base: _Scaled, whole: _Scaled) -> Iterator[_Scaled]:
    yield base
    if whole is not base:
        yield whole


def _equalize(base: _Scaled, _: _Scaled) -> Iterator[_Scaled]:
    yield _Scaled(_after(base, "equalize"), ImageOps.equalize(base.image), base.back)


def _downscale(base: _Scaled, _: _Scaled) -> Iterator[_Scaled]:
    for factor in _FACTORS:
        if min(base.image.size) >= _LEAST_SIDE * factor:
            x, y = base.back
            yield _Scaled(_after(base, "downscale"), base.image.reduce(factor), (factor * x, factor * y))


def _after(base: _Scaled, strategy: str) -> str:
    """As the cascade names what was done to a picture."""
    return strategy if base.name == "raw" else f"{base.name}+{strategy}"


# With the numbers that the cascade has for them.
LEVELS: Final[dict[str, tuple[int, Callable[[_Scaled, _Scaled], Iterator[_Scaled]]]]] = {
    "raw+zbar": (22, _raw),
    "equalize+zbar": (26, _equalize),
    "downscale+zbar": (29, _downscale),
}


def read(grey: Grey, *, budget_ms: float, clock: Callable[[], float] = time.perf_counter) -> Result:
    """The codes of a picture, uint8 [height, width], as `cascade.read`.

    Raises ImportError where libzbar is not installed.
    """
    began = clock()
    height, width = grey.shape
    codes: list[QrCode] = []
    tried: list[str] = []
    truncated = False
    whole = _Scaled("raw", Image.fromarray(grey), (1.0, 1.0))
    base = _reduced(whole)
    for level, (number, variants) in LEVELS.items():
        if codes or truncated:
            break
        tried.append(level)
        for variant in variants(base, whole):
            readings = _by_zbar(variant.image)
            spent = (clock() - began) * 1000
            for reading in readings:
                # A code that says nothing is what noise looks like when it passes.
                if reading.content and not _known(codes, reading, variant):
                    codes.append(_code(reading, variant, level, number, spent))
            truncated = spent > budget_ms
            if truncated:
                break
    return Result(
        codes=joined(tuple(codes)),
        truncated=truncated,
        processing_time_ms=round((clock() - began) * 1000, 3),
        width=width,
        height=height,
        levels=tuple(tried),
    )


def _reduced(whole: _Scaled) -> _Scaled:
    image = whole.image
    width, height = image.size
    factor = _REDUCED / max(width, height)
    if factor >= 1:
        return whole
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    small = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return _Scaled("reduced", small, (width / size[0], height / size[1]))


def _by_zbar(image: Image.Image) -> list[Reading]:
    from pyzbar import pyzbar

    try:
        found = pyzbar.decode(image, symbols=[pyzbar.ZBarSymbol.QRCODE])
    # pyzbar knows no corners of the whole of a structured append message.
    except ValueError:
        return []
    readings = []
    for each in found:
        quad = np.array([(point.x, point.y) for point in each.polygon], np.float32)
        reading = _confirmed(image, quad, each.data) if abs(_area(quad)) >= _LEAST_AREA else None
        if reading is not None:
            readings.append(reading)
    return readings


def _confirmed(image: Image.Image, polygon: Quad, data: bytes) -> Reading | None:
    """What zxing-cpp reads in the place that zbar names, if it is what zbar read there."""
    quad = polygon if len(polygon) == 4 else _box(polygon)
    if _area(quad) < 0:
        quad = quad[::-1]
    for side in _RECTIFIED:
        onto = _perspective(side, quad)
        flat = image.transform(
            (side, side), Image.Transform.PERSPECTIVE, onto.ravel()[:8].tolist(),
            Image.Resampling.BILINEAR, fillcolor=255,
        )  # fmt: skip
        for binarizer in _BINARIZERS:
            for barcode in zxingcpp.read_barcodes(
                np.asarray(flat), formats=_QR, binarizer=binarizer, text_mode=zxingcpp.TextMode.Plain
            ):
                if same_text(barcode.text, data):
                    return reading_of(barcode, _moved(corners_of(barcode), onto), "zbar", "qr")
    return None


def _perspective(side: int, quad: Quad) -> NDArray[np.float64]:
    """Float64 [3, 3]: a square of so many pixels, with a margin, onto a quadrilateral."""
    low, high = side * _MARGIN, side * (1 - _MARGIN)
    square = ((low, low), (high, low), (high, high), (low, high))
    rows, values = [], []
    for (x, y), (u, v) in zip(square, quad.tolist(), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0], 1.0).reshape(3, 3)


def _moved(points: Quad, by: NDArray[np.float64]) -> Quad:
    moved = np.column_stack([points.astype(np.float64), np.ones(len(points))]) @ by.T
    return np.asarray(moved[:, :2] / moved[:, 2:], np.float32)


def _box(polygon: Quad) -> Quad:
    (left, top), (right, bottom) = polygon.min(axis=0), polygon.max(axis=0)
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)


def _area(polygon: Quad) -> float:
    """In square pixels; negative when the corners run anticlockwise, which zxing-cpp takes as mirrored."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 if len(polygon) > 2 else 0.0


def _known(codes: list[QrCode], reading: Reading, variant: _Scaled) -> bool:
    """The same content in the same place."""
    middle = variant.original(reading.corners).mean(axis=0)
    return any(
        code.content == reading.content
        and bool(
            (middle >= np.min(code.corners, axis=0)).all() and (middle <= np.max(code.corners, axis=0)).all()
        )
        for code in codes
    )


def _code(reading: Reading, variant: _Scaled, level: str, number: int, spent: float) -> QrCode:
    return QrCode(
        content=reading.content,
        data=reading.data,
        corners=tuple((round(float(x), 2), round(float(y), 2)) for x, y in variant.original(reading.corners)),
        decoder=reading.decoder,
        symbology=reading.symbology,
        level_used=number,
        level=level,
        preprocessing_applied=variant.name != "raw",
        preprocessing=variant.name,
        rotation_angle=None,
        confidence=confidence(reading.unused),
        processing_time_ms=round(spent, 3),
        sequence=reading.sequence,
    )
