"""The pure part of taking pictures in and telling what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Literal
from urllib.parse import quote
from uuid import UUID

from visionmesh import images, ocr_document
from visionmesh.consensus import METHOD, Fitted, agree
from visionmesh.contracts import TASKS, is_image_id
from visionmesh.errors import Rejected
from visionmesh.qr_code import as_json
from visionmesh.results import ImageResults, ImageRow, OutcomeRow, PredictionRow

# Which worker turns a picture into descriptors, as it signs its outcomes.
EXTRACTOR: Final = "feature-extractor"

# Every media type that is taken in, and the ending of its object key. PDFs are for OCR.
_EXTENSIONS: Final[dict[str, str]] = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/bmp": "bmp",
    "image/tiff": "tif",
    "image/heif": "heic",
    "image/avif": "avif",
    "application/pdf": "pdf",
}

# How many bytes tell a media type (`images.media_type`).
SNIFF_BYTES: Final = 64

State = Literal["processing", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of a file say. width, height: pixels, None where they do not say."""

    media_type: str
    extension: str
    width: int | None
    height: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the classification of a picture is. error: why it failed, else None."""

    state: State
    error: str | None


def uuid7(milliseconds: int, randomness: bytes) -> str:
    """A UUID version 7 (RFC 9562, section 5.7), which sorts by time.

    milliseconds: Unix time. randomness: 10 bytes.
    """
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(randomness, "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))


def object_key(day: date, upload_id: str, image_id: str | None, extension: str) -> str:
    """Where a picture lies: `YYYY/MM/DD/<image_id>.<extension>`.

    upload_id: a UUID of this upload, which is also the image's id when the client brought none (None).
    A client's own id may come twice, at once and with different pictures, so its key carries the end of
    the upload's UUID: whoever loses has overwritten nothing.
    """
    name = upload_id if image_id is None else f"{image_id}.{upload_id[-12:]}"
    return f"{day:%Y/%m/%d}/{name}.{extension}"


def checked_image_id(text: str) -> str:
    """`text` when it may be an image id. Raises `Rejected("bad_image_id")`.

    `.` and `..` are ids on the wire, but no client could ask for their results: in a URL they are folders.
    """
    if not is_image_id(text) or text in (".", ".."):
        raise Rejected("bad_image_id", "An image_id is 1 to 128 letters, digits and . _ : -")
    return text


def parse_tasks(values: Iterable[str]) -> tuple[str, ...] | None:
    """The tasks of one or several comma lists, in the order of `TASKS`; None (all) when none is named.

    Raises `Rejected("unknown_task")`.
    """
    named = {name for value in values for name in (part.strip() for part in value.split(",")) if name}
    unknown = sorted(named.difference(TASKS))
    if unknown:
        raise Rejected("unknown_task", f"Unknown task {unknown[0]!r}; known are {', '.join(TASKS)}.")
    return tuple(task for task in TASKS if task in named) or None


def checked_media_type(start: bytes) -> str:
    """The media type that the first `SNIFF_BYTES` of a file (or all of a shorter one) speak of.

    Raises `Rejected`: `empty_file`, `not_an_image`.
    """
    if not start:
        raise Rejected("empty_file", "The file is empty.")
    media_type = images.media_type(start)
    if media_type not in _EXTENSIONS:
        raise Rejected(
            "not_an_image", f"The file begins like none of the accepted formats: {', '.join(_EXTENSIONS)}."
        )
    return media_type


def read_header(start: bytes, *, complete: bool) -> Header:
    """Reads the header of a picture. start: its first bytes, all of them when `complete`.

    Raises `Rejected` when these already say that no worker will take the picture: as
    `checked_media_type`, `too_many_pixels`, and of a complete file `corrupt_image` or `truncated_image`
    when the header can't be read or the picture has no end. A part of a file that can't be read yet has no
    width and height.
    """
    media_type = checked_media_type(start[:SNIFF_BYTES])
    extension = _EXTENSIONS[media_type]
    if not images.is_decodable(media_type):
        return Header(media_type, extension, None, None)
    try:
        info = images.probe(start, limits=images.SCAN)
    except Rejected as error:
        if complete or error.code == "too_many_pixels":
            raise
        return Header(media_type, extension, None, None)
    if complete:
        images.check_end(start)
    return Header(media_type, extension, info.width, info.height)


def links(image_id: str) -> dict[str, str]:
    """Where the answers about an image will be, as paths on this server."""
    name = quote(image_id)
    return {
        "predictions": f"/predictions/{name}",
        "results": f"/results/{name}",
        "image": f"/images/{name}",
        "content": f"/images/{name}/content",
        "annotated": f"/images/{name}/annotated?task=qr",
        "text": f"/images/{name}/text.txt",
        "searchable_pdf": f"/images/{name}/text.pdf",
    }


def progress(
    tasks: tuple[str, ...] | None, outcomes: Sequence[OutcomeRow], classifiers: Sequence[str]
) -> Progress:
    """How far the classification is.

    failed: the extractor or a classifier failed. done: no more predictions will come, because every one
    of `classifiers` came to an end, or because none was asked for or the picture is not for the extractor.
    """
    of_worker = {outcome.worker: outcome for outcome in outcomes}
    for worker in (EXTRACTOR, *classifiers):
        outcome = of_worker.get(worker)
        if outcome is not None and outcome.state == "failed":
            return Progress("failed", f"{worker}: {outcome.error}")
    if tasks is not None and "classify" not in tasks:
        return Progress("done", None)
    extractor = of_worker.get(EXTRACTOR)
    if extractor is not None and extractor.state == "skipped":
        return Progress("done", None)
    ended = {name for name, outcome in of_worker.items() if outcome.state in ("done", "skipped")}
    return Progress("done" if ended.issuperset(classifiers) else "processing", None)


def accepted_answer(image: ImageRow) -> dict[str, Any]:
    """What the client of an upload is told; the same for the first and for every repeated upload."""
    return {
        "image_id": image.image_id,
        "minio_path": image.minio_path,
        "status": "accepted",
        "links": links(image.image_id),
    }


def predictions_answer(
    image_id: str, found: ImageResults, classifiers: Sequence[str], fitted: Fitted | None = None
) -> dict[str, Any]:
    """What the classifiers say of an image, what they agree on, and how far they are.

    classifiers: the workers that are waited for. fitted: the weights of the consensus, if there are any.
    """
    tasks = None if found.image is None else found.image.tasks
    reached = progress(tasks, found.outcomes, classifiers)
    return {
        "image_id": image_id,
        "status": reached.state,
        "error": reached.error,
        "predictions": [_prediction_answer(prediction) for prediction in found.predictions],
        "consensus": consensus_answer(found.predictions, classifiers, fitted),
        "outcomes": [
            {"worker": outcome.worker, "state": outcome.state, "error": outcome.error}
            for outcome in found.outcomes
        ],
    }


def consensus_answer(
    predictions: Sequence[PredictionRow], classifiers: Sequence[str], fitted: Fitted | None
) -> dict[str, Any] | None:
    """The agreed answer and how it was reached, None while there is no prediction.

    complete: whether every classifier that is waited for has answered; missing: those that have not.
    """
    agreed = agree(predictions, fitted)
    if agreed is None:
        return None
    answered = {prediction.classifier for prediction in predictions}
    awaited = [worker.removeprefix("classifier-") for worker in classifiers]
    return {
        "label": agreed.label,
        "confidence": _short(agreed.confidence),
        "agreement": agreed.agreement,
        "votes": agreed.votes,
        "method": METHOD,
        "weights": {classifier: _short(weight) for classifier, weight in agreed.weights.items()},
        "calibrated": agreed.calibrated,
        "left_out": agreed.left_out,
        "complete": answered.issuperset(awaited),
        "missing": [classifier for classifier in awaited if classifier not in answered],
    }


def results_answer(
    image_id: str, found: ImageResults, classifiers: Sequence[str], fitted: Fitted | None = None
) -> dict[str, Any]:
    """Everything that is known of an image. image: None when it never went through upload."""
    features = found.features
    return predictions_answer(image_id, found, classifiers, fitted) | {
        "image": None if found.image is None else image_answer(found.image),
        "features": None
        if features is None
        else {
            "descriptors": [_short(value) for value in features.descriptors],
            "descriptor_count": len(features.descriptors),
            "model": features.model,
        },
        "qr_codes": [as_json(code) for code in found.codes],
        "ocr": None if found.document is None else ocr_document.as_json(found.document),
    }


def image_answer(image: ImageRow) -> dict[str, Any]:
    """A row of table `images`, with links to what else there is."""
    return {
        "image_id": image.image_id,
        "minio_path": image.minio_path,
        "sha256": image.sha256,
        "bytes": image.bytes,
        "media_type": image.media_type,
        "width": image.width,
        "height": image.height,
        "tasks": image.tasks,
        "created_at": image.created_at,
        "published_at": image.published_at,
        "links": links(image.image_id),
    }


def page_answer(page: Sequence[ImageRow], limit: int) -> dict[str, Any]:
    """A page of the listing. next: what to send as `before` for the page after; None on the last one."""
    return {
        "images": [image_answer(image) for image in page],
        "next": write_cursor(page[-1]) if len(page) == limit else None,
    }


def write_cursor(image: ImageRow) -> str:
    """The place of an image in the listing, as text that needs no quoting in a URL."""
    assert image.created_at is not None, "the listing holds stored rows"
    return f"{image.created_at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ},{image.image_id}"


def read_cursor(text: str) -> tuple[datetime, str]:
    """Time and image id of a `write_cursor`. Raises `Rejected("bad_cursor")`."""
    moment, _, image_id = text.partition(",")
    try:
        return datetime.fromisoformat(moment).astimezone(UTC), checked_image_id(image_id)
    except (ValueError, OverflowError, Rejected) as error:
        raise Rejected("bad_cursor", "`before` is the `next` of the page before.") from error


def _prediction_answer(prediction: PredictionRow) -> dict[str, Any]:
    return {
        "classifier": prediction.classifier,
        "label": prediction.label,
        "confidence": _short(prediction.confidence),
        "probabilities": {
            label: _short(value)
            for label, value in zip(prediction.labels, prediction.probabilities, strict=True)
        },
        "model": prediction.model,
        "model_version": prediction.model_version,
        "latency_ms": _short(prediction.latency_ms),
    }


def _short(value: float) -> float:
    """A float32 without the digits that it never had."""
    return float(f"{value:.6g}")
