"""What does not fit together: objects that no row names, rows whose object is gone, pictures without results.

None of it should be. It comes of servers that were restored from different moments, of a disk that failed, of
a broker that lost what it had acknowledged, or of a topic's retention that was shorter than an outage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from visionmesh.database import Connection, Database
from visionmesh.object_store import Listed
from visionmesh.topics import classifiers

# The workers that read pictures, and the task each of them is asked for.
_READERS: Final = {"feature-extractor": "classify", "qr-decoder": "qr", "ocr-worker": "ocr"}
_EXTRACTOR: Final = "feature-extractor"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the object store and the tables say of each other.

    orphans: objects that an upload has stored and that no row speaks of.
    lost: images whose object is gone, by their ids.
    """

    orphans: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A picture without all its results. workers: those whose answer is missing."""

    image_id: str
    workers: tuple[str, ...]


# What `ingest_api.domain.object_key` makes, and nobody by chance: a UUIDv7, or a client's id and its end.
_UPLOADS: Final = (
    r"/\d{4}/\d\d/\d\d/"
    r"([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}|[^/]+\.[0-9a-f]{12})\.[a-z]+$"
)

# Of what a producer has put into the bucket by itself, outcomes tell, if anything. Those of an upload speak
# of the object in its row, and not of another that was left when it was cut off and the client came again.
_NO_ROW: Final = """
    NOT EXISTS (
        SELECT FROM images
        WHERE images.image_id = ANY(found.image_ids) AND images.minio_path = found.minio_path
    )
    AND NOT EXISTS (
        SELECT FROM deleted_images
        WHERE deleted_images.image_id = ANY(found.image_ids) AND deleted_images.minio_path = found.minio_path
    )
    AND NOT EXISTS (
        SELECT FROM task_outcomes WHERE image_id = ANY(found.image_ids)
            AND NOT EXISTS (SELECT FROM images WHERE images.image_id = task_outcomes.image_id)
    )
"""

_IMAGE_IDS: Final = r"""
    ARRAY[
        substring(minio_path FROM '([^/]+)\.[a-z]+$'),
        substring(minio_path FROM '([^/]+)\.[0-9a-f]{12}\.[a-z]+$')
    ]
"""

_ORPHANS: Final = f"""
    SELECT minio_path FROM (
        SELECT minio_path, {_IMAGE_IDS} AS image_ids FROM found
        WHERE modified_at < now() - make_interval(secs => %(seconds)s)
            AND starts_with(minio_path, %(bucket)s || '/')
            AND substr(minio_path, length(%(bucket)s) + 1) ~ %(uploads)s
    ) AS found
    WHERE {_NO_ROW} ORDER BY minio_path
"""

_IS_ORPHAN: Final = f"""
    SELECT FROM (
        SELECT minio_path, {_IMAGE_IDS} AS image_ids FROM (SELECT %s::text AS minio_path) AS asked
    ) AS found
    WHERE {_NO_ROW}
"""

_LOST: Final = """
    SELECT image_id FROM images
    WHERE created_at < now() - make_interval(secs => %(seconds)s)
        AND NOT EXISTS (SELECT FROM found WHERE found.minio_path = images.minio_path)
    ORDER BY image_id
"""

# A classifier is waited for once the extractor is done: of what it skipped or refused, none hears. Pictures
# that are still in the outbox are on their way already.
_UNANSWERED: Final = """
    SELECT image_id, array_agg(worker ORDER BY worker)
    FROM images CROSS JOIN unnest(%(workers)s::text[], %(tasks)s::text[]) AS asked (worker, task)
    WHERE greatest(created_at, published_at) < now() - make_interval(secs => %(seconds)s)
        AND published_at IS NOT NULL
        AND image_id > %(after)s
        AND (tasks IS NULL OR task = ANY(tasks))
        AND NOT EXISTS (
            SELECT FROM task_outcomes AS ended
            WHERE ended.image_id = images.image_id AND ended.worker = asked.worker AND state <> 'running'
        )
        AND (
            worker = ANY(%(readers)s) OR EXISTS (
                SELECT FROM task_outcomes AS described
                WHERE described.image_id = images.image_id AND described.worker = %(extractor)s
                    AND state = 'done'
            )
        )
    GROUP BY image_id ORDER BY image_id LIMIT %(limit)s
