"""`MESH_QR_ENGINE=qreader`: pictures are read by the package of that name, not by the mesh's own levels.

As in `reading`, the service's own process loads nothing of the package: `prepare` and `read_one` run in
children, which have it from their start (`PACKAGE`).

Its readings are proven too: it decodes by zbar, which gives out nothing that error correction did not pass.
But it tells neither the bytes of a code nor how much correction it took: `data` is the text in UTF-8, and
`confidence` is the detector's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from qr_decoder import weights
from qr_decoder.reading import Asked, Found
from visionmesh.errors import Rejected
from visionmesh.qr_code import QrCode

if TYPE_CHECKING:
    from qreader import QReader

PACKAGE: Final = "qreader"

# Profiles and levels at once, one a size, with the numbers that are stored; the cascade's own begin at 1.
LEVELS: Final = {f"qreader-{size}": number for number, size in enumerate(weights.SIZES, 101)}


@dataclass(frozen=True, slots=True)
class Weights:
    """The detector of a size, in a folder of weights."""

    size: str
    folder: Path


# In the child


def prepare(asked: Weights) -> None:
    """Downloads the weights where they are missing, and loads them once.

    Raises `Rejected`: `package_missing`, `weights_missing`, `weights_broken`.
    """
    weights.fetch(asked.size, asked.folder)
    weights.opened(asked.size, asked.folder)


def read_one(asked: Asked) -> Found:
    """The codes of one picture. `profile` is one of `LEVELS`, `models_dir` the folder of the weights.

    The budget is looked at between codes: finding them is one step, which is always taken unless there is no
    budget at all.

    Raises `Rejected` with a code of `visionmesh.images`, `unknown_profile`, `profile_unavailable` when there
    are no weights for it here, and `reader_failed` when the package stumbles over the picture.
    """
    from visionmesh import images

    if asked.profile not in LEVELS:
        raise Rejected(
            "unknown_profile", f"There is no profile {asked.profile!r} here; there are {', '.join(LEVELS)}."
        )
    picture = images.decode(asked.data)
    began = time.perf_counter()
    codes: list[QrCode] = []
    truncated = asked.budget_ms <= 0
    if not truncated:
        reader = _reader(asked.profile.removeprefix("qreader-"), asked.models_dir)
        for detection in _detections(reader, picture):
            content = _content(reader, picture, detection)
            spent = (time.perf_counter() - began) * 1000
            # Detections may overlap, and each crop gives the first code that zbar finds in it.
            if content and not any(_same(code, content, detection) for code in codes):
                codes.append(_code(content, detection, asked.profile, spent))
            truncated = spent > asked.budget_ms
            if truncated:
                break
    height, width = picture.shape[:2]
    return Found(
        codes=tuple(codes),
        truncated=truncated,
        processing_time_ms=round((time.perf_counter() - began) * 1000, 3),
        width=width,
        height=height,
    )


# One per process: another size takes the place of the first, since each holds up to half a gigabyte.
@lru_cache(maxsize=1)
def _reader(size: str, folder: Path) -> QReader:
    """Raises `Rejected`: `profile_unavailable`."""
    if not weights.file_of(size, folder).is_file():
        raise Rejected("profile_unavailable", f"The weights of qreader-{size} are not in {folder}.")
    reader = weights.opened(size, folder)
    import cv2
    import torch

    # Replicas share the cores.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    return reader


def _detections(reader: QReader, picture: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Where codes may be, the surest first.

    Raises `Rejected`: `reader_failed`.
    """
    import torch

    try:
        with torch.inference_mode():
            return list(reader.detect(picture))
    # The package asserts, indexes and fits without looking: what comes of an odd picture has no one kind.
    except Exception as error:
        _raise_for_memory(error)
        raise Rejected(
            "reader_failed", f"QReader fails on this picture: {type(error).__name__}: {error}."
        ) from error


def _content(reader: QReader, picture: NDArray[np.uint8], detection: dict[str, Any]) -> str | None:
    """None too when the package fails on this place: there may be others."""
    try:
        content: str | None = reader.decode(picture, detection)
    except Exception as error:
        _raise_for_memory(error)
        return None
    return content


def _raise_for_memory(error: Exception) -> None:
    """What torch and OpenCV call lack of memory is a MemoryError."""
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        raise MemoryError from error


def _code(content: str, detection: dict[str, Any], level: str, spent: float) -> QrCode:
    quad = _clockwise(np.asarray(detection["quad_xy"], np.float32))
    return QrCode(
        content=content,
        data=content.encode(),
        corners=tuple((round(float(x), 2), round(float(y), 2)) for x, y in quad),
        decoder=PACKAGE,
        symbology="qr",
        level_used=LEVELS[level],
        level=level,
        preprocessing_applied=True,
        preprocessing="cropped",
        rotation_angle=None,
        confidence=round(float(detection["confidence"]), 3),
        processing_time_ms=round(spent, 3),
    )


def _clockwise(quad: NDArray[np.float32]) -> NDArray[np.float32]:
    """From the corner at the picture's top left on: the package does not tell which is the code's own."""
    around = quad - quad.mean(axis=0)
    ordered = quad[np.argsort(np.arctan2(around[:, 1], around[:, 0]), kind="stable")]
    return np.roll(ordered, -int(ordered.sum(axis=1).argmin()), axis=0)


def _same(code: QrCode, content: str, detection: dict[str, Any]) -> bool:
    """Whether a code that was read has this content and this place."""
    if code.content != content:
        return False
    left, top, right, bottom = map(float, detection["bbox_xyxy"])
    x, y = np.mean(code.corners, axis=0)
    return bool(left <= x <= right and top <= y <= bottom)
