"""`ResultStore` and `Images` in memory."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import RLock
from typing import TypeVar

from visionmesh.columns import float32
from visionmesh.ocr_document import OcrDocument, as_json, from_json
from visionmesh.qr_code import QrCode
from visionmesh.results import (
    AddedImage,
    FeaturesPair,
    FeaturesRow,
    FoundDocument,
    ImageResults,
    ImageRow,
    OcrDocumentRow,
    OutboxClaim,
    OutcomeRow,
    PredictionPair,
    PredictionRow,
    QrCodesRow,
    Row,
    ShadowClassifier,
    ShadowFeaturesRow,
    ShadowPredictionRow,
    StoredFeatures,
    StoredOutcome,
    StoredPrediction,
    added_or_conflict,
    deleted_before,
    storable_document,
    storable_text,
)
from visionmesh.search_text import folded
from visionmesh.sensors import SensorReadingRow
from visionmesh.testing.faults import Faults
from visionmesh.testing.sensors import MemorySensors


class MemoryResultStore(Faults):
    """`ResultStore` without a server, for many threads at once."""

    def __init__(self) -> None:
        super().__init__("database")
        self._lock = RLock()
        self._features: dict[str, StoredFeatures] = {}
        self._predictions: dict[tuple[str, str], StoredPrediction] = {}
        self._outcomes: dict[tuple[str, str], StoredOutcome] = {}
        self._qr_codes: dict[str, tuple[QrCode, ...]] = {}
        self._documents: dict[str, tuple[OcrDocument, datetime]] = {}
        self._shadow_features: dict[tuple[str, str], tuple[ShadowFeaturesRow, datetime]] = {}
        self._shadow_predictions: dict[tuple[str, str, str, str], tuple[ShadowPredictionRow, datetime]] = {}
        self._deleted: set[str] = set()
        self.sensors = MemorySensors()

    def interrupted(self, worker: str, image_ids: Sequence[str]) -> list[int]:
        with self._lock:
            self._answer()
            return [self._attempts(worker, image_id) for image_id in image_ids]

    def begin(self, worker: str, image_ids: Sequence[str]) -> None:
        with self._lock:
            self._answer()
            for image_id in set(image_ids) - self._deleted:
                attempt = self._attempts(worker, image_id) + 1
                self._outcomes[image_id, worker] = StoredOutcome(
                    image_id, worker, "running", attempt=attempt, started_at=_now(), finished_at=None
                )

    def withdraw(self, worker: str, image_ids: Sequence[str]) -> None:
        with self._lock:
            self._answer()
            for image_id in set(image_ids):
                attempts = self._attempts(worker, image_id)
                if attempts > 0:
                    stored = self._outcomes[image_id, worker]
                    self._outcomes[image_id, worker] = replace(stored, attempt=attempts - 1)

    def save(self, rows: Sequence[Row]) -> None:
        with self._lock:
            self._answer()
            for row in rows:
                if not isinstance(row, SensorReadingRow) and row.image_id in self._deleted:
                    continue
                if isinstance(row, FeaturesRow):
                    self._save_features(row)
                elif isinstance(row, ShadowFeaturesRow):
                    self._save_shadow_features(row)
                elif isinstance(row, ShadowPredictionRow):
                    self._save_shadow_prediction(row)
                elif isinstance(row, PredictionRow):
                    self._save_prediction(row)
                elif isinstance(row, QrCodesRow):
                    self._save_qr_codes(row)
                elif isinstance(row, OcrDocumentRow):
                    self._save_document(row)
                elif isinstance(row, SensorReadingRow):
                    self.sensors.save([row])
                else:
                    self._save_outcome(row)

    def deleted(self, image_ids: Collection[str]) -> set[str]:
        with self._lock:
            self._answer()
            return self._deleted.intersection(image_ids)

    def delete(self, image_ids: Collection[str]) -> None:
        """Drops every row of these images, and from now on what is written of them."""
        with self._lock:
            self._answer()
            self._deleted.update(image_ids)
            self._features = {key: row for key, row in self._features.items() if key not in image_ids}
            self._documents = {key: row for key, row in self._documents.items() if key not in image_ids}
            self._qr_codes = {key: row for key, row in self._qr_codes.items() if key not in image_ids}
            self._predictions = _without(self._predictions, image_ids)
            self._outcomes = _without(self._outcomes, image_ids)
            self._shadow_features = _without(self._shadow_features, image_ids)
            self._shadow_predictions = _without(self._shadow_predictions, image_ids)

    def forget_deleted(self, image_ids: Collection[str]) -> None:
        """From now on what is written of them is kept again."""
        with self._lock:
            self._deleted.difference_update(image_ids)

    def features(self) -> list[StoredFeatures]:
        """Every row of `image_features`, by key."""
        with self._lock:
            return [self._features[key] for key in sorted(self._features)]

    def predictions(self) -> list[StoredPrediction]:
        """Every row of `predictions`, by key."""
        with self._lock:
            return [self._predictions[key] for key in sorted(self._predictions)]

    def outcomes(self) -> list[StoredOutcome]:
        """Every row of `task_outcomes`, by key."""
        with self._lock:
            return [self._outcomes[key] for key in sorted(self._outcomes)]

    def qr_codes(self) -> list[QrCodesRow]:
        """Every picture that has codes, with all of them, by image."""
        with self._lock:
            return [QrCodesRow(key, self._qr_codes[key]) for key in sorted(self._qr_codes)]

    def documents(self) -> list[tuple[OcrDocumentRow, datetime]]:
        """Every row of `ocr_documents` and when it was first written, by image."""
        with self._lock:
            return [
                (OcrDocumentRow(key, document), created_at)
                for key, (document, created_at) in sorted(self._documents.items())
            ]

    def shadow_features(self) -> list[tuple[ShadowFeaturesRow, datetime]]:
        """Every row of `shadow_features` and when it was first written, by key."""
        with self._lock:
            return [self._shadow_features[key] for key in sorted(self._shadow_features)]

    def shadow_predictions(self) -> list[tuple[ShadowPredictionRow, datetime]]:
        """Every row of `shadow_predictions` and when it was first written, by key."""
        with self._lock:
            return [self._shadow_predictions[key] for key in sorted(self._shadow_predictions)]

    def _attempts(self, worker: str, image_id: str) -> int:
        row = self._outcomes.get((image_id, worker))
        return row.attempt if row is not None and row.state == "running" else 0

    def _save_features(self, row: FeaturesRow) -> None:
        known = self._features.get(row.image_id)
        self._features[row.image_id] = StoredFeatures(
            row.image_id,
            tuple(float32(row.descriptors)),
            row.model,
            created_at=known.created_at if known else _now(),
        )

    def _save_prediction(self, row: PredictionRow) -> None:
        known = self._predictions.get((row.image_id, row.classifier))
        confidence, latency_ms = float32((row.confidence, row.latency_ms))
        self._predictions[row.image_id, row.classifier] = StoredPrediction(
            row.image_id,
            row.classifier,
            row.label,
            confidence,
            row.labels,
            tuple(float32(row.probabilities)),
            row.model,
            row.model_version,
            latency_ms,
            created_at=known.created_at if known else _now(),
        )

    def _save_shadow_features(self, row: ShadowFeaturesRow) -> None:
        key = (row.image_id, row.model)
        _, created_at = self._shadow_features.get(key, (row, _now()))
        (latency_ms,) = float32((row.latency_ms,))
        rounded = replace(row, descriptors=tuple(float32(row.descriptors)), latency_ms=latency_ms)
        self._shadow_features[key] = (rounded, created_at)

    def _save_shadow_prediction(self, row: ShadowPredictionRow) -> None:
        key = (row.image_id, row.classifier, row.model, row.model_version)
        _, created_at = self._shadow_predictions.get(key, (row, _now()))
        confidence, latency_ms = float32((row.confidence, row.latency_ms))
        rounded = replace(
            row,
            confidence=confidence,
            probabilities=tuple(float32(row.probabilities)),
            latency_ms=latency_ms,
        )
        self._shadow_predictions[key] = (rounded, created_at)

    def _save_qr_codes(self, row: QrCodesRow) -> None:
        self._qr_codes.pop(row.image_id, None)
        if row.codes:
            self._qr_codes[row.image_id] = tuple(
                replace(code, content=storable_text(code.content) or "") for code in row.codes
            )

    def _save_document(self, row: OcrDocumentRow) -> None:
        _, created_at = self._documents.get(row.image_id, (row, _now()))
        self._documents[row.image_id] = (from_json(as_json(storable_document(row.document))), created_at)

    def _save_outcome(self, row: OutcomeRow) -> None:
        known = self._outcomes.get((row.image_id, row.worker))
        error = storable_text(row.error)
        running = row.state == "running"
        finished_at = None if running else _now()
        if known is not None and (known.state, known.error) == (row.state, error):
            finished_at = known.finished_at
        self._outcomes[row.image_id, row.worker] = StoredOutcome(
            row.image_id,
            row.worker,
            row.state,
            error,
            attempt=known.attempt if known else 1,
            started_at=known.started_at if known else _now() if running else None,
            finished_at=finished_at,
        )


class MemoryImages(Faults):
    """`Images` without a server; `results` are read from the store that the workers write to."""

    def __init__(self, results: MemoryResultStore) -> None:
        super().__init__("database")
        self._results = results
        self._lock = RLock()
        self._images: dict[str, ImageRow] = {}
        self._claimed: set[str] = set()

    def add_image(self, row: ImageRow) -> AddedImage:
        with self._lock:
            self._answer()
            if self._results.deleted([row.image_id]):
                raise deleted_before(row.image_id)
            created = row.image_id not in self._images
            if created:
                self._images[row.image_id] = replace(row, created_at=_now(), published_at=None)
            return added_or_conflict(AddedImage(self._images[row.image_id], created), row)

    def mark_published(self, image_ids: Iterable[str]) -> None:
        with self._lock:
            self._answer()
            self._mark(image_ids)

    @contextmanager
    def unpublished(self, *, older_than_seconds: float, limit: int) -> Iterator[OutboxClaim]:
        with self._lock:
            self._answer()
            latest = _now() - timedelta(seconds=older_than_seconds)
            waiting = [
                row
                for row in reversed(self._newest_first())
                if row.published_at is None
                and row.image_id not in self._claimed
                and _created_at(row) <= latest
            ][:limit]
            claim = _MemoryClaim(tuple(waiting))
            self._claimed.update(row.image_id for row in waiting)
        try:
            yield claim
            with self._lock:
                self._answer()
                self._mark(claim.taken)
        finally:
            with self._lock:
                self._claimed.difference_update(row.image_id for row in waiting)

    def pending(self) -> int:
        with self._lock:
            self._answer()
            return sum(row.published_at is None for row in self._images.values())

    def image(self, image_id: str) -> ImageRow | None:
        with self._lock:
            self._answer()
            return self._images.get(image_id)

    def images(self, *, limit: int, before: tuple[datetime, str] | None = None) -> list[ImageRow]:
        with self._lock:
            self._answer()
            rows = self._newest_first()
            if before is not None:
                rows = [row for row in rows if (row.created_at, row.image_id) < before]
            return rows[:limit]

    def results(self, image_id: str, *, document: bool = True) -> ImageResults | None:
        found = ImageResults(
            image=self.image(image_id),
            features=next((row for row in self._results.features() if row.image_id == image_id), None),
            predictions=tuple(row for row in self._results.predictions() if row.image_id == image_id),
            outcomes=tuple(row for row in self._results.outcomes() if row.image_id == image_id),
            codes=next((row.codes for row in self._results.qr_codes() if row.image_id == image_id), ()),
            document=self.document(image_id) if document else None,
        )
        return None if found == ImageResults(None, None, (), ()) else found

    def outcome(self, image_id: str, worker: str) -> StoredOutcome | None:
        self._answer()
        rows = (row for row in self._results.outcomes() if (row.image_id, row.worker) == (image_id, worker))
        return next(rows, None)

    def document(self, image_id: str) -> OcrDocument | None:
        self._answer()
        rows = (row.document for row, _ in self._results.documents() if row.image_id == image_id)
        return next(rows, None)

    def waiting_before(self, image: ImageRow, worker: str, task: str) -> int:
        with self._lock:
            self._answer()
            rows = self._newest_first()
        place = (_created_at(image), image.image_id)
        ended = {row.image_id for row in self._results.outcomes() if _has_ended(row, worker)}
        return sum(
            (row.tasks is None or task in row.tasks) and row.image_id not in ended
            for row in rows
            if (_created_at(row), row.image_id) < place
        )

    def search(self, text: str, *, limit: int, offset: int = 0) -> list[FoundDocument]:
        """As it is spoken of there, but for words alone, and in the form in which they are asked for."""
        self._answer()
        words = folded(text).split()
        found = []
        for row, created_at in self._results.documents():
            spots = [
                (spot.start(), spot.end())
                for spot in re.finditer(r"\w+", folded(row.document.text))
                if spot[0] in words
            ]
            met = {folded(row.document.text[begin:end]) for begin, end in spots}
            if words and met.issuperset(words):
                found.append(
                    FoundDocument(row.image_id, row.document, created_at, float(len(spots)), tuple(spots))
                )
        found.sort(key=lambda each: (-each.rank, -each.created_at.timestamp(), each.image_id))
        return found[offset : offset + limit]

    def delete(self, image_ids: Collection[str]) -> None:
        """Drops the rows of these images, and those of the results."""
        with self._lock:
            self._answer()
            self._results.delete(image_ids)
            for image_id in image_ids:
                self._images.pop(image_id, None)

    def forget_deleted(self, image_ids: Collection[str]) -> None:
        """Takes pictures of these ids again."""
        self._results.forget_deleted(image_ids)

    def knows(self, image_id: str) -> bool:
        """Whether there is any row of the image, of what shadows found as well."""
        shadows = {row.image_id for row, _ in self._results.shadow_features()}
        shadows.update(row.image_id for row, _ in self._results.shadow_predictions())
        return self.results(image_id) is not None or image_id in shadows

    def uploaded_before(self, latest: datetime) -> list[str]:
        """Images that were uploaded before, the oldest first."""
        with self._lock:
            self._answer()
            return [row.image_id for row in reversed(self._newest_first()) if _created_at(row) < latest]

    def never_uploaded(self, latest: datetime) -> list[str]:
        """Images without an upload that were worked on before."""
        with self._lock:
            self._answer()
            others = {
                row.image_id
                for row in self._results.outcomes()
                if row.image_id not in self._images and (row.finished_at or row.started_at or latest) < latest
            }
            return sorted(others)

    def _newest_first(self) -> list[ImageRow]:
        return sorted(self._images.values(), key=lambda row: (_created_at(row), row.image_id), reverse=True)

    def _mark(self, image_ids: Iterable[str]) -> None:
        for image_id in image_ids:
            row = self._images.get(image_id)
            if row is not None and row.published_at is None:
                self._images[image_id] = replace(row, published_at=_now())


class MemoryShadows(Faults):
    """`Shadows` without a server, read from the store that the workers write to."""

    def __init__(self, results: MemoryResultStore) -> None:
        super().__init__("database")
        self._results = results

    def classifiers(self, *, within_seconds: float) -> list[ShadowClassifier]:
        self._answer()
        rows = _newest(self._results.shadow_predictions(), within_seconds)
        return sorted({ShadowClassifier(row.classifier, row.model, row.model_version) for row in rows})

    def extractors(self, *, within_seconds: float) -> list[str]:
        self._answer()
        return sorted({row.model for row in _newest(self._results.shadow_features(), within_seconds)})

    def predictions(
        self, shadow: ShadowClassifier, *, within_seconds: float, limit: int
    ) -> list[PredictionPair]:
        self._answer()
        shown = {(row.image_id, row.classifier): row for row in self._results.predictions()}
        return [
            PredictionPair(
                row.image_id,
                f"{primary.model}@{primary.model_version}",
                primary.label,
                primary.confidence,
                primary.latency_ms,
                row.label,
                row.confidence,
                row.latency_ms,
            )
            for row in _newest(self._results.shadow_predictions(), within_seconds)
            if ShadowClassifier(row.classifier, row.model, row.model_version) == shadow
            and (primary := shown.get((row.image_id, row.classifier)))
        ][:limit]

    def features(self, model: str, *, within_seconds: float, limit: int) -> list[FeaturesPair]:
        self._answer()
        shown = {row.image_id: row for row in self._results.features()}
        labels: dict[str, dict[str, str]] = {}
        for prediction in self._results.predictions():
            labels.setdefault(prediction.image_id, {})[prediction.classifier] = prediction.label
        return [
            FeaturesPair(
                row.image_id,
                primary.model,
                primary.descriptors,
                row.descriptors,
                row.latency_ms,
                labels.get(row.image_id, {}),
            )
            for row in _newest(self._results.shadow_features(), within_seconds)
            if row.model == model and (primary := shown.get(row.image_id))
        ][:limit]


class _MemoryClaim:
    def __init__(self, images: tuple[ImageRow, ...]) -> None:
        self.images = images
        self.taken: list[str] = []

    def published(self, image_ids: Iterable[str]) -> None:
        self.taken.extend(image_ids)


K = TypeVar("K", tuple[str, str], tuple[str, str, str, str])
V = TypeVar("V")


def _without(table: dict[K, V], image_ids: Collection[str]) -> dict[K, V]:
    return {key: row for key, row in table.items() if key[0] not in image_ids}


S = TypeVar("S", ShadowFeaturesRow, ShadowPredictionRow)


def _newest(rows: list[tuple[S, datetime]], within_seconds: float) -> list[S]:
    earliest = _now() - timedelta(seconds=within_seconds)
    in_order = sorted(rows, key=lambda stored: (stored[1], stored[0].image_id), reverse=True)
    return [row for row, created_at in in_order if created_at >= earliest]


def _has_ended(row: StoredOutcome, worker: str) -> bool:
    return row.worker == worker and row.state != "running"


def _now() -> datetime:
    return datetime.now(UTC)


def _created_at(row: ImageRow) -> datetime:
    assert row.created_at is not None  # set when the row was added
    return row.created_at
