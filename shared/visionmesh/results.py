"""What workers find, what uploads bring, and the ports through which both reach the database.

A row is a plain value; `ResultStore` writes many of them in one transaction. Every write is an
idempotent upsert: the same rows written twice leave the same table. `Images` is the side of the upload
endpoint: the pictures it took, its outbox, and what users read.

What is written of an image that was deleted is dropped (`visionmesh.deletion`), whoever still worked on it.

Beside the statements here, SQL lives only in `deploy/postgres/migrations`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any, Final, Generic, Literal, Protocol, TypeVar, cast

from psycopg.types.json import Jsonb

from visionmesh.columns import IntegerColumn, RealColumn, TextColumn, integers, reals, texts
from visionmesh.database import Connection, Database
from visionmesh.errors import Rejected
from visionmesh.ocr_document import OcrDocument, as_json, from_json
from visionmesh.qr_code import Place, QrCode
from visionmesh.search_text import HEADLINE, folded, for_spanish, places, question
from visionmesh.sensors import ReadingsWriter, SensorReadingRow
from visionmesh.topics import IMAGES

OutcomeState = Literal["running", "done", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class FeaturesRow:
    """Table `image_features`, one per image. `model` is `name@version` of the extractor."""

    image_id: str
    descriptors: tuple[float, ...]
    model: str


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """Table `predictions`, one per image and classifier.

    probabilities: one per label, in the order of `labels`.
    latency_ms: inference time of this picture: the batch's time divided by its size.
    """

    image_id: str
    classifier: str
    label: str
    confidence: float
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    model: str
    model_version: str
    latency_ms: float


@dataclass(frozen=True, slots=True)
class ShadowFeaturesRow:
    """Table `shadow_features`, one per image and model: what an extractor in shadow found.

    latency_ms: inference time of this picture: the batch's time divided by its size.
    """

    image_id: str
    descriptors: tuple[float, ...]
    model: str
    latency_ms: float


@dataclass(frozen=True, slots=True)
class ShadowPredictionRow(PredictionRow):
    """Table `shadow_predictions`, one per image, classifier, model and version: the answer of a model in
    shadow, which is never shown as the classifier's.
    """


@dataclass(frozen=True, slots=True)
class QrCodesRow:
    """All codes of one picture, in the order of reading: one row each in table `qr_codes`.

    It takes the place of whatever codes of the picture were stored, also when it has none.
    """

    image_id: str
    codes: tuple[QrCode, ...]


@dataclass(frozen=True, slots=True)
class OcrDocumentRow:
    """Table `ocr_documents`, one per image: its text, coordinates to a tenth of a pixel."""

    image_id: str
    document: OcrDocument


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """Table `task_outcomes`, one per image and worker: what became of a piece of work.

    error: `code: reason` when `failed` or `skipped`, else None.
    """

    image_id: str
    worker: str
    state: OutcomeState
    error: str | None = None


Row = (
    FeaturesRow
    | PredictionRow
    | ShadowFeaturesRow
    | ShadowPredictionRow
    | QrCodesRow
    | OcrDocumentRow
    | OutcomeRow
    | SensorReadingRow
)


class ResultStore(Protocol):
    """Where workers write. Raises `Unavailable("database", …)` when the server is away."""

    def interrupted(self, worker: str, image_ids: Sequence[str]) -> list[int]:
        """For each image, how many attempts of `worker` began since the last one that came to an end.

        Anything above 0 means that the process died in the middle: of this picture, or of a neighbour.
        """

    def begin(self, worker: str, image_ids: Sequence[str]) -> None:
        """Writes down, before native code runs, that `worker` is about to try these images.

        Committed on return, so that it survives the death of the caller. Adds 1 to `interrupted` until a
        final `OutcomeRow` is saved, which sets it to 0.
        """

    def withdraw(self, worker: str, image_ids: Sequence[str]) -> None:
        """Takes one `begin` back: nothing was tried, because a server was away."""

    def save(self, rows: Sequence[Row]) -> None:
        """Writes all rows in one transaction; of two rows with one key the later one stays. Rows of an image
        that was deleted are none.
        """

    def deleted(self, image_ids: Collection[str]) -> set[str]:
        """Which of these images were deleted."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """Table `images`: a picture that came through upload.

    bytes, width, height: of the stored picture; width and height in pixels, None when not known.
    tasks: what was asked for, None for every task.
    created_at, published_at: set by the database; a picture without the latter is in the outbox.
    """

    image_id: str
    minio_path: str
    sha256: str
    bytes: int
    media_type: str
    width: int | None = None
    height: int | None = None
    tasks: tuple[str, ...] | None = None
    created_at: datetime | None = None
    published_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFeatures(FeaturesRow):
    """What stands in `image_features`; `created_at` is when it was first written."""

    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPrediction(PredictionRow):
    """What stands in `predictions`; `created_at` is when it was first written."""

    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOutcome(OutcomeRow):
    """What stands in `task_outcomes`.

    attempt: number of the last attempt, from 1; 0 when the only one was withdrawn.
    started_at: of the last attempt, None when it was not written down.
    finished_at: None while running.
    """

    attempt: int
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class AddedImage:
    """The picture as it is stored now, and whether this call stored it."""

    image: ImageRow
    created: bool


@dataclass(frozen=True, slots=True)
class ImageResults:
    """All that is known of an image. `image` is None when it never went through upload.

    predictions: ordered by classifier. outcomes: ordered by worker. codes: in the order of reading.
    document: None when no text was looked for; one without text is there.
    """

    image: ImageRow | None
    features: StoredFeatures | None
    predictions: tuple[StoredPrediction, ...]
    outcomes: tuple[StoredOutcome, ...]
    codes: tuple[QrCode, ...] = ()
    document: OcrDocument | None = None


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """A document that a search found.

    rank: the higher the better, comparable within one search. places: where in its text the words that were
    asked for begin and end; only of the first `HIGHLIGHTED` characters.
    """

    image_id: str
    document: OcrDocument
    created_at: datetime
    rank: float
    places: tuple[tuple[int, int], ...]


# A place in a queue that is longer than this is told as this.
COUNTED: Final = 10_000

# How far into a document the words that were asked for are looked up again to be shown: 30 pages. Both
# stemmers go through that much of every document that a search answers with.
HIGHLIGHTED: Final = 100_000


class OutboxClaim(Protocol):
    """Pictures that one relay holds and no other relay sees meanwhile, oldest first."""

    @property
    def images(self) -> tuple[ImageRow, ...]: ...

    def published(self, image_ids: Iterable[str]) -> None:
        """Kafka took these. Takes effect when the claim's block ends, and not at all if it raises."""


