"""`ObjectStore` in memory."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator
from datetime import UTC, datetime
from threading import Lock

from visionmesh.object_store import PIECE_BYTES, Listed, Stream, object_not_found, split_path, too_many_bytes
from visionmesh.testing.faults import Faults


class MemoryObjectStore(Faults):
    """`ObjectStore` without a server, for many threads at once. Its buckets exist from the start."""

    def __init__(self, allowed_buckets: Collection[str] = ("raw-images",)) -> None:
        super().__init__("object_store")
        self._allowed = tuple(allowed_buckets)
        self._lock = Lock()
        self._objects: dict[str, tuple[bytes, str, datetime]] = {}

    def get(self, minio_path: str, *, max_bytes: int) -> bytes:
        data = self._read(minio_path)
        if len(data) > max_bytes:
            raise too_many_bytes(minio_path, max_bytes)
        return data

    def stream(self, minio_path: str) -> Stream:
        data = self._read(minio_path)
        return Stream(len(data), self._pieces(data))

    def put(
        self, minio_path: str, chunks: Iterable[bytes], *, media_type: str, sha256: str | None = None
    ) -> int:
        split_path(minio_path, self._allowed)
        data = b"".join(chunks)
        with self._lock:
            self._answer()
            self._objects[minio_path] = (data, media_type, datetime.now(UTC))
        return len(data)

    def delete(self, minio_path: str) -> None:
        split_path(minio_path, self._allowed)
        with self._lock:
            self._answer()
            self._objects.pop(minio_path, None)

    def objects(self) -> Iterator[Listed]:
        with self._lock:
            self._answer()
            listed = [
                Listed(path, len(data), modified_at)
                for path, (data, _, modified_at) in sorted(self._objects.items())
            ]
        yield from listed

    def ensure_buckets(self) -> None:
        self._answer()

    def ping(self) -> None:
        self._answer()

    def _read(self, minio_path: str) -> bytes:
        split_path(minio_path, self._allowed)
        with self._lock:
            self._answer()
            if minio_path not in self._objects:
                raise object_not_found(minio_path)
            data, _, _ = self._objects[minio_path]
        return data

    def _pieces(self, data: bytes) -> Generator[bytes, None, None]:
        for start in range(0, len(data), PIECE_BYTES):
            self._answer()
            yield data[start : start + PIECE_BYTES]

    def paths(self) -> list[str]:
        """The `minio_path` of every object, sorted."""
        with self._lock:
            return sorted(self._objects)
