"""The readers that `qr` compares, each as a function from a picture to contents and places."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import zxingcpp
from numpy.typing import NDArray

from qr_decoder import domain, weights
from qr_decoder.domain.locator import Locator, load
from visionmesh.settings import ROOT

Picture = NDArray[np.uint8]
Found = list[tuple[str, NDArray[np.float32]]]
Reader = Callable[[Picture], Found]

_FORMATS = zxingcpp.BarcodeFormats(
    [zxingcpp.BarcodeFormat.QRCode, zxingcpp.BarcodeFormat.MicroQRCode, zxingcpp.BarcodeFormat.RMQRCode]
)


def grey(picture: Picture) -> Picture:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def ours(profile: str, locators: dict[str, Locator] | None = None) -> Reader:
    """The product: a profile, or level names."""

    def read(picture: Picture) -> Found:
        result = domain.read(picture, profile=profile, locators=locators)
        return [(code.content, np.array(code.corners, np.float32)) for code in result.codes]

    return read


def zxing(picture: Picture) -> Found:
    """zxing-cpp as it comes: local threshold, rotation, inversion and downscaling on."""
    found = []
    for barcode in zxingcpp.read_barcodes(grey(picture), formats=_FORMATS):
        at = barcode.position
        points = (at.top_left, at.top_right, at.bottom_right, at.bottom_left)
        found.append((barcode.text, np.array([(point.x, point.y) for point in points], np.float32)))
    return found


def zbar(picture: Picture) -> Found:
    """Zbar as it comes, by pyzbar."""
    from pyzbar import pyzbar

    try:
        read = pyzbar.decode(grey(picture), symbols=[pyzbar.ZBarSymbol.QRCODE])
    # pyzbar can't tell where a structured append message is.
    except ValueError:
        return []
    return [
        (each.data.decode("utf-8", "replace"), np.array([(p.x, p.y) for p in each.polygon], np.float32))
        for each in read
    ]


def opencv(picture: Picture) -> Found:
    """OpenCV's QRCodeDetector as it comes."""
    try:
        _, texts, corners, _ = cv2.QRCodeDetector().detectAndDecodeMulti(picture)
    except cv2.error:
        return []
    if corners is None:
        return []
    return [(text, quad) for text, quad in zip(texts, corners.astype(np.float32), strict=True) if text]


# What other processes took for calls, less what this one waited for them: by it `cpu` and `wall` are theirs.
_elsewhere = {"cpu": 0.0, "wall": 0.0}


def cpu() -> float:
    """Seconds of CPU of this process, and of those that readers have of their own."""
    return time.process_time() + _elsewhere["cpu"]


def wall() -> float:
    """Seconds of the clock, without the way of pictures to readers in processes of their own."""
    return time.perf_counter() + _elsewhere["wall"]


def qreader_python() -> Path | None:
    """The interpreter that has the qreader package; None when there is none."""
    named = os.environ.get("MESH_QREADER_PYTHON")
    python = Path(named) if named else ROOT / ".venv-qreader" / "bin" / "python"
    return python if (python if named else python.parents[1] / "installed").is_file() else None


# What readers are that are not what their names may be taken for.
NOTES = {
    "QReader on QRDet-n": "the qreader package with the nano file of QRDet in place of its own weights, "
    "which are not here",
    "QRDet-n as QReader": "the nano file of QRDet with QReader's way of decoding, made after the package",
}


def qreaders(qrdet: Path, folder: Path) -> dict[str, Callable[[], Reader]]:
    """QReader as nearly as it can be had; see `NOTES`. qrdet: the nano file. folder: of its own weights."""
    python = qreader_python()
    found: dict[str, Callable[[], Reader]] = {}
    if python is not None:
        for size in weights.SIZES:
            file = weights.file_of(size, folder)
            if file.is_file():
                found[f"QReader-{size}"] = partial(QReader, python, size, file)
        if not found and qrdet.is_file():
            found["QReader on QRDet-n"] = partial(QReader, python, "n", qrdet)
    return found