class Images(Protocol):
    """What the upload endpoint stores and reads. Raises `Unavailable("database", …)` throughout."""

    def add_image(self, row: ImageRow) -> AddedImage:
        """Stores a picture once. An `image_id` that is known with the same sha256 is answered with what
        is stored; with another one it raises `Rejected("image_id_conflict", …)`, and with that of a picture
        that was deleted `Rejected("image_deleted", …)`.
        """

    def mark_published(self, image_ids: Iterable[str]) -> None:
        """Kafka took these; they leave the outbox. The time of the first call stays."""

    def unpublished(self, *, older_than_seconds: float, limit: int) -> AbstractContextManager[OutboxClaim]:
        """Claims up to `limit` pictures that have waited in the outbox for that long. Nobody else claims
        them until the block ends.
        """

    def pending(self) -> int:
        """How many pictures are in the outbox."""

    def image(self, image_id: str) -> ImageRow | None: ...

    def images(self, *, limit: int, before: tuple[datetime, str] | None = None) -> list[ImageRow]:
        """A page of pictures, newest first. `before` is the `(created_at, image_id)` of the last row of
        the page before.
        """

    def results(self, image_id: str, *, document: bool = True) -> ImageResults | None:
        """All that is known of an image, or None when nothing is. What shadows found is not told.

        document: whether its text is wanted, which may be hundreds of pages.
        """

    def outcome(self, image_id: str, worker: str) -> StoredOutcome | None:
        """What became of one worker's work on an image, None as long as it has not begun."""

    def document(self, image_id: str) -> OcrDocument | None:
        """The text of an image, None when none was looked for."""

    def waiting_before(self, image: ImageRow, worker: str, task: str) -> int:
        """How many pictures that ask for `task` were stored before `image` and have not come to an end at
        `worker`. No more are counted than `COUNTED`.
        """

    def search(self, text: str, *, limit: int, offset: int = 0) -> list[FoundDocument]:
        """The documents with these words, in any of their forms, the best first, and then the newest.

        text: as people type it: all words, `or` between alternatives, quotes around phrases, a minus before
        what must not be there.
        """


@dataclass(frozen=True, slots=True, order=True)
class ShadowClassifier:
    """A model that was in shadow of a classifier."""

    classifier: str
    model: str
    model_version: str


@dataclass(frozen=True, slots=True)
class PredictionPair:
    """What the classifier and a model in its shadow said of one picture.

    model: `name@version` of the model whose answer is shown. latency_ms: as in `PredictionRow`.
    """

    image_id: str
    model: str
    label: str
    confidence: float
    latency_ms: float
    shadow_label: str
    shadow_confidence: float
    shadow_latency_ms: float


@dataclass(frozen=True, slots=True)
class FeaturesPair:
    """What the extractor and one in its shadow found in one picture.

    model: of the extractor whose descriptors the classifiers were given.
    labels: what the classifiers made of those, by classifier.
    """

    image_id: str
    model: str
    descriptors: tuple[float, ...]
    shadow_descriptors: tuple[float, ...]
    shadow_latency_ms: float
    labels: Mapping[str, str]


class Shadows(Protocol):
    """What models in shadow found, beside what is shown. Raises `Unavailable("database", …)` throughout.

    within_seconds: how long ago the shadow's row was first written, at most.
    limit: at most so many pictures, the newest.
    """

    def classifiers(self, *, within_seconds: float) -> list[ShadowClassifier]:
        """Every model that was in shadow of a classifier, in order."""

    def extractors(self, *, within_seconds: float) -> list[str]:
        """Every model, as `ShadowFeaturesRow.model` names it, that was in shadow of the extractor."""

    def predictions(
        self, shadow: ShadowClassifier, *, within_seconds: float, limit: int
    ) -> list[PredictionPair]:
        """The pictures that both the classifier and its shadow answered, newest first."""

    def features(self, model: str, *, within_seconds: float, limit: int) -> list[FeaturesPair]:
        """The pictures that both the extractor and its shadow `model` described, newest first."""


R = TypeVar("R")


