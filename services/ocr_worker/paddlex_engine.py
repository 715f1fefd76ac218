"""The engine `paddlex`: a page -> its text, asked of `paddlex --serve --pipeline OCR`.

The server of PaddleX reads one page at a time too, in its own process; here is only its client. Its reply is
that of the basic serving API of PaddleX 3: `result.ocrResults[].prunedResult` with `rec_texts`, `rec_scores`
and `rec_polys`.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any, Final

import cv2
import numpy as np
import urllib3
from urllib3.exceptions import HTTPError

from ocr_worker.domain import PageImage, PageText
from ocr_worker.domain.reading_order import reading_order
from ocr_worker.reading import PADDLEX
from visionmesh.errors import Rejected, Unavailable
from visionmesh.ocr_document import TextLine

_CONNECT_SECONDS: Final = 2.0

# Of a page's time: a server that hangs is found out before the page is blamed for it.
_SHARE: Final = 0.9

# What is said of a page; any other refusal is of the server's own making.
_REFUSED: Final = (400, 413, 422)

# `fileType` of a picture; a PDF would be 0.
_PICTURE: Final = 1


class PaddleX:
    """An `Engine` that asks a server. Its language is what the server was started with."""

    name = "paddlex"

    def __init__(self, url: str, language: str, *, page_seconds: float) -> None:
        """page_seconds: longest that one page may take."""
        self.language = language
        self._address = f"{url.rstrip('/')}/ocr"
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_SHARE * page_seconds), retries=False
        )

    def read(self, page: PageImage) -> PageText:
        """See `Engine`. Raises `Unavailable` when the server is away, hangs or fails."""
        began = time.perf_counter()
        # The least of compressions: the server is near.
        _, png = cv2.imencode(".png", page[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        body = {
            "file": base64.b64encode(png.tobytes()).decode(),
            "fileType": _PICTURE,
            "visualize": False,
        }
        encoded = time.perf_counter()
        answer = self._asked(body)
        lines = _lines(answer["result"]["ocrResults"][0]["prunedResult"])
        return PageText(lines, {"encode": encoded - began, "serve": time.perf_counter() - encoded})

    def _asked(self, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            response = self._pool.request("POST", self._address, json=body)
        except HTTPError as error:
            raise Unavailable(PADDLEX, str(error) or type(error).__name__) from error
        if response.status in _REFUSED:
            raise Rejected("unreadable_page", f"PaddleX refuses the page: {response.data[:200]!r}")
        try:
            answer: dict[str, Any] = json.loads(response.data)
            answer["result"]["ocrResults"][0]["prunedResult"]
        except (ValueError, LookupError, TypeError) as error:
            raise Unavailable(PADDLEX, f"it answers {response.status}: {response.data[:200]!r}") from error
        return answer


def _lines(pruned: Mapping[str, Any]) -> list[TextLine]:
    """In the mesh's own order, so that engines are told apart by what they read."""
    boxes = np.array(pruned["rec_polys"], np.float32).reshape(-1, 4, 2)
    lines = [
        TextLine(text, tuple((float(x), float(y)) for x, y in box), float(score))
        for text, score, box in zip(pruned["rec_texts"], pruned["rec_scores"], boxes, strict=True)
    ]
    return [lines[at] for at in reading_order(boxes) if lines[at].text.strip()]
