"""Deleting an image for good: its object, its rows in every table, what is cached of it.

Workers may have it in their hands meanwhile, and its messages may lie in Kafka for weeks. So a deletion is
written down first, in table `deleted_images`, and from that moment on whatever is written of it is dropped:
what writes results holds a lock that a deletion waits for, and looks there. Then the rows go, then the object
and the cached descriptors. An object store that is away is made up for when it is back; and after a while,
when nobody can be working on the image any more, everything is done a second time: a worker may have cached
it anew, and a service of a version without deletions may have written rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Thread
from time import monotonic
from typing import Any, Final, Protocol, cast

import structlog

from visionmesh.cache import Cache
from visionmesh.database import Database
from visionmesh.errors import Rejected, Unavailable
from visionmesh.object_store import ObjectStore
from visionmesh.results import BEFORE_DELETING
from visionmesh.topics import DAY_MS, DEAD_LETTER_RETENTION_MS, TOPICS

log = structlog.get_logger()

# Longer than a worker holds on to a picture. The slowest are documents of hundreds of pages.
SETTLE_SECONDS: Final = 3600.0

# Kafka deletes a segment as a whole, by its newest record, and begins a new one after this time: a topic's
# retention is the least that a record stays, and this much more the most.
_SEGMENT_MS: Final = 7 * DAY_MS

# A dead letter may be sent home on its last day. When that message is gone too, nothing speaks of the image.
REMEMBERED_SECONDS: Final = (
    DEAD_LETTER_RETENTION_MS
    + _SEGMENT_MS
    + max(topic.retention_ms for topic in TOPICS)
    + _SEGMENT_MS
    + DAY_MS
) / 1000

_AT_ONCE: Final = 1000
_DIGESTS_AT_ONCE: Final = 100_000

_FINISH_PERIOD_SECONDS: Final = 60.0
# Nobody counts the days of a picture by the minute.
_AGE_PERIOD_SECONDS: Final = 3600.0

# Any number that no other lock has, the same in every version of this program.
_ROUND_LOCK: Final = 7_346_100_524


@dataclass(frozen=True, slots=True)
class Deleted:
    """An image whose rows are gone. minio_path, sha256: None where no upload brought it."""

    image_id: str
    minio_path: str | None
    sha256: str | None


class Deletions(Protocol):
    """The tables' part. Raises `Unavailable("database", …)` throughout."""

    def delete(self, image_ids: Collection[str]) -> list[Deleted]:
        """Deletes all rows of those images that are known, now or from an earlier call, and drops what is
        written of them from now on. The same call again finds them deleted.
        """

    def older_than(self, seconds: float, *, limit: int) -> list[str]:
        """Images that were uploaded that long ago, the oldest first."""

    def never_uploaded(self, *, older_than_seconds: float, limit: int) -> list[str]:
        """Images that no upload brought, and that were finished with that long ago. To be asked for when
        `older_than` has no more.
        """

    def unfinished(self, *, settle_seconds: float, limit: int) -> list[Deleted]:
        """What has an object that is still there, and what is to be done a second time: what was deleted that
        long ago.
        """

    def cleared(self, image_ids: Collection[str], *, settle_seconds: float | None) -> None:
        """The objects of these are gone. Those that were deleted that long ago are finished; None: none."""

    def forget(self, *, older_than_seconds: float, limit: int) -> int:
        """Forgets finished deletions of that age; returns how many."""

    def alone(self) -> AbstractContextManager[bool]:
        """Whether no other process is inside such a block, and none will be until this one ends."""


