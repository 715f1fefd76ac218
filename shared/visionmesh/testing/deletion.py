"""`Deletions` in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock

from visionmesh.deletion import Deleted
from visionmesh.testing.faults import Faults
from visionmesh.testing.results import MemoryImages


@dataclass
class _Deletion:
    deleted: Deleted
    at: datetime
    is_cleared: bool = False
    finished_at: datetime | None = None


class MemoryDeletions(Faults):
    """`Deletions` of the images in memory, and of their results. Not for several threads at once."""

    def __init__(self, images: MemoryImages) -> None:
        super().__init__("database")
        self._images = images
        self._deletions: dict[str, _Deletion] = {}
        self._round = Lock()

    def delete(self, image_ids: Collection[str]) -> list[Deleted]:
        self._answer()
        for image_id in image_ids:
            if image_id in self._deletions or not self._images.knows(image_id):
                continue
            image = self._images.image(image_id)
            path, digest = (None, None) if image is None else (image.minio_path, image.sha256)
            self._deletions[image_id] = _Deletion(Deleted(image_id, path, digest), _now())
        known = sorted(self._deletions.keys() & set(image_ids))
        self._images.delete(known)
        return [self._deletions[image_id].deleted for image_id in known]

    def older_than(self, seconds: float, *, limit: int) -> list[str]:
        self._answer()
        latest = _now() - timedelta(seconds=seconds)
        return self._images.uploaded_before(latest)[:limit]

    def never_uploaded(self, *, older_than_seconds: float, limit: int) -> list[str]:
        self._answer()
        latest = _now() - timedelta(seconds=older_than_seconds)
        return self._images.never_uploaded(latest)[:limit]

    def unfinished(self, *, settle_seconds: float, limit: int) -> list[Deleted]:
        self._answer()
        latest = _now() - timedelta(seconds=settle_seconds)
        return [
            each.deleted
            for each in sorted(self._deletions.values(), key=lambda each: each.at)
            if each.finished_at is None and (not each.is_cleared or each.at <= latest)
        ][:limit]

    def cleared(self, image_ids: Collection[str], *, settle_seconds: float | None) -> None:
        self._answer()
        latest = None if settle_seconds is None else _now() - timedelta(seconds=settle_seconds)
        for image_id in image_ids:
            deletion = self._deletions[image_id]
            deletion.is_cleared = True
            if latest is not None and deletion.at <= latest and deletion.finished_at is None:
                deletion.finished_at = _now()

    def forget(self, *, older_than_seconds: float, limit: int) -> int:
        self._answer()
        latest = _now() - timedelta(seconds=older_than_seconds)
        old = [
            image_id
            for image_id, each in self._deletions.items()
            if each.finished_at is not None and each.finished_at < latest
        ][:limit]
        for image_id in old:
            del self._deletions[image_id]
        self._images.forget_deleted(old)
        return len(old)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        self._answer()
        got = self._round.acquire(blocking=False)
        try:
            yield got
        finally:
            if got:
                self._round.release()


def _now() -> datetime:
    return datetime.now(UTC)