def last_of_each(rows: Iterable[R], key: Callable[[R], tuple[str, ...]]) -> list[R]:
    """The last row of each key, in the order of the keys.

    One statement may touch a row only once, and writers that lock rows in one order never deadlock.
    """
    last = {key(row): row for row in rows}
    return [last[each] for each in sorted(last)]


def storable_text(text: str | None) -> str | None:
    """`text` as Postgres can keep it. The reason of a failure may quote what it failed on."""
    if text is None:
        return None
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def storable_document(document: OcrDocument) -> OcrDocument:
    """`document` as Postgres can keep it."""
    return replace(
        document,
        text=storable_text(document.text) or "",
        lines=tuple(replace(line, text=storable_text(line.text) or "") for line in document.lines),
    )


class _Slices(Generic[R]):
    """Many arrays as one flat array with bounds, since `unnest` does not give back an array per row.

    Equal arrays are sent once: a batch of predictions has one and the same tuple of labels.
    lows, highs: the 1-based, inclusive bounds of each row's slice.
    """

    def __init__(self, rows: Iterable[tuple[R, ...]]) -> None:
        self.flat: list[R] = []
        self.lows: list[int] = []
        self.highs: list[int] = []
        bounds: dict[tuple[R, ...], tuple[int, int]] = {}
        for row in rows:
            if row not in bounds:
                bounds[row] = (len(self.flat) + 1, len(self.flat) + len(row))
                self.flat.extend(row)
            low, high = bounds[row]
            self.lows.append(low)
            self.highs.append(high)


# Any number, the same in every version of this program.
_DELETION_LOCK: Final = 7_346_100_522

# A deletion waits for those who write, and those who begin to write afterwards see what was deleted: a
# statement sees what is committed when it begins, so this one comes first. Writers don't wait for each other.
BEFORE_WRITING: Final = f"SELECT pg_advisory_xact_lock_shared({_DELETION_LOCK})"
BEFORE_DELETING: Final = f"SELECT pg_advisory_xact_lock({_DELETION_LOCK})"

_NOT_DELETED: Final = """
    WHERE NOT EXISTS (SELECT FROM deleted_images WHERE deleted_images.image_id = row.image_id)
"""

_DELETED: Final = "SELECT image_id FROM deleted_images WHERE image_id = ANY(%s)"

_BEGIN: Final = f"""
    INSERT INTO task_outcomes AS stored (image_id, worker, state, attempt, started_at)
    SELECT image_id, %(worker)s, 'running', 1, now()
    FROM unnest(%(image_ids)s) AS row (image_id)
    {_NOT_DELETED}
    ON CONFLICT (image_id, worker) DO UPDATE SET
        state = 'running',
        attempt = CASE stored.state WHEN 'running' THEN stored.attempt + 1 ELSE 1 END,
        error = NULL, started_at = now(), finished_at = NULL
"""

_INTERRUPTED: Final = """
    SELECT image_id, attempt FROM task_outcomes
    WHERE worker = %s AND image_id = ANY(%s) AND state = 'running'
"""

# Locks in the order of the keys, so that two callers never deadlock.
_WITHDRAW: Final = """
    UPDATE task_outcomes SET attempt = attempt - 1
    WHERE worker = %(worker)s AND image_id IN (
        SELECT image_id FROM task_outcomes
        WHERE worker = %(worker)s AND image_id = ANY(%(image_ids)s) AND state = 'running' AND attempt > 0
        ORDER BY image_id FOR UPDATE
    )
"""

_SAVE_FEATURES: Final = f"""
    INSERT INTO image_features (image_id, descriptors, model)
    SELECT image_id, (%(flat)s)[low:high], model
    FROM unnest(%(image_ids)s, %(lows)s, %(highs)s, %(models)s)
        AS row (image_id, low, high, model)
    {_NOT_DELETED}
    ON CONFLICT (image_id) DO UPDATE SET descriptors = excluded.descriptors, model = excluded.model
"""

_SAVE_SHADOW_FEATURES: Final = f"""
    INSERT INTO shadow_features (image_id, model, descriptors, latency_ms)
    SELECT image_id, model, (%(flat)s)[low:high], latency_ms
    FROM unnest(%(image_ids)s, %(models)s, %(lows)s, %(highs)s, %(latencies)s)
        AS row (image_id, model, low, high, latency_ms)
    {_NOT_DELETED}
    ON CONFLICT (image_id, model) DO UPDATE SET
        descriptors = excluded.descriptors, latency_ms = excluded.latency_ms
"""


def _save_predictions_into(table: str, key: str) -> str:
    """The upsert of `_predictions_parameters`. key: the columns that tell two rows of the table apart."""
    return f"""
        INSERT INTO {table} (
            image_id, classifier, label, confidence, labels, probabilities, model, model_version, latency_ms
        )
        SELECT
            image_id, classifier, label, confidence, (%(labels)s)[labels_low:labels_high],
            (%(probabilities)s)[low:high], model, model_version, latency_ms
        FROM unnest(
            %(image_ids)s, %(classifiers)s, %(label)s, %(confidences)s,
            %(labels_lows)s, %(labels_highs)s, %(lows)s, %(highs)s,
            %(models)s, %(model_versions)s, %(latencies)s
        ) AS row (
            image_id, classifier, label, confidence, labels_low, labels_high, low, high,
            model, model_version, latency_ms
        )
        {_NOT_DELETED}
        ON CONFLICT ({key}) DO UPDATE SET
            label = excluded.label, confidence = excluded.confidence, labels = excluded.labels,
            probabilities = excluded.probabilities, model = excluded.model,
            model_version = excluded.model_version, latency_ms = excluded.latency_ms
    """