"""

# The relay of ingest-api publishes them, as it does with everything in the outbox.
_ASK_AGAIN: Final = """
    UPDATE images SET published_at = NULL WHERE image_id IN (
        SELECT image_id FROM images WHERE image_id = ANY(%s) ORDER BY image_id FOR UPDATE
    )
"""


class Reconciliation:
    """Questions over the tables and a listing of the object store. Raises `Unavailable` throughout."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def compare(
        self, objects: Iterable[Listed], *, upload_bucket: str, older_than_seconds: float
    ) -> Comparison:
        """older_than_seconds: what is younger is left out: its other half may be on its way."""
        asked = {"seconds": older_than_seconds, "bucket": upload_bucket, "uploads": f"^{_UPLOADS}"}
        with _unhurried(self._database) as connection:
            connection.execute(
                "CREATE TEMPORARY TABLE found (minio_path text, modified_at timestamptz) ON COMMIT DROP"
            )
            with connection.cursor().copy("COPY found FROM STDIN") as rows:
                for each in objects:
                    rows.write_row((each.minio_path, each.modified_at))
            connection.execute("ANALYZE found")
            orphans = connection.execute(_ORPHANS, asked).fetchall()
            lost = connection.execute(_LOST, asked).fetchall()
        return Comparison(tuple(path for (path,) in orphans), tuple(image_id for (image_id,) in lost))

    def is_orphan(self, minio_path: str) -> bool:
        """Whether no row speaks by now of an object that was an orphan: a form of many files writes its rows
        when the last of them is stored.
        """
        with self._database.transaction() as connection:
            return connection.execute(_IS_ORPHAN, (minio_path,)).fetchone() is not None

    def unanswered(
        self,
        *,
        older_than_seconds: float,
        limit: int,
        after: str = "",
        extra_classifiers: Collection[str] = (),
        busy: Collection[str] = (),
    ) -> list[Unanswered]:
        """Pictures that were announced that long ago and have not come to an end everywhere, by id.

        after: the last id of the page before. busy: workers with messages waiting, who are not asked about;
        while the extractor is among them, neither are the classifiers.
        """
        waited_for = {
            **_READERS,
            **dict.fromkeys(classifiers(tuple(extra_classifiers)), _READERS[_EXTRACTOR]),
        }
        asked = {
            worker: task
            for worker, task in waited_for.items()
            if worker not in busy and (worker in _READERS or _EXTRACTOR not in busy)
        }
        parameters: dict[str, Any] = {
            "workers": list(asked),
            "tasks": list(asked.values()),
            "readers": list(_READERS),
            "extractor": _EXTRACTOR,
            "seconds": older_than_seconds,
            "after": after,
            "limit": limit,
        }
        with _unhurried(self._database) as connection:
            rows = connection.execute(_UNANSWERED, parameters).fetchall()
        return [Unanswered(image_id, tuple(workers)) for image_id, workers in rows]

    def ask_again(self, image_ids: Collection[str]) -> int:
        """Puts pictures back into the outbox; returns how many. Workers do again what they have done, and
        store what they stored.
        """
        with self._database.transaction() as connection:
            return connection.execute(_ASK_AGAIN, (list(image_ids),)).rowcount


@contextmanager
def _unhurried(database: Database) -> Iterator[Connection]:
    """A transaction whose statements may take as long as tables are large."""
    with database.transaction() as connection:
        connection.execute("SET LOCAL statement_timeout = 0")
        yield connection