class QReader:
    """QReader itself, in a process of its own, which ends with this one. pid: of that process."""

    def __init__(self, python: Path, size: str, file: Path) -> None:
        """file: weights of QRDet; or its net in ONNX, which then takes the place of the package's."""
        worker = Path(__file__).parent / "peers" / "qreader_worker.py"
        sources = os.pathsep.join(str(ROOT / name) for name in ("shared", "services"))
        self._process = subprocess.Popen(
            [python, worker, size, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **weights.QUIET, "PYTHONPATH": sources},
        )
        self.pid = self._process.pid

    def __call__(self, picture: Picture) -> Found:
        began = time.process_time(), time.perf_counter()
        pictures, answers = self._process.stdin, self._process.stdout
        assert pictures is not None
        assert answers is not None
        height, width = picture.shape[:2]
        pictures.write(f"{height} {width}\n".encode())
        pictures.write(np.ascontiguousarray(picture).tobytes())
        pictures.flush()
        line = answers.readline()
        if not line:
            raise RuntimeError("QReader's process ended; what it said stands above")
        answer = json.loads(line)
        _elsewhere["cpu"] += answer["cpu"] - (time.process_time() - began[0])
        _elsewhere["wall"] += answer["wall"] - (time.perf_counter() - began[1])
        return [(text, np.array(quad, np.float32)) for text, quad in answer["found"]]


def like_qreader(path: Path) -> Reader:
    """A QRDet file through ONNX Runtime, and the decoding of QReader 3: crops through zbar, scale by scale.

    Where the package can't be run. The box and the rectified quadrilateral, at scales 1, 1/2, 2, 1/4, 3 and
    4; each as it is (of which pyzbar takes the red), inverted, and its brightness as it is, by Otsu's
    threshold, and after blurs of 5 and 7 pixels; then sharpened, likewise with a blur of 3.
    """
    locator = load("qrdet-n", path)

    def read(picture: Picture) -> Found:
        found: Found = []
        for each in locator.locate(picture):
            text = _decoded_like_qreader(picture, each.corners)
            if text is not None:
                found.append((text, each.corners))
        return found

    return read


def _decoded_like_qreader(picture: Picture, quad: NDArray[np.float32]) -> str | None:
    height, width = picture.shape[:2]
    middle = quad.mean(axis=0)
    padded = (middle + (quad - middle) * 1.1).astype(np.float32)
    left, top = np.maximum(padded.min(axis=0), 0).astype(int)
    right, bottom = np.minimum(np.ceil(padded.max(axis=0)), (width, height)).astype(int)
    crop = picture[top:bottom, left:right]
    if not crop.size:
        return None
    side = max(8, int(max(np.hypot(*(padded - np.roll(padded, 1, axis=0)).T))))
    square = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
    rectified = cv2.warpPerspective(picture, cv2.getPerspectiveTransform(padded, square), (side, side))
    for scale in (1, 0.5, 2, 0.25, 3, 4):
        for image in (crop, rectified):
            sides = [scale * each for each in image.shape[:2]]
            if scale != 1 and not all(25 < each < 1024 for each in sides):
                continue
            scaled = (
                image
                if scale == 1
                else cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            )
            plain = grey(scaled)
            sharp = grey(cv2.filter2D(scaled, -1, np.array([[-1, -1, -1], [-1, 9, -1], [-1, -1, -1]])))
            red = np.ascontiguousarray(scaled[:, :, 0])
            attempts = [red, 255 - red, plain, _otsu(plain)]
            attempts += [cv2.GaussianBlur(plain, (size, size), 0) for size in (5, 7)]
            attempts += [sharp, _otsu(sharp), cv2.GaussianBlur(sharp, (3, 3), 0)]
            for attempt in attempts:
                text = _first_by_zbar(attempt)
                if text is not None:
                    return text
    return None


def _otsu(picture: Picture) -> Picture:
    return cv2.threshold(picture, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1]


def _first_by_zbar(picture: Picture) -> str | None:
    from pyzbar import pyzbar

    try:
        read = pyzbar.decode(picture, symbols=[pyzbar.ZBarSymbol.QRCODE])
    except ValueError:
        return None
    return read[0].data.decode("utf-8", "replace") if read else None