_SAVE_PREDICTIONS: Final = _save_predictions_into("predictions", "image_id, classifier")
_SAVE_SHADOW_PREDICTIONS: Final = _save_predictions_into(
    "shadow_predictions", "image_id, classifier, model, model_version"
)

# Two writers of one picture, of which each sees only what was committed when it began, would leave a mixture
# of their codes. So they take turns; and they ask in the order of the locks, so that they never deadlock.
_LOCK_QR_CODES: Final = """
    SELECT pg_advisory_xact_lock(key) FROM (
        SELECT DISTINCT hashtextextended('qr_codes:' || image_id, 0) AS key
        FROM unnest(%(image_ids)s) AS image_id ORDER BY key
    ) AS keys
"""

_SURPLUS_QR_CODES: Final = """
    DELETE FROM qr_codes USING unnest(%(image_ids)s, %(counts)s) AS row (image_id, count)
    WHERE qr_codes.image_id = row.image_id AND qr_codes.number > row.count
"""

_QR_CODE_COLUMNS: Final = tuple(field.name for field in fields(QrCode))

# As JSON: codes are few, and so are those who would read a row with fifteen columns as arrays of each.
_SAVE_QR_CODES: Final = f"""
    INSERT INTO qr_codes (image_id, number, {", ".join(_QR_CODE_COLUMNS)})
    SELECT
        image_id, number, content, decode(data, 'base64'), corners, decoder, symbology, level_used, level,
        preprocessing_applied, preprocessing, rotation_angle, confidence, processing_time_ms, parts, sequence
    FROM jsonb_to_recordset(%(codes)s) AS row (
        image_id text, number integer, content text, data text, corners double precision[], decoder text,
        symbology text, level_used integer, level text, preprocessing_applied boolean, preprocessing text,
        rotation_angle integer, confidence double precision, processing_time_ms double precision,
        parts integer, sequence integer[]
    )
    {_NOT_DELETED}
    ON CONFLICT (image_id, number) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in _QR_CODE_COLUMNS)}
"""

_SAVE_DOCUMENTS: Final = f"""
    INSERT INTO ocr_documents (image_id, text, lines, pages, language, engine, seconds, search)
    SELECT image_id, text, lines, pages, language, engine, seconds, search_vector(spanish, english)
    FROM jsonb_to_recordset(%(documents)s) AS row (
        image_id text, text text, lines jsonb, pages jsonb, language text, engine text, seconds jsonb,
        spanish text, english text
    )
    {_NOT_DELETED}
    ON CONFLICT (image_id) DO UPDATE SET
        text = excluded.text, lines = excluded.lines, pages = excluded.pages, language = excluded.language,
        engine = excluded.engine, seconds = excluded.seconds, search = excluded.search
"""

# An outcome that is written again keeps the time at which it first came about.
_SAVE_OUTCOMES: Final = f"""
    INSERT INTO task_outcomes AS stored (image_id, worker, state, attempt, error, started_at, finished_at)
    SELECT
        image_id, worker, state, 1, error,
        CASE state WHEN 'running' THEN now() END, CASE WHEN state <> 'running' THEN now() END
    FROM unnest(%(image_ids)s, %(workers)s, %(states)s, %(errors)s)
        AS row (image_id, worker, state, error)
    {_NOT_DELETED}
    ON CONFLICT (image_id, worker) DO UPDATE SET
        state = excluded.state, error = excluded.error,
        finished_at = CASE
            WHEN stored.state = excluded.state AND stored.error IS NOT DISTINCT FROM excluded.error
            THEN stored.finished_at ELSE excluded.finished_at
        END
"""


