"""Learned locators: where codes are, as quadrilaterals, from an ONNX model.

A locator only points; what it points at is rectified and has to pass error correction like everything else,
so that a bad one costs time and never a false reading. The cascade knows the `Locator` protocol alone.

Two families of models are understood, told apart by their inputs and outputs:

* **YOLO** (`YoloLocator`): input float32 [1, 3, 640, 640], RGB / 255, letterboxed with 114. Output
  [1, 25200, 85] (YOLOv5: centre x and y, width, height, objectness, classes), or [1, 37, 8400] with
  [1, 32, 160, 160] (YOLOv8-seg, as QRDet: centre, size, score, 32 mask coefficients, mask prototypes).
* **Quads** (`QuadLocator`), the locators of our own (`models/LOCATOR.md`): input `picture` uint8
  [1, height, width] grey, sides multiples of 32; outputs `quads` float32 [M, 4, 2], the corners of M codes in
  the pixels of the input (x, y; clockwise, from any corner), and `scores` float32 [M], 0 to 1, best first.
  Everything between a heatmap and a quadrilateral is in the graph, so that this file need not change with
  the net.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from qr_decoder.domain.codes import Quad

Picture = NDArray[np.uint8]

# The files of the four sizes, as the seed names them.
FILES: Final = {
    "n": "qreader_nano.onnx",
    "s": "qreader_small.onnx",
    "m": "qreader_medium.onnx",
    "l": "qreader_large.onnx",
}

CONFIDENCE: Final = 0.5
# Of our own locators, whose maps are steeper.
QUAD_CONFIDENCE: Final = 0.4
_OVERLAP: Final = 0.3
# The share of a place in another one from which one of them is no code: what one look or tile takes for a
# code can be a part of one that the other shows whole.
_WITHIN: Final = 0.8
_SIDE: Final = 640
_LETTERBOX: Final = 114

# A picture above this is looked at in tiles too, when nothing was found in the whole: a code of 100 pixels
# in 4K has 17 of 640.
_TILED: Final = 1920
_TILE: Final = 1280
_TILE_STEP: Final = 960


# Pixels that a locator of our own sees at once.
_PART: Final = 1_250_000


@dataclass(frozen=True, slots=True)
class Located:
    """A code that may be there. corners: float32 [4, 2] pixels, around the code. confidence: 0 to 1."""

    corners: Quad
    confidence: float


class Locator(Protocol):
    """Where codes may be. name: as levels and results speak of it."""

    name: str

    def locate(self, picture: Picture) -> list[Located]:
        """Codes in a picture, the surest first, each once.

        picture: uint8 [height, width, 3] RGB, or [height, width] grey.
        """
        ...


class Session(Protocol):
    """What is used of an `onnxruntime.InferenceSession`."""

    def run(self, outputs: Any, inputs: dict[str, Any]) -> list[Any]: ...
    def get_inputs(self) -> list[Any]: ...
    def get_outputs(self) -> list[Any]: ...


def open_session(path: Path) -> Session:
    """An ONNX Runtime session on one thread, which tells nobody about itself."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    session: Session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return session


class LazyLocator:
    """A locator that is loaded when it is first asked, once, whoever asks."""

    def __init__(self, name: str, load: Callable[[], Locator]) -> None:
        self.name = name
        self._load = load
        self._lock = threading.Lock()
        self._loaded: Locator | None = None

    def locate(self, picture: Picture) -> list[Located]:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
        return self._loaded.locate(picture)


def locators_in(folder: Path) -> dict[str, Locator]:
    """The locators whose files are in a folder, by size; nothing is loaded yet."""
    return {
        size: LazyLocator(size, lambda size=size, file=file: load(size, folder / file))  # type: ignore[misc]
        for size, file in FILES.items()
        if (folder / file).is_file()
    }


def load(name: str, path: Path) -> Locator:
    """The locator of a model file.

    Raises ValueError for a model of neither family.
    """
    session = open_session(path)
    inputs = session.get_inputs()
    if [each.name for each in inputs] == ["picture"]:
        return QuadLocator(name, session)
    if len(inputs) == 1 and list(inputs[0].shape[1:]) == [3, _SIDE, _SIDE]:
        return YoloLocator(name, session)
    found = ", ".join(f"{each.name} {each.shape}" for each in inputs)
    raise ValueError(
        f"{path.name} takes {found}; a locator takes picture [1, height, width] or [1, 3, 640, 640]"
    )


