"""The engine `paddleocr`: PaddleOCR itself on PaddlePaddle, with its models from a local folder.

For comparison, and for models that come in Paddle's format alone. It needs an environment of its own
(requirements/paddleocr.in): PaddlePaddle can't share a process with TensorFlow, nor its packages a set of
versions with the mesh's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from ocr_worker.domain.engine import OnePageAtATime, PageImage, PageText
from ocr_worker.domain.reading_order import reading_order
from visionmesh.ocr_document import TextLine

NAME: Final = "paddleocr"

# How PaddleOCR's own archives of the two models are named, behind the version and the size.
_DETECTOR: Final = "*_det"
_RECOGNISER: Final = "*_rec"


class ModelFolderError(RuntimeError):
    """The folder of models lacks one."""


class PaddleOcr:
    """An `Engine`. Not for several threads: it says so when it is asked for two pages at once."""

    name = NAME

    def __init__(self, language: str, *, threads: int, folder: Path | None, runtime: str = "paddle") -> None:
        """folder: of the models, each in a folder of its own as PaddleOCR unpacks it (`PP-OCRv6_small_det`,
        `PP-OCRv6_small_rec`); without one, PaddleOCR fetches those of the first language from its hub.
        runtime: `paddle`, or `onnxruntime` for models in that format.

        Raises `ImportError` where PaddleOCR is not installed, and `ModelFolderError`.
        """
        import paddleocr

        chosen: dict[str, Any] = {"lang": language.split("+")[0]}
        if folder is not None:
            detector, recogniser = _only(folder, _DETECTOR), _only(folder, _RECOGNISER)
            chosen = {
                "text_detection_model_name": detector.name,
                "text_detection_model_dir": str(detector),
                "text_recognition_model_name": recogniser.name,
                "text_recognition_model_dir": str(recogniser),
            }
        if runtime == "onnxruntime":
            chosen["engine_config"] = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        self.language = language
        self._one = OnePageAtATime()
        self._reader = paddleocr.PaddleOCR(
            **chosen,
            engine=runtime,
            device="cpu",
            cpu_threads=threads,
            use_doc_orientation_classify=False,
            use_doc_unwarping=False,
            use_textline_orientation=False,
        )

    def read(self, page: PageImage) -> PageText:
        """See `Engine`."""
        with self._one:
            began = time.perf_counter()
            # PaddleOCR takes pictures as OpenCV reads them.
            found = self._reader.predict(np.ascontiguousarray(page[:, :, ::-1]))[0]
            boxes = np.array(found["rec_polys"], np.float32).reshape(-1, 4, 2)
            lines = [
                TextLine(
                    found["rec_texts"][at],
                    tuple((float(x), float(y)) for x, y in boxes[at]),
                    float(found["rec_scores"][at]),
                )
                for at in reading_order(boxes)
                if found["rec_texts"][at].strip()
            ]
            return PageText(lines, {"read": time.perf_counter() - began})


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(path for path in folder.glob(pattern) if path.is_dir())
    if len(found) != 1:
        raise ModelFolderError(f"{folder} has {len(found)} folders of the kind {pattern}; one is needed.")
    return found[0]