class Eraser:
    """Deletes images from every place. Safe to share between threads."""

    def __init__(self, deletions: Deletions, store: ObjectStore, cache: Cache) -> None:
        self._deletions = deletions
        self._store = store
        self._cache = cache

    def erase(self, image_ids: Collection[str]) -> dict[str, bool]:
        """Deletes these images. Returns those that are, or were once, known, and whether their objects are
        gone: while the store is away they are left to `finish`. Raises `Unavailable("database", …)`.
        """
        deleted = self._deletions.delete(image_ids)
        gone = self._remove_objects(deleted)
        self._deletions.cleared(gone, settle_seconds=None)
        # What it does not forget now, it does in the second pass.
        self._cache.forget(_digests(deleted))
        return {each.image_id: each.image_id in gone for each in deleted}

    def erase_older_than(self, seconds: float) -> int:
        """Deletes images by age; returns how many. Raises `Unavailable("database", …)`."""
        count = 0
        digests: set[str] = set()
        for image_ids in self._pages_older_than(seconds):
            deleted = self._deletions.delete(image_ids)
            self._deletions.cleared(self._remove_objects(deleted), settle_seconds=None)
            count += len(deleted)
            # All keys are looked at for one as for many.
            digests |= _digests(deleted)
            if len(digests) >= _DIGESTS_AT_ONCE:
                self._cache.forget(digests)
                digests = set()
        self._cache.forget(digests)
        return count

    def _pages_older_than(self, seconds: float) -> Iterator[list[str]]:
        while image_ids := self._deletions.older_than(seconds, limit=_AT_ONCE):
            yield image_ids
        while image_ids := self._deletions.never_uploaded(older_than_seconds=seconds, limit=_AT_ONCE):
            yield image_ids

    def finish(self, *, settle_seconds: float = SETTLE_SECONDS) -> int:
        """Goes on with deletions whose objects are still there, and does those of that age a second time;
        returns how many it brought further. Those of that age wait for a cache that is away. Raises
        `Unavailable("database", …)`.
        """
        count = 0
        while deleted := self._deletions.unfinished(settle_seconds=settle_seconds, limit=_AT_ONCE):
            self._deletions.delete([each.image_id for each in deleted])
            gone = self._remove_objects(deleted)
            forgotten = self._cache.forget(_digests(deleted))
            self._deletions.cleared(gone, settle_seconds=settle_seconds if forgotten else None)
            count += len(gone)
            if len(gone) < len(deleted) or not forgotten:
                break
        return count

    def forget(self) -> int:
        """Forgets deletions of images that nothing can speak of any more; returns how many. Raises
        `Unavailable("database", …)`.
        """
        count = 0
        while forgotten := self._deletions.forget(older_than_seconds=REMEMBERED_SECONDS, limit=_AT_ONCE):
            count += forgotten
        return count

    def alone(self) -> AbstractContextManager[bool]:
        """Whether no other process is inside such a block. Raises `Unavailable("database", …)`."""
        return self._deletions.alone()

    def _remove_objects(self, deleted: Sequence[Deleted]) -> set[str]:
        """Returns the images whose objects are gone."""
        return {
            each.image_id for each in deleted if each.minio_path is None or self._is_gone(each.minio_path)
        }

    def _is_gone(self, minio_path: str) -> bool:
        try:
            self._store.delete(minio_path)
        except Unavailable as error:
            log.warning("object_not_deleted", minio_path=minio_path, reason=error.reason)
            return False
        except Rejected as error:
            # Its bucket is none of this mesh's any more.
            log.warning("object_left", minio_path=minio_path, reason=error.reason)
        return True


def _digests(deleted: Sequence[Deleted]) -> set[str]:
    return {each.sha256 for each in deleted if each.sha256 is not None}