class PostgresResultStore:
    """`ResultStore` on Postgres: one statement per table, whatever the number of rows."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._readings = ReadingsWriter()

    def interrupted(self, worker: str, image_ids: Sequence[str]) -> list[int]:
        with self._database.transaction() as connection:
            rows = connection.execute(_INTERRUPTED, (worker, list(image_ids))).fetchall()
        attempts: dict[str, int] = dict(rows)
        return [attempts.get(image_id, 0) for image_id in image_ids]

    def begin(self, worker: str, image_ids: Sequence[str]) -> None:
        with self._database.transaction() as connection, connection.pipeline():
            connection.execute(BEFORE_WRITING)
            connection.execute(_BEGIN, {"worker": worker, "image_ids": texts(sorted(set(image_ids)))})

    def withdraw(self, worker: str, image_ids: Sequence[str]) -> None:
        with self._database.transaction() as connection:
            connection.execute(_WITHDRAW, {"worker": worker, "image_ids": list(image_ids)})

    def save(self, rows: Sequence[Row]) -> None:
        readings = [row for row in rows if isinstance(row, SensorReadingRow)]
        if readings:
            # In a transaction of their own: they are never together with rows of a picture.
            with self._database.transaction() as connection:
                self._readings.save(connection, readings)
        if len(readings) == len(rows):
            return
        features = [row for row in rows if isinstance(row, FeaturesRow)]
        # A shadow's row is a prediction too, and must never be taken for the classifier's.
        predictions = [row for row in rows if type(row) is PredictionRow]
        shadow_features = [row for row in rows if isinstance(row, ShadowFeaturesRow)]
        shadow_predictions = [row for row in rows if isinstance(row, ShadowPredictionRow)]
        qr_codes = [row for row in rows if isinstance(row, QrCodesRow)]
        documents = [row for row in rows if isinstance(row, OcrDocumentRow)]
        outcomes = [row for row in rows if isinstance(row, OutcomeRow)]
        # The pipeline saves waiting for the answer to each statement before sending the next.
        with self._database.transaction() as connection, connection.pipeline():
            connection.execute(BEFORE_WRITING)
            # In the same order of tables everywhere, again so that two writers never deadlock.
            if features:
                connection.execute(_SAVE_FEATURES, _features_parameters(features))
            if predictions:
                connection.execute(_SAVE_PREDICTIONS, _predictions_parameters(predictions, _prediction_key))
            if shadow_features:
                connection.execute(_SAVE_SHADOW_FEATURES, _shadow_features_parameters(shadow_features))
            if shadow_predictions:
                connection.execute(
                    _SAVE_SHADOW_PREDICTIONS,
                    _predictions_parameters(shadow_predictions, _shadow_prediction_key),
                )
            if qr_codes:
                parameters = _qr_codes_parameters(qr_codes)
                for statement in (_LOCK_QR_CODES, _SURPLUS_QR_CODES, _SAVE_QR_CODES):
                    connection.execute(statement, parameters)
            if documents:
                connection.execute(_SAVE_DOCUMENTS, _documents_parameters(documents))
            if outcomes:
                connection.execute(_SAVE_OUTCOMES, _outcomes_parameters(outcomes))

    def deleted(self, image_ids: Collection[str]) -> set[str]:
        with self._database.transaction() as connection:
            rows = connection.execute(_DELETED, (list(image_ids),)).fetchall()
        return {cast(str, image_id) for (image_id,) in rows}


Column = TextColumn | RealColumn | IntegerColumn


def _features_parameters(rows: Iterable[FeaturesRow]) -> dict[str, Column]:
    rows = last_of_each(rows, lambda row: (row.image_id,))
    descriptors = _Slices(row.descriptors for row in rows)
    return {
        "image_ids": texts([row.image_id for row in rows]),
        "flat": reals(descriptors.flat),
        "lows": integers(descriptors.lows),
        "highs": integers(descriptors.highs),
        "models": texts([row.model for row in rows]),
    }


def _shadow_features_parameters(rows: Iterable[ShadowFeaturesRow]) -> dict[str, Column]:
    rows = last_of_each(rows, lambda row: (row.image_id, row.model))
    descriptors = _Slices(row.descriptors for row in rows)
    return {
        "image_ids": texts([row.image_id for row in rows]),
        "models": texts([row.model for row in rows]),
        "flat": reals(descriptors.flat),
        "lows": integers(descriptors.lows),
        "highs": integers(descriptors.highs),
        "latencies": reals(row.latency_ms for row in rows),
    }


def _prediction_key(row: PredictionRow) -> tuple[str, ...]:
    return (row.image_id, row.classifier)


def _shadow_prediction_key(row: PredictionRow) -> tuple[str, ...]:
    return (row.image_id, row.classifier, row.model, row.model_version)


def _predictions_parameters(
    rows: Iterable[PredictionRow], key: Callable[[PredictionRow], tuple[str, ...]]
) -> dict[str, Column]:
    rows = last_of_each(rows, key)
    labels = _Slices(row.labels for row in rows)
    probabilities = _Slices(row.probabilities for row in rows)
    return {
        "image_ids": texts([row.image_id for row in rows]),
        "classifiers": texts([row.classifier for row in rows]),
        "label": texts([row.label for row in rows]),
        "confidences": reals(row.confidence for row in rows),
        "labels": texts(labels.flat),
        "labels_lows": integers(labels.lows),
        "labels_highs": integers(labels.highs),
        "probabilities": reals(probabilities.flat),
        "lows": integers(probabilities.lows),
        "highs": integers(probabilities.highs),
        "models": texts([row.model for row in rows]),
        "model_versions": texts([row.model_version for row in rows]),
        "latencies": reals(row.latency_ms for row in rows),
    }


def _qr_codes_parameters(rows: Iterable[QrCodesRow]) -> dict[str, Column | Jsonb]:
    rows = last_of_each(rows, lambda row: (row.image_id,))
    codes = [
        {
            **asdict(code),
            "image_id": row.image_id,
            "number": number,
            "content": storable_text(code.content),
            "data": b64encode(code.data).decode(),
        }
        for row in rows
        for number, code in enumerate(row.codes, 1)
    ]
    return {
        "image_ids": texts([row.image_id for row in rows]),
        "counts": integers([len(row.codes) for row in rows]),
        "codes": Jsonb(codes),
    }


def _documents_parameters(rows: Iterable[OcrDocumentRow]) -> dict[str, Jsonb]:
    rows = last_of_each(rows, lambda row: (row.image_id,))
    documents = []
    for row in rows:
        told = as_json(storable_document(row.document))
        words = folded(told["text"])
        documents.append(
            {
                "image_id": row.image_id,
                **{name: told[name] for name in ("text", "lines", "pages", "language", "engine")},
                "seconds": told["seconds_by_stage"],
                "spanish": for_spanish(words),
                "english": words,
            }
        )
    return {"documents": Jsonb(documents)}


def _outcomes_parameters(rows: Iterable[OutcomeRow]) -> dict[str, Column]:
    rows = last_of_each(rows, lambda row: (row.image_id, row.worker))
    return {
        "image_ids": texts([row.image_id for row in rows]),
        "workers": texts([row.worker for row in rows]),
        "states": texts([row.state for row in rows]),
        "errors": texts([storable_text(row.error) for row in rows]),
    }


_IMAGE_COLUMNS: Final = (
    "image_id, minio_path, sha256, bytes, media_type, width, height, tasks, created_at, published_at"
)

# The update changes nothing; it is there because `DO NOTHING` would return no row for a known id.
_ADD_IMAGE: Final = f"""
    INSERT INTO images (image_id, minio_path, sha256, bytes, media_type, width, height, tasks)
    SELECT * FROM (
        VALUES (
            %s::text, %s::text, %s::text, %s::bigint, %s::text, %s::integer, %s::integer, %s::text[]
        )
    ) AS row (image_id)
    {_NOT_DELETED}
    ON CONFLICT (image_id) DO UPDATE SET image_id = excluded.image_id
    RETURNING {_IMAGE_COLUMNS}, xmax = 0 AS created