class QuadLocator:
    """A model whose outputs are `quads` and `scores`.

    Looks at the picture reduced to two sizes, since its cells see codes of 18 to 270 pixels; and in more
    detail where that showed nothing, or a code so small that others may be lost. Where nothing was sure, the
    likeliest places are given.
    """

    # The longest side in pixels of the whole picture, look by look.
    _first: Final = (640, 256)
    _detailed: Final = 1920
    # Pixels a side in the first look.
    _small: Final = 60
    # Pixels a side in any look that a code may have there: what its cells were taught to see.
    _sides: Final = (16.0, 280.0)
    # Of what is not sure: the least confidence as a share of the one that is asked for, and how many.
    _doubtful: Final = 0.5
    _doubts: Final = 3

    def __init__(self, name: str, session: Session, confidence: float = QUAD_CONFIDENCE) -> None:
        self.name = name
        self._session = session
        self._confidence = confidence

    def locate(self, picture: Picture) -> list[Located]:
        grey = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        longest = max(grey.shape)
        seen = self._in(grey, self._first[0])
        if longest > self._first[1]:
            seen += self._in(grey, self._first[1])
        if longest > self._first[0] and self._is_worth_more(seen, longest):
            seen += self._in(grey, self._detailed)
        seen = _each_once(seen)
        sure = [each for each in seen if each.confidence >= self._confidence]
        return sure or seen[: self._doubts]

    def _is_worth_more(self, seen: list[Located], longest: int) -> bool:
        """Whether nothing sure was seen, or something small."""
        sure = [each.corners for each in seen if each.confidence >= self._confidence]
        small = (self._small * longest / self._first[0]) ** 2
        return not sure or min(cv2.contourArea(quad) for quad in sure) < small

    def _in(self, grey: Picture, look: int) -> list[Located]:
        factor = min(1.0, look / max(grey.shape))
        # A strip without room for a code may have no row of pixels left.
        if factor * min(grey.shape) < self._sides[0]:
            return []
        if factor < 1:
            grey = cv2.resize(grey, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        found = []
        for top, left, part in _parts(grey, round(self._sides[1])):
            for quad, score in self._of_part(part):
                corners = (quad + (left, top) + 0.5) / factor - 0.5
                found.append(Located(corners.astype(np.float32), score))
        return found

    def _of_part(self, grey: Picture) -> Iterator[tuple[Quad, float]]:
        bottom, right = -grey.shape[0] % 32, -grey.shape[1] % 32
        grey = cv2.copyMakeBorder(grey, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
        quads, scores = self._session.run(["quads", "scores"], {"picture": grey[None]})
        least, most = self._sides
        for quad, score in zip(quads, scores, strict=True):
            if score >= self._confidence * self._doubtful and least**2 <= cv2.contourArea(quad) <= most**2:
                yield quad, float(score)


def _parts(grey: Picture, overlap: int) -> Iterator[tuple[int, int, Picture]]:
    """The picture in parts along its longer side, each with its top and left, that share `overlap` pixels.

    A net takes 20 bytes and more for each pixel that it sees at once.
    """
    height, width = grey.shape
    longest = max(height, width)
    count = max(1, math.ceil((longest - overlap) / max(_PART // min(height, width) - overlap, 1)))
    side = math.ceil((longest + (count - 1) * overlap) / count)
    for number in range(count):
        start = number * (side - overlap)
        if height < width:
            yield 0, start, grey[:, start : start + side]
        else:
            yield start, 0, grey[start : start + side]


class YoloLocator:
    """A YOLOv5 or YOLOv8-seg detector of 640 x 640 pixels."""

    def __init__(self, name: str, session: Session, confidence: float = CONFIDENCE) -> None:
        self.name = name
        self._session = session
        self._input = session.get_inputs()[0].name
        self._confidence = confidence

    def locate(self, picture: Picture) -> list[Located]:
        found = self._in(picture)
        height, width = picture.shape[:2]
        if found or max(height, width) <= _TILED:
            return found
        for top in range(0, max(height - _TILE + _TILE_STEP, 1), _TILE_STEP):
            for left in range(0, max(width - _TILE + _TILE_STEP, 1), _TILE_STEP):
                for each in self._in(picture[top : top + _TILE, left : left + _TILE]):
                    found.append(Located(each.corners + np.array((left, top), np.float32), each.confidence))
        return _each_once(found)

    def _in(self, picture: Picture) -> list[Located]:
        tensor, scale, (left, top) = letterboxed(picture)
        outputs = [np.asarray(each) for each in self._session.run(None, {self._input: tensor})]
        rows, masks = _decoded(outputs)
        rows = rows[rows[:, 4] >= self._confidence]
        boxes = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], axis=1)
        found = []
        for n in _suppressed(boxes, rows[:, 4]):
            x0, y0, x1, y1 = boxes[n]
            quad = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32)
            if masks is not None:
                quad = _quad_of_mask(rows[n, 5:], masks, boxes[n], quad)
            found.append(Located(((quad - (left, top)) / scale).astype(np.float32), float(rows[n, 4])))
        return found


def letterboxed(picture: Picture) -> tuple[NDArray[np.float32], float, tuple[int, int]]:
    """The picture in a square of 640 pixels, float32 [1, 3, 640, 640]; its scale, left and top there."""
    height, width = picture.shape[:2]
    scale = min(_SIDE / height, _SIDE / width)
    new_width, new_height = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(
        picture, (new_width, new_height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    left, top = (_SIDE - new_width) // 2, (_SIDE - new_height) // 2
    square = np.full((_SIDE, _SIDE, 3), _LETTERBOX, np.uint8)
    # A grey one is given to all three channels.
    square[top : top + new_height, left : left + new_width] = np.atleast_3d(small)
    tensor = np.ascontiguousarray(square.transpose(2, 0, 1)[None].astype(np.float32) / 255.0)
    return tensor, scale, (left, top)


def _decoded(outputs: list[NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Rows of centre x, centre y, width, height, score and mask coefficients; and the mask prototypes."""
    whole = next((each for each in outputs if each.ndim == 3), None)
    if whole is None:
        raise ValueError(f"no detections among outputs of shapes {[each.shape for each in outputs]}")
    if whole.shape[1] == 37:
        prototypes = next((each[0] for each in outputs if each.ndim == 4), None)
        return whole[0].T.astype(np.float32), prototypes
    rows = whole[0].astype(np.float32)
    score = rows[:, 4] * (rows[:, 5:].max(axis=1) if rows.shape[1] > 5 else 1.0)
    return np.concatenate([rows[:, :4], score[:, None]], axis=1), None


def _each_once(found: list[Located]) -> list[Located]:
    """The surest of places that overlap or lie in one another, the surest first."""
    boxes = np.array([(*each.corners.min(axis=0), *each.corners.max(axis=0)) for each in found])
    kept = _suppressed(boxes.reshape(-1, 4), np.array([each.confidence for each in found]), _WITHIN)
    return [found[n] for n in kept]


def _suppressed(boxes: NDArray[Any], scores: NDArray[Any], within: float = 1.0) -> list[int]:
    """Non-maximum suppression: the surest of boxes (x0, y0, x1, y1) that overlap.

    within: the share of the smaller box in the larger one above which they do so in any case.
    """
    kept: list[int] = []
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for n in np.argsort(-scores, kind="stable").tolist():
        for other in kept:
            width = min(boxes[n, 2], boxes[other, 2]) - max(boxes[n, 0], boxes[other, 0])
            height = min(boxes[n, 3], boxes[other, 3]) - max(boxes[n, 1], boxes[other, 1])
            common = max(width, 0.0) * max(height, 0.0)
            union = area[n] + area[other] - common
            if common > min(_OVERLAP * union, within * min(area[n], area[other])):
                break
        else:
            kept.append(n)
    return kept


def _quad_of_mask(
    coefficients: NDArray[np.float32],
    prototypes: NDArray[np.float32],
    box: NDArray[np.float32],
    fallback: Quad,
) -> Quad:
    """The mask of a detection as a quadrilateral in the 640 pixels; its box when it has no shape."""
    _, height, width = prototypes.shape
    scale = _SIDE / width
    logits = np.tensordot(coefficients, prototypes, axes=1)
    x0, y0 = np.maximum(np.floor(box[:2] / scale).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(box[2:] / scale).astype(int), (width, height))
    mask = np.zeros((height, width), np.float32)
    mask[y0:y1, x0:x1] = logits[y0:y1, x0:x1]
    large = cv2.resize(mask, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)
    contours, _ = cv2.findContours((large > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return fallback
    hull = cv2.convexHull(max(contours, key=cv2.contourArea))
    if cv2.contourArea(hull) < 9:
        return fallback
    length = cv2.arcLength(hull, True)
    for share in np.linspace(0.02, 0.15, 14):
        polygon = cv2.approxPolyDP(hull, share * length, True)
        if len(polygon) == 4:
            return np.asarray(polygon.reshape(4, 2), np.float32)
    return np.asarray(cv2.boxPoints(cv2.minAreaRect(hull)), np.float32)
