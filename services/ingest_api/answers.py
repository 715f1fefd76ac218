"""The shapes of the answers on port 8001, for its OpenAPI; what they hold is told where they are made."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from ingest_api.domain import State
from visionmesh.answers import OcrAnswer, Point, QrCodeAnswer
from visionmesh.consensus import Votes
from visionmesh.contracts import Value


class LinksAnswer(BaseModel):
    """See `ingest_api.domain.links`."""

    predictions: str
    results: str
    image: str
    content: str
    annotated: str
    text: str
    searchable_pdf: str


class AcceptedAnswer(BaseModel):
    """See `ingest_api.domain.accepted_answer`."""

    image_id: str
    minio_path: str
    status: Literal["accepted"]
    links: LinksAnswer


class AcceptedFile(AcceptedAnswer):
    file: str | None


class RefusedFile(BaseModel):
    """failed: it may be sent again as it is."""

    file: str | None
    status: Literal["rejected", "failed"]
    error: str
    code: str


class UploadsAnswer(BaseModel):
    """Of several files, in the order in which they were sent."""

    uploads: list[AcceptedFile | RefusedFile]


class PredictionAnswer(BaseModel):
    """See `visionmesh.results.PredictionRow`."""

    classifier: str
    label: str
    confidence: float
    probabilities: dict[str, float]
    model: str
    model_version: str
    latency_ms: float


class ConsensusAnswer(BaseModel):
    """See `ingest_api.domain.consensus_answer`."""

    label: str
    confidence: float
    agreement: Votes
    votes: dict[str, list[str]]
    method: str
    weights: dict[str, float]
    calibrated: bool
    left_out: list[str]
    complete: bool
    missing: list[str]


class OutcomeAnswer(BaseModel):
    """See `visionmesh.results.OutcomeRow`."""

    worker: str
    state: str
    error: str | None


class PredictionsAnswer(BaseModel):
    """See `ingest_api.domain.predictions_answer`."""

    image_id: str
    status: State
    error: str | None
    predictions: list[PredictionAnswer]
    consensus: ConsensusAnswer | None
    outcomes: list[OutcomeAnswer]


class ImageAnswer(BaseModel):
    """See `visionmesh.results.ImageRow`."""

    image_id: str
    minio_path: str
    sha256: str
    bytes: int
    media_type: str
    width: int | None
    height: int | None
    tasks: list[str] | None
    created_at: datetime | None
    published_at: datetime | None
    links: LinksAnswer


class FeaturesAnswer(BaseModel):
    descriptors: list[float]
    descriptor_count: int
    model: str


class ResultsAnswer(PredictionsAnswer):
    """See `ingest_api.domain.results_answer`."""

    image: ImageAnswer | None
    features: FeaturesAnswer | None
    qr_codes: list[QrCodeAnswer]
    ocr: OcrAnswer | None


class ImagesAnswer(BaseModel):
    """See `ingest_api.domain.page_answer`."""

    images: list[ImageAnswer]
    next: str | None


class DeletingAnswer(BaseModel):
    image_id: str
    status: Literal["deleting"]


class HighlightAnswer(BaseModel):
    """See `ingest_api.search.highlights`."""

    page: int
    text: str
    polygon: list[Point]


class FoundAnswer(BaseModel):
    image_id: str
    rank: float
    language: str
    pages: int
    created_at: datetime | None
    highlights: list[HighlightAnswer]
    links: LinksAnswer


class SearchAnswer(BaseModel):
    """next: the `offset` of the page after."""

    query: str
    results: list[FoundAnswer]
    next: int | None


class ReadingAnswer(BaseModel):
    """See `visionmesh.sensors.SensorReadingRow`."""

    seq: int
    captured_at: datetime
    monotonic_ns: int | None
    values: dict[str, Value]


class LatestAnswer(ReadingAnswer):
    device_id: str
    sensor: str


class SensorsAnswer(BaseModel):
    sensors: list[LatestAnswer]


class BucketAnswer(BaseModel):
    """See `visionmesh.sensors.Bucket`."""

    at: datetime
    readings: int
    values: dict[str, dict[str, float]]


class _PeriodAnswer(BaseModel):
    device_id: str
    sensor: str
    since: datetime = Field(alias="from")
    until: datetime = Field(alias="to")


class ReadingsAnswer(_PeriodAnswer):
    """next: what to send as `after` for the page after."""

    readings: list[ReadingAnswer]
    next: str | None


class BucketsAnswer(_PeriodAnswer):
    resolution: str
    buckets: list[BucketAnswer]