"""

# Locks in the order of the keys, so that two callers never deadlock.
_MARK_PUBLISHED: Final = """
    UPDATE images SET published_at = now()
    WHERE image_id IN (
        SELECT image_id FROM images
        WHERE image_id = ANY(%s) AND published_at IS NULL
        ORDER BY image_id FOR UPDATE
    )
"""

_UNPUBLISHED: Final = f"""
    SELECT {_IMAGE_COLUMNS} FROM images
    WHERE published_at IS NULL AND created_at <= now() - make_interval(secs => %s)
    ORDER BY created_at
    LIMIT %s
    FOR UPDATE SKIP LOCKED
"""

_IMAGE: Final = f"SELECT {_IMAGE_COLUMNS} FROM images WHERE image_id = %s"

_NEWEST_IMAGES: Final = f"""
    SELECT {_IMAGE_COLUMNS} FROM images ORDER BY created_at DESC, image_id DESC LIMIT %s
"""

_IMAGES_BEFORE: Final = f"""
    SELECT {_IMAGE_COLUMNS} FROM images WHERE (created_at, image_id) < (%s, %s)
    ORDER BY created_at DESC, image_id DESC LIMIT %s
"""

_FEATURES: Final = "SELECT image_id, descriptors, model, created_at FROM image_features WHERE image_id = %s"

_PREDICTIONS: Final = """
    SELECT image_id, classifier, label, confidence, labels, probabilities, model, model_version,
        latency_ms, created_at
    FROM predictions WHERE image_id = %s ORDER BY classifier
"""

_QR_CODES: Final = f"""
    SELECT {", ".join(_QR_CODE_COLUMNS)} FROM qr_codes WHERE image_id = %s ORDER BY number
"""

_OUTCOME_COLUMNS: Final = "image_id, worker, state, error, attempt, started_at, finished_at"

_OUTCOMES: Final = f"""
    SELECT {_OUTCOME_COLUMNS} FROM task_outcomes WHERE image_id = %s ORDER BY worker
"""

_OUTCOME: Final = f"SELECT {_OUTCOME_COLUMNS} FROM task_outcomes WHERE image_id = %s AND worker = %s"

_DOCUMENT_COLUMNS: Final = "text, lines, pages, language, engine, seconds"

_DOCUMENT: Final = f"SELECT {_DOCUMENT_COLUMNS} FROM ocr_documents WHERE image_id = %s"

# What the topic no longer holds will never be done. The inner limit keeps a place in a long queue cheap.
_WAITING_BEFORE: Final = """
    SELECT count(*) FROM (
        SELECT image_id FROM images
        WHERE (created_at, image_id) < (%(created_at)s, %(image_id)s)
            AND created_at > now() - make_interval(secs => %(seconds)s)
            AND (tasks IS NULL OR %(task)s = ANY(tasks))
        ORDER BY created_at DESC, image_id DESC LIMIT %(counted)s
    ) AS before
    WHERE NOT EXISTS (
        SELECT FROM task_outcomes
        WHERE task_outcomes.image_id = before.image_id AND worker = %(worker)s AND state <> 'running'
    )
"""

# Headlines are made for the page that is shown alone, and once by each stemmer.
_SEARCH: Final = f"""
    SELECT image_id, {_DOCUMENT_COLUMNS}, created_at, rank FROM (
        SELECT *, ts_rank(search, asked, 1) AS rank
        FROM ocr_documents,
            (
                SELECT websearch_to_tsquery('pg_catalog.spanish', %(spanish)s)
                    || websearch_to_tsquery('pg_catalog.english', %(english)s)
            ) AS question (asked)
        WHERE search @@ asked
    ) AS found
    ORDER BY rank DESC, created_at DESC, image_id LIMIT %(limit)s OFFSET %(offset)s
"""

_HEADLINES: Final = """
    SELECT
        ts_headline('pg_catalog.spanish', spanish, asked, %(options)s),
        ts_headline('pg_catalog.english', english, asked, %(options)s)
    FROM unnest(%(spanish_texts)s, %(english_texts)s) WITH ORDINALITY AS row (spanish, english, number),
        (
            SELECT websearch_to_tsquery('pg_catalog.spanish', %(spanish)s)
                || websearch_to_tsquery('pg_catalog.english', %(english)s)
        ) AS question (asked)
    ORDER BY number
