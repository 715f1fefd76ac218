"""Reads pictures with the qreader package, in its environment: `python qreader_worker.py SIZE WEIGHTS`.

WEIGHTS is a file of QRDet: .pt, which the package loads itself, or .onnx, which takes the place of its
detector's net. On stdin, for each picture: its height and width as a line, then its bytes (RGB). On stdout,
for each: a line of JSON with `found` (texts and corners), and the seconds of CPU and of the clock that it
took.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import qreader
import torch
from qrdet import QRDetector
from ultralytics import YOLO

from qr_decoder import weights


def opened(size: str, file: Path) -> Any:
    if file.suffix == ".onnx":
        return _on_onnx(file)
    with TemporaryDirectory() as folder:
        weights.placed(size, file, Path(folder))
        return weights.opened(size, Path(folder))


def _on_onnx(file: Path) -> Any:
    """A QReader with its own thresholds, whose detector computes by ONNX Runtime."""
    detector = QRDetector.__new__(QRDetector)
    detector.model, detector._conf_th, detector._nms_iou = YOLO(str(file), task="segment"), 0.5, 0.3
    reader = qreader.QReader.__new__(qreader.QReader)
    reader.detector, reader.reencode_to = detector, qreader.DEFAULT_REENCODINGS
    return reader


def read(reader: Any, picture: np.ndarray) -> list[tuple[str, list[list[float]]]]:
    """What the package reads; nothing where it fails on the picture."""
    try:
        texts, places = reader.detect_and_decode(picture, return_detections=True)
    except Exception as error:
        print(f"qreader: {type(error).__name__}: {error}", file=sys.stderr)
        return []
    pairs = zip(texts, places, strict=True)
    return [(text, place["quad_xy"].tolist()) for text, place in pairs if text is not None]


def main(size: str, file: str) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    reader = opened(size, Path(file))
    answers, pictures = sys.stdout, sys.stdin.buffer
    # The package's own words go where they are no answers.
    sys.stdout = sys.stderr
    while line := pictures.readline():
        height, width = map(int, line.split())
        picture = np.frombuffer(pictures.read(height * width * 3), np.uint8).reshape(height, width, 3)
        began = time.process_time(), time.perf_counter()
        with torch.inference_mode():
            found = read(reader, picture)
        cpu, wall = time.process_time() - began[0], time.perf_counter() - began[1]
        answers.write(json.dumps({"found": found, "cpu": cpu, "wall": wall}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