class RetentionKeeper:
    """Deletes what is too old, and finishes deletions, in a thread of its own from `start` to `stop`.

    Every replica has one, and one of them at a time works: what it has done, the others find done.
    """

    def __init__(self, eraser: Eraser, *, retention_days: int | None) -> None:
        """retention_days: how long images are kept; None keeps them."""
        self._eraser = eraser
        self._retention_days = retention_days
        self._ages_looked_at: float | None = None
        self._stop = Event()
        self._thread = Thread(target=self._run, name="retention", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def keep(self) -> None:
        """One round, unless another replica is in the middle of one. Raises `Unavailable`."""
        with self._eraser.alone() as alone:
            if not alone:
                return
            self._eraser.finish()
            self._keep_days()
            self._eraser.forget()

    def _keep_days(self) -> None:
        looked_at = self._ages_looked_at
        now = monotonic()
        if self._retention_days is None or (looked_at is not None and now - looked_at < _AGE_PERIOD_SECONDS):
            return
        erased = self._eraser.erase_older_than(timedelta(days=self._retention_days).total_seconds())
        self._ages_looked_at = now
        if erased:
            log.info("images_too_old", images=erased, retention_days=self._retention_days)

    def _run(self) -> None:
        while not self._stop.wait(_FINISH_PERIOD_SECONDS):
            try:
                self.keep()
            except Unavailable as error:
                log.warning("retention_waits", server=error.server, reason=error.reason)
            # Uploads are taken whatever goes wrong here.
            except Exception:
                log.exception("retention_failed")


# Every table with rows of an image, `images` last: who finds that one finds what belongs to it.
IMAGE_TABLES: Final = (
    "image_features",
    "predictions",
    "shadow_features",
    "shadow_predictions",
    "qr_codes",
    "ocr_documents",
    "task_outcomes",
    "images",
)

_KNOWN: Final = " UNION ".join(
    f"SELECT image_id FROM {table} WHERE image_id = ANY(%(ids)s)" for table in IMAGE_TABLES
)

# An image that came back through an old service keeps where its object is, which only the first call knows.
_WRITE_DOWN: Final = f"""
    INSERT INTO deleted_images AS stored (image_id, minio_path, sha256)
    SELECT image_id, minio_path, sha256 FROM ({_KNOWN}) AS known LEFT JOIN images USING (image_id)
    ON CONFLICT (image_id) DO UPDATE SET
        minio_path = coalesce(stored.minio_path, excluded.minio_path),
        sha256 = coalesce(stored.sha256, excluded.sha256)
"""

_WRITTEN_DOWN: Final = """
    SELECT image_id, minio_path, sha256 FROM deleted_images WHERE image_id = ANY(%(ids)s) ORDER BY image_id
"""

_OLDER_THAN: Final = """
    SELECT image_id FROM images WHERE created_at < now() - make_interval(secs => %(seconds)s)
    ORDER BY created_at, image_id LIMIT %(limit)s
"""

# Those of uploads that are too old went with their pictures, so that what is oldest here is of no upload, but
# for the few whose picture came later. Picked before it is compared: else all of both tables may be read.
_NEVER_UPLOADED: Final = """
    SELECT DISTINCT image_id FROM (
        SELECT image_id FROM task_outcomes
        WHERE coalesce(finished_at, started_at) < now() - make_interval(secs => %(seconds)s)
        ORDER BY coalesce(finished_at, started_at) LIMIT %(limit)s
    ) AS oldest
    WHERE NOT EXISTS (SELECT FROM images WHERE images.image_id = oldest.image_id)
"""

_UNFINISHED: Final = """
    SELECT image_id, minio_path, sha256 FROM deleted_images
    WHERE finished_at IS NULL
        AND (cleared_at IS NULL OR deleted_at <= now() - make_interval(secs => %s))
    ORDER BY deleted_at LIMIT %s
"""

# Locks in the order of the keys, so that two callers never deadlock.
_CLEARED: Final = """
    UPDATE deleted_images SET
        cleared_at = coalesce(cleared_at, now()),
        finished_at = CASE WHEN deleted_at <= now() - make_interval(secs => %s::float8) THEN now() END
    WHERE image_id IN (
        SELECT image_id FROM deleted_images
        WHERE image_id = ANY(%s) AND finished_at IS NULL ORDER BY image_id FOR UPDATE
    )
"""

_FORGET: Final = """
    DELETE FROM deleted_images WHERE image_id IN (
        SELECT image_id FROM deleted_images
        WHERE finished_at < now() - make_interval(secs => %(seconds)s) ORDER BY finished_at LIMIT %(limit)s
    )
"""


class PostgresDeletions:
    """`Deletions` on Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def delete(self, image_ids: Collection[str]) -> list[Deleted]:
        asked: dict[str, Any] = {"ids": sorted(set(image_ids))}
        # Committed by itself, so that nobody who writes waits for what follows.
        with self._database.transaction() as connection:
            connection.execute(BEFORE_DELETING)
            connection.execute(_WRITE_DOWN, asked)
        with self._database.transaction() as connection:
            rows = connection.execute(_WRITTEN_DOWN, asked).fetchall()
            found = {"ids": [row[0] for row in rows]}
            for table in IMAGE_TABLES:
                connection.execute(f"DELETE FROM {table} WHERE image_id = ANY(%(ids)s)", found)
        return [Deleted(*row) for row in rows]

    def older_than(self, seconds: float, *, limit: int) -> list[str]:
        with self._database.transaction() as connection:
            rows = connection.execute(_OLDER_THAN, {"seconds": seconds, "limit": limit}).fetchall()
        return [cast(str, image_id) for (image_id,) in rows]

    def never_uploaded(self, *, older_than_seconds: float, limit: int) -> list[str]:
        asked = {"seconds": older_than_seconds, "limit": limit}
        with self._database.transaction() as connection:
            rows = connection.execute(_NEVER_UPLOADED, asked).fetchall()
        return [cast(str, image_id) for (image_id,) in rows]

    def unfinished(self, *, settle_seconds: float, limit: int) -> list[Deleted]:
        with self._database.transaction() as connection:
            rows = connection.execute(_UNFINISHED, (settle_seconds, limit)).fetchall()
        return [Deleted(*row) for row in rows]

    def cleared(self, image_ids: Collection[str], *, settle_seconds: float | None) -> None:
        with self._database.transaction() as connection:
            connection.execute(_CLEARED, (settle_seconds, list(image_ids)))

    def forget(self, *, older_than_seconds: float, limit: int) -> int:
        asked = {"seconds": older_than_seconds, "limit": limit}
        with self._database.transaction() as connection:
            return connection.execute(_FORGET, asked).rowcount

    @contextmanager
    def alone(self) -> Iterator[bool]:
        with self._database.one_more() as database, database.transaction() as connection:
            got = connection.execute("SELECT pg_try_advisory_lock(%s)", (_ROUND_LOCK,)).fetchone() == (True,)
            # The lock is the connection's and not the transaction's, which would be too long an idle one.
            connection.commit()
            try:
                yield got
            finally:
                if got:
                    connection.execute("SELECT pg_advisory_unlock(%s)", (_ROUND_LOCK,))