"""


class PostgresImages:
    """`Images` on Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_image(self, row: ImageRow) -> AddedImage:
        tasks = None if row.tasks is None else list(row.tasks)
        with self._database.transaction() as connection, connection.pipeline():
            connection.execute(BEFORE_WRITING)
            stored = connection.execute(
                _ADD_IMAGE,
                (
                    row.image_id, row.minio_path, row.sha256, row.bytes, row.media_type,
                    row.width, row.height, tasks,
                ),
            ).fetchone()  # fmt: skip
        if stored is None:
            raise deleted_before(row.image_id)
        *columns, created = stored
        return added_or_conflict(AddedImage(_image(columns), bool(created)), row)

    def mark_published(self, image_ids: Iterable[str]) -> None:
        with self._database.transaction() as connection:
            connection.execute(_MARK_PUBLISHED, (list(image_ids),))

    @contextmanager
    def unpublished(self, *, older_than_seconds: float, limit: int) -> Iterator[OutboxClaim]:
        with self._database.transaction() as connection:
            rows = connection.execute(_UNPUBLISHED, (older_than_seconds, limit)).fetchall()
            yield _LockedRows(connection, tuple(_image(row) for row in rows))

    def pending(self) -> int:
        with self._database.transaction() as connection:
            row = connection.execute("SELECT count(*) FROM images WHERE published_at IS NULL").fetchone()
        return cast(int, row[0]) if row else 0

    def image(self, image_id: str) -> ImageRow | None:
        with self._database.transaction() as connection:
            row = connection.execute(_IMAGE, (image_id,)).fetchone()
        return None if row is None else _image(row)

    def images(self, *, limit: int, before: tuple[datetime, str] | None = None) -> list[ImageRow]:
        with self._database.transaction() as connection:
            rows = connection.execute(
                _NEWEST_IMAGES if before is None else _IMAGES_BEFORE, (*(before or ()), limit)
            ).fetchall()
        return [_image(row) for row in rows]

    def results(self, image_id: str, *, document: bool = True) -> ImageResults | None:
        with self._database.transaction() as connection:
            # Outcomes first: each statement sees what is committed by then, and results are committed
            # together with their outcome, so whoever is `done` here has its results below.
            outcomes = connection.execute(_OUTCOMES, (image_id,)).fetchall()
            image = connection.execute(_IMAGE, (image_id,)).fetchone()
            features = connection.execute(_FEATURES, (image_id,)).fetchone()
            predictions = connection.execute(_PREDICTIONS, (image_id,)).fetchall()
            codes = connection.execute(_QR_CODES, (image_id,)).fetchall()
            text = connection.execute(_DOCUMENT, (image_id,)).fetchone() if document else None
        if not (image or features or predictions or codes or text or outcomes):
            return None
        return ImageResults(
            image=None if image is None else _image(image),
            features=None if features is None else _features(features),
            predictions=tuple(_prediction(row) for row in predictions),
            outcomes=tuple(_outcome(row) for row in outcomes),
            codes=tuple(_qr_code(row) for row in codes),
            document=None if text is None else _document(text),
        )

    def outcome(self, image_id: str, worker: str) -> StoredOutcome | None:
        with self._database.transaction() as connection:
            row = connection.execute(_OUTCOME, (image_id, worker)).fetchone()
        return None if row is None else _outcome(row)

    def document(self, image_id: str) -> OcrDocument | None:
        with self._database.transaction() as connection:
            row = connection.execute(_DOCUMENT, (image_id,)).fetchone()
        return None if row is None else _document(row)

    def waiting_before(self, image: ImageRow, worker: str, task: str) -> int:
        asked = {
            "image_id": image.image_id,
            "created_at": image.created_at,
            "seconds": IMAGES.retention_ms / 1000,
            "task": task,
            "worker": worker,
            "counted": COUNTED,
        }
        with self._database.transaction() as connection:
            row = connection.execute(_WAITING_BEFORE, asked).fetchone()
        return cast(int, row[0]) if row else 0

    def search(self, text: str, *, limit: int, offset: int = 0) -> list[FoundDocument]:
        words = question(storable_text(text) or "")
        asked = {"spanish": for_spanish(words), "english": words}
        with self._database.transaction() as connection:
            rows = connection.execute(_SEARCH, {**asked, "limit": limit, "offset": offset}).fetchall()
            found = [(row[0], _document(row[1:-2]), row[-2], row[-1]) for row in rows]
            shown = [folded(document.text[:HIGHLIGHTED]) for _, document, _, _ in found]
            headlines = connection.execute(
                _HEADLINES,
                {
                    **asked,
                    "options": HEADLINE,
                    "spanish_texts": texts([for_spanish(each) for each in shown]),
                    "english_texts": texts(shown),
                },
            ).fetchall()
        return [
            FoundDocument(*each, places=tuple(sorted({*places(spanish), *places(english)})))
            for each, (spanish, english) in zip(found, headlines, strict=True)
        ]


_SHADOW_CLASSIFIERS: Final = """
    SELECT DISTINCT classifier, model, model_version FROM shadow_predictions
    WHERE created_at >= now() - make_interval(secs => %s)
    ORDER BY classifier, model, model_version
"""

_SHADOW_EXTRACTORS: Final = """
    SELECT DISTINCT model FROM shadow_features
    WHERE created_at >= now() - make_interval(secs => %s) ORDER BY model
"""

