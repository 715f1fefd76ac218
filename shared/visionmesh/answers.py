"""The shapes of answers over HTTP, for the OpenAPI of the services that give them.

Nothing is made of these: answers are written by msgspec, and `tests/integration/test_schemathesis.py` holds
them against these.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from visionmesh.contracts import IMAGE_ID_PATTERN

# In the words of OpenAPI, whose patterns are JavaScript's.
IMAGE_ID: Final = {"type": "string", "pattern": IMAGE_ID_PATTERN.replace(r"\Z", "$")}

Point = tuple[float, float]


class Problem(BaseModel):
    """How every error is told. error: a sentence that helps. code: a stable word."""

    error: str
    code: str


class Alive(BaseModel):
    """Of `/health`. A service tells more of itself besides; status: `ok`, or `degraded`."""

    model_config = ConfigDict(extra="allow")

    status: str
    service: str


class CheckAnswer(BaseModel):
    """error: why it is not ready. detail: what the check tells besides."""

    ready: bool
    error: str | None = None
    detail: Any = None


class ReadyAnswer(BaseModel):
    """Of `/ready`. ready: whether all checks are."""

    ready: bool
    service: str
    checks: dict[str, CheckAnswer]


class PlaceAnswer(BaseModel):
    """See `visionmesh.qr_code.Place`."""

    position: int
    total: int
    parity: int


class QrCodeAnswer(BaseModel):
    """See `visionmesh.qr_code.QrCode`. bytes: in hexadecimal. parts, sequence: of structured append only."""

    content: str
    bytes: str
    corners: list[Point]
    symbology: Literal["qr", "micro_qr", "rmqr"]
    decoder: str
    level_used: int
    level: str
    preprocessing_applied: bool
    preprocessing: str
    rotation_angle: int | None
    confidence: float
    processing_time_ms: float
    parts: int = 1
    sequence: PlaceAnswer | None = None


class LineAnswer(BaseModel):
    """See `visionmesh.ocr_document.TextLine`."""

    text: str
    polygon: list[Point]
    confidence: float
    page: int


class PageAnswer(BaseModel):
    """See `visionmesh.ocr_document.PageSize`."""

    width: int
    height: int


class OcrAnswer(BaseModel):
    """See `visionmesh.ocr_document.OcrDocument`. seconds: the sum of all stages."""

    text: str
    lines: list[LineAnswer]
    pages: list[PageAnswer]
    language: str
    engine: str
    seconds: float
    seconds_by_stage: dict[str, float]