_PREDICTION_PAIRS: Final = """
    SELECT shadow.image_id, shown.model || '@' || shown.model_version,
        shown.label, shown.confidence, shown.latency_ms,
        shadow.label, shadow.confidence, shadow.latency_ms
    FROM shadow_predictions AS shadow JOIN predictions AS shown USING (image_id, classifier)
    WHERE shadow.classifier = %s AND shadow.model = %s AND shadow.model_version = %s
        AND shadow.created_at >= now() - make_interval(secs => %s)
    ORDER BY shadow.created_at DESC, shadow.image_id DESC LIMIT %s
"""

_FEATURES_PAIRS: Final = """
    SELECT shadow.image_id, shown.model, shown.descriptors, shadow.descriptors, shadow.latency_ms,
        (
            SELECT coalesce(jsonb_object_agg(classifier, label), '{}') FROM predictions
            WHERE predictions.image_id = shadow.image_id
        )
    FROM shadow_features AS shadow JOIN image_features AS shown USING (image_id)
    WHERE shadow.model = %s AND shadow.created_at >= now() - make_interval(secs => %s)
    ORDER BY shadow.created_at DESC, shadow.image_id DESC LIMIT %s
"""


class PostgresShadows:
    """`Shadows` on Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def classifiers(self, *, within_seconds: float) -> list[ShadowClassifier]:
        with self._database.transaction() as connection:
            rows = connection.execute(_SHADOW_CLASSIFIERS, (within_seconds,)).fetchall()
        return [ShadowClassifier(*row) for row in rows]

    def extractors(self, *, within_seconds: float) -> list[str]:
        with self._database.transaction() as connection:
            rows = connection.execute(_SHADOW_EXTRACTORS, (within_seconds,)).fetchall()
        return [cast(str, model) for (model,) in rows]

    def predictions(
        self, shadow: ShadowClassifier, *, within_seconds: float, limit: int
    ) -> list[PredictionPair]:
        asked = (shadow.classifier, shadow.model, shadow.model_version, within_seconds, limit)
        with self._database.transaction() as connection:
            rows = connection.execute(_PREDICTION_PAIRS, asked).fetchall()
        return [PredictionPair(*row) for row in rows]

    def features(self, model: str, *, within_seconds: float, limit: int) -> list[FeaturesPair]:
        with self._database.transaction() as connection:
            # As text, thousands of arrays take longer to read than to find.
            rows = connection.execute(_FEATURES_PAIRS, (model, within_seconds, limit), binary=True).fetchall()
        return [
            FeaturesPair(image_id, shown, tuple(descriptors), tuple(shadow_descriptors), latency, labels)
            for image_id, shown, descriptors, shadow_descriptors, latency, labels in rows
        ]


class _LockedRows:
    """An `OutboxClaim` whose rows are locked by the transaction it lives in."""

    def __init__(self, connection: Connection, images: tuple[ImageRow, ...]) -> None:
        self._connection = connection
        self.images = images

    def published(self, image_ids: Iterable[str]) -> None:
        self._connection.execute(_MARK_PUBLISHED, (list(image_ids),))


def deleted_before(image_id: str) -> Rejected:
    """The rejection of a picture whose id stood for one that was deleted: results of that one may still be on
    their way.
    """
    return Rejected("image_deleted", f"image_id {image_id} was deleted; give the picture another id")


def added_or_conflict(added: AddedImage, asked: ImageRow) -> AddedImage:
    """`added`, unless its id already stands for another picture than `asked`."""
    if added.image.sha256 != asked.sha256:
        raise Rejected(
            "image_id_conflict", f"image_id {asked.image_id} already stands for a different picture"
        )
    return added


def _image(row: Sequence[Any]) -> ImageRow:
    image_id, minio_path, sha256, size, media_type, width, height, tasks, created_at, published_at = row
    return ImageRow(
        image_id, minio_path, sha256, size, media_type, width, height,
        None if tasks is None else tuple(tasks), created_at, published_at,
    )  # fmt: skip


def _features(row: Sequence[Any]) -> StoredFeatures:
    image_id, descriptors, model, created_at = row
    return StoredFeatures(image_id, tuple(descriptors), model, created_at=created_at)


def _prediction(row: Sequence[Any]) -> StoredPrediction:
    image_id, classifier, label, confidence, labels, probabilities, model, version, latency, created_at = row
    return StoredPrediction(
        image_id, classifier, label, confidence, tuple(labels), tuple(probabilities), model, version,
        latency, created_at=created_at,
    )  # fmt: skip


def _qr_code(row: Sequence[Any]) -> QrCode:
    stored = dict(zip(_QR_CODE_COLUMNS, row, strict=True))
    stored["corners"] = tuple((x, y) for x, y in stored["corners"])
    stored["sequence"] = None if stored["sequence"] is None else Place(*stored["sequence"])
    return QrCode(**stored)


def _document(row: Sequence[Any]) -> OcrDocument:
    text, lines, pages, language, engine, seconds = row
    return from_json(
        {
            "text": text,
            "lines": lines,
            "pages": pages,
            "language": language,
            "engine": engine,
            "seconds_by_stage": seconds,
        }
    )


def _outcome(row: Sequence[Any]) -> StoredOutcome:
    image_id, worker, state, error, attempt, started_at, finished_at = row
    return StoredOutcome(
        image_id, worker, state, error, attempt=attempt, started_at=started_at, finished_at=finished_at
    )
