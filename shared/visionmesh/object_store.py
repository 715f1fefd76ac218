"""The object store: pictures in, pictures out, on MinIO or any S3.

A `minio_path` is `bucket/key`, and comes from whoever may write to Kafka: `split_path` lets through only
buckets of the allow-list and keys that name one plain object.
"""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from typing import Final, Protocol, Self, cast

import visionmesh.lean_minio  # noqa: F401 - before anything else imports minio

# isort: split
import structlog
import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.datatypes import Part
from minio.error import InvalidResponseError, MinioException, S3Error
from minio.helpers import DictType
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from visionmesh.errors import Rejected, Unavailable
from visionmesh.observability.metrics import OBJECT_STORE_SECONDS
from visionmesh.settings import ROOT, Settings, settings_or_exit

log = structlog.get_logger()

# S3's limit for a key, taken here for the whole path.
PATH_MAX_BYTES: Final = 1024
# The smallest part that S3 takes; what fits into one part is stored with a single request.
PART_BYTES: Final = 5 * 1024 * 1024
# Of a stream: large enough that handing pieces on costs nothing, small enough to hold one for each reader.
PIECE_BYTES: Final = 256 * 1024

CONNECT_TIMEOUT_SECONDS: Final = 2.0
# Between two reads of a socket, not for a whole transfer.
READ_TIMEOUT_SECONDS: Final = 10.0
# Threads that may use the client at once without opening connections that are thrown away after use.
POOLED_CONNECTIONS: Final = 32

# What a signed request says of its body.
_SHA256_HEADER: Final = "x-amz-content-sha256"

# The object that the message names is not there.
_NOT_FOUND: Final = frozenset({"NoSuchKey", "NoSuchBucket"})
# The server's own rules for names, beyond those of `split_path`.
_BAD_NAME: Final = frozenset(
    {
        "InvalidBucketName",
        "InvalidObjectName",
        "KeyTooLongError",
        "XMinioInvalidObjectName",
        "XMinioInvalidResourceName",
        "XMinioObjectExistsAsDirectory",
        "XMinioParentIsObject",
    }
)
_ALREADY_THERE: Final = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})


@dataclass(frozen=True, slots=True)
class Stream:
    """An object on its way. length: of all pieces together, None when the server does not say.

    A reader who stops before the last piece closes `pieces`, or drops it.
    """

    length: int | None
    pieces: Generator[bytes, None, None]


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing tells of it. length: in bytes. modified_at: with a time zone."""

    minio_path: str
    length: int
    modified_at: datetime


class ObjectStore(Protocol):
    """Where pictures lie. Raises `Unavailable("object_store", …)` when the server is away or refuses us,
    and `Rejected` with code `bad_path` or `bucket_not_allowed` for a path that names nothing we serve.
    """

    def get(self, minio_path: str, *, max_bytes: int) -> bytes:
        """The object's bytes. Raises `Rejected` with code `object_not_found` or `too_many_bytes`."""

    def stream(self, minio_path: str) -> Stream:
        """The object's bytes, however many, piece by piece. Raises `Rejected` with code `object_not_found`.

        A server that goes away half-way is `Unavailable` to whoever takes the next piece.
        """

    def put(
        self, minio_path: str, chunks: Iterable[bytes], *, media_type: str, sha256: str | None = None
    ) -> int:
        """Stores what `chunks` yields, holding a few MiB of it at a time, and returns its length in bytes.

        sha256: hex digest of all of it, where the caller knows it; the server then checks against that one.
        Nothing is stored when `chunks` raises; its exception leaves as it is.
        """

    def delete(self, minio_path: str) -> None:
        """Removes the object, if it is there."""

    def objects(self) -> Iterator[Listed]:
        """Every object of the allowed buckets, in no order that a reader may count on. A bucket that does not
        exist has none.
        """

    def ensure_buckets(self) -> None:
        """Makes the allowed buckets that do not exist yet."""

    def ping(self) -> None:
        """Returns if the server answers and has the allowed buckets."""


def split_path(minio_path: str, allowed_buckets: Collection[str]) -> tuple[str, str]:
    """Bucket and key of a `minio_path`, or `Rejected` with code `bad_path` or `bucket_not_allowed`."""
    if not minio_path:
        raise Rejected("bad_path", "minio_path is empty")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in minio_path):
        raise Rejected("bad_path", "minio_path has control characters")
    if len(minio_path.encode()) > PATH_MAX_BYTES:
        raise Rejected("bad_path", f"minio_path is longer than {PATH_MAX_BYTES} bytes")
    if "\\" in minio_path:
        raise Rejected("bad_path", "minio_path has a backslash")
    bucket, _, key = minio_path.partition("/")
    if not bucket or not key:
        raise Rejected("bad_path", f"minio_path {minio_path!r} is not bucket/key")
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        raise Rejected("bad_path", f"minio_path {minio_path!r} has an empty, '.' or '..' segment")
    if bucket not in allowed_buckets:
        raise Rejected("bucket_not_allowed", f"bucket {bucket!r} is not on the allow-list")
    return bucket, key


class _Client(Minio):
    """Does not hash a body again whose digest is in the headers: that is a third of the work of a put."""

    def _build_headers(
        self, host: str, headers: DictType | None = None, body: bytes | None = None,
        creds: Credentials | None = None,
    ) -> tuple[DictType, datetime]:  # fmt: skip
        known = None if headers is None else headers.pop(_SHA256_HEADER, None)
        if known is None or body is None:
            return super()._build_headers(host, headers, body, creds)
        built, date = super()._build_headers(host, headers, None, creds)
        return built | {_SHA256_HEADER: known, "Content-Length": str(len(body))}, date


class S3ObjectStore:
    """`ObjectStore` on the `minio` client, for many threads at once."""

    def __init__(
        self,
        endpoint: str,
        *,
        access_key: str,
        secret_key: str,
        secure: bool,
        allowed_buckets: Collection[str],
        tls_ca: Path | None = None,
    ) -> None:
        """Opens nothing yet. `endpoint` is host:port. tls_ca: PEM; the system's authorities when None."""
        self._allowed = tuple(allowed_buckets)
        self._client = _Client(
            endpoint,
            access_key=access_key,
            secret_key=secret_key,
            secure=secure,
            # The worker and the HTTP client of an upload try again; tries inside tries only add up.
            http_client=urllib3.PoolManager(
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=READ_TIMEOUT_SECONDS),
                maxsize=POOLED_CONNECTIONS,
                retries=False,
                cert_reqs="CERT_REQUIRED",
                ca_certs=None if tls_ca is None else str(tls_ca),
            ),
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            settings.s3_endpoint,
            access_key=settings.s3_access_key.get_secret_value(),
            secret_key=settings.s3_secret_key.get_secret_value(),
            secure=settings.s3_secure,
            allowed_buckets={settings.s3_upload_bucket, *settings.s3_allowed_buckets},
            tls_ca=settings.s3_tls_ca,
        )

    def get(self, minio_path: str, *, max_bytes: int) -> bytes:
        bucket, key = split_path(minio_path, self._allowed)
        with _call("get", minio_path):
            response = self._client.get_object(bucket, key)
            try:
                data = response.read(max_bytes + 1)
                if len(data) > max_bytes:
                    # The rest is on its way through this connection, so it can't be used again.
                    response.close()
                    raise too_many_bytes(minio_path, max_bytes)
            finally:
                response.release_conn()
        return data

    def stream(self, minio_path: str) -> Stream:
        bucket, key = split_path(minio_path, self._allowed)
        with _call("get", minio_path):
            response = self._client.get_object(bucket, key)
        length = response.headers.get("Content-Length")
        return Stream(None if length is None else int(length), _pieces(response, minio_path))

    def put(
        self, minio_path: str, chunks: Iterable[bytes], *, media_type: str, sha256: str | None = None
    ) -> int:
        bucket, key = split_path(minio_path, self._allowed)
        parts = _Parts(chunks)
        # The client's own `put_object` holds a part up to five times over when the length is not known.
        with _call("put", minio_path), self._making_bucket(bucket):
            parts.advance()
            if parts.ended:
                with parts.current() as part:
                    headers: DictType = {"Content-Type": media_type}
                    if sha256 is not None:
                        headers[_SHA256_HEADER] = sha256
                    self._client._put_object(bucket, key, _as_bytes(part), headers)
            else:
                self._put_parts(bucket, key, parts, media_type)
        return parts.length

    def _put_parts(self, bucket: str, key: str, parts: _Parts, media_type: str) -> None:
        upload_id = self._client._create_multipart_upload(bucket, key, {"Content-Type": media_type})
        etags: list[Part] = []
        try:
            while True:
                number = len(etags) + 1
                with parts.current() as part:
                    etag = self._client._upload_part(bucket, key, _as_bytes(part), None, upload_id, number)
                etags.append(Part(number, etag))
                if parts.ended:
                    break
                parts.advance()
            self._client._complete_multipart_upload(bucket, key, upload_id, etags)
        except Exception:
            try:
                self._client._abort_multipart_upload(bucket, key, upload_id)
            except (HTTPError, MinioException) as error:
                # Why it was given up is what the caller needs.
                log.warning("multipart_upload_left", minio_path=f"{bucket}/{key}", reason=str(error)[:200])
            raise

    def delete(self, minio_path: str) -> None:
        bucket, key = split_path(minio_path, self._allowed)
        with _call("delete", minio_path):
            try:
                self._client.remove_object(bucket, key)
            except S3Error as error:
                if error.code not in _NOT_FOUND:
                    raise

    def objects(self) -> Iterator[Listed]:
        for bucket in self._allowed:
            with _outcomes("list", bucket):
                if not self._client.bucket_exists(bucket):
                    continue
                for each in self._client.list_objects(bucket, recursive=True):
                    # A folder, which only some servers list, has neither.
                    if each.object_name is not None and each.last_modified is not None:
                        yield Listed(f"{bucket}/{each.object_name}", each.size or 0, each.last_modified)

    def ensure_buckets(self) -> None:
        with _call("ensure_buckets"):
            for bucket in self._allowed:
                if not self._client.bucket_exists(bucket):
                    self._make_bucket(bucket)

    def ping(self) -> None:
        with _call("ping"):
            for bucket in self._allowed:
                if not self._client.bucket_exists(bucket):
                    raise Unavailable("object_store", f"bucket {bucket!r} does not exist")

    @contextmanager
    def _making_bucket(self, bucket: str) -> Iterator[None]:
        """Makes the bucket if that was missing: the server is new or lost its disk. The chunks are spent,
        so the call fails all the same, and the next one works.
        """
        try:
            yield
        except S3Error as error:
            if error.code == "NoSuchBucket":
                self._make_bucket(bucket)
            raise

    def _make_bucket(self, bucket: str) -> None:
        try:
            self._client.make_bucket(bucket)
        except S3Error as error:
            # Another process was faster.
            if error.code not in _ALREADY_THERE:
                raise


def too_many_bytes(minio_path: str, max_bytes: int) -> Rejected:
    """The rejection of an object that is larger than the reader is willing to hold."""
    return Rejected("too_many_bytes", f"object {minio_path} has more than {max_bytes} bytes")


def object_not_found(minio_path: str) -> Rejected:
    """The rejection of a path where nothing lies."""
    return Rejected("object_not_found", f"object {minio_path} does not exist")


class _Parts:
    """The chunks of a body, cut into parts that share one buffer.

    length: bytes read so far.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")
        # Not of the heap, where what is freed in between the blocks of other requests stays.
        self._buffer = mmap(-1, PART_BYTES, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self._filled = 0
        self.length = 0

    @property
    def ended(self) -> bool:
        """Whether the current part is the last one."""
        return not self._has_rest()

    def advance(self) -> None:
        """Reads the next part: `PART_BYTES`, and less at the end. Views of the last one must be released."""
        self._filled = 0
        while self._filled < PART_BYTES and self._has_rest():
            taken = self._rest[: PART_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            self._rest = self._rest[len(taken) :]
        self.length += self._filled

    def current(self) -> memoryview:
        """A view of the part that was read last."""
        return memoryview(self._buffer)[: self._filled]

    def _has_rest(self) -> bool:
        while not self._rest and (chunk := next(self._chunks, None)) is not None:
            self._rest = memoryview(chunk)
        return bool(self._rest)


def _as_bytes(part: memoryview) -> bytes:
    """A part as the client's annotations want it. It hashes and sends any buffer."""
    return cast(bytes, part)


def _pieces(response: BaseHTTPResponse, minio_path: str) -> Generator[bytes, None, None]:
    try:
        with _outcomes("get", minio_path):
            while piece := response.read(PIECE_BYTES):
                yield piece
    finally:
        # What is still on its way through this connection would be taken for the next answer.
        if response.length_remaining != 0:
            response.close()
        response.release_conn()


@contextmanager
def _call(operation: str, minio_path: str = "") -> Iterator[None]:
    """Times one call and turns the client's exceptions into outcomes of the mesh."""
    start = time.perf_counter()
    try:
        with _outcomes(operation, minio_path):
            yield
    finally:
        OBJECT_STORE_SECONDS.labels(operation).observe(time.perf_counter() - start)


@contextmanager
def _outcomes(operation: str, minio_path: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        raise _outcome(error, operation, minio_path) from error
    except InvalidResponseError as error:
        # Its text holds the whole body, for example the page of a proxy.
        raise Unavailable("object_store", str(error)[:200]) from error
    except (HTTPError, MinioException) as error:
        raise Unavailable("object_store", str(error) or type(error).__name__) from error


def _outcome(error: S3Error, operation: str, minio_path: str) -> Rejected | Unavailable:
    if operation == "get" and error.code in _NOT_FOUND:
        return object_not_found(minio_path)
    if error.code in _BAD_NAME:
        return Rejected("bad_path", f"the object store refuses the name: {error.message}")
    # Overload; and also refused credentials or access, or no bucket to put into: that is not the message.
    return Unavailable("object_store", f"{error.code}: {error.message}")


def prepare(store: ObjectStore, settings: Settings) -> None:
    """Makes the buckets, and puts the picture there that the walk-through of the README asks for."""
    store.ensure_buckets()
    picture = ROOT / "samples" / "cat.jpg"
    store.put(f"{settings.s3_upload_bucket}/test.jpg", [picture.read_bytes()], media_type="image/jpeg")


def main(arguments: Sequence[str]) -> int:
    """`python -m visionmesh.object_store prepare`: what the one-shot `topics` container runs."""
    if list(arguments) != ["prepare"]:
        sys.stderr.write("usage: python -m visionmesh.object_store prepare\n")
        return 2
    settings = settings_or_exit()
    try:
        prepare(S3ObjectStore.from_settings(settings), settings)
    except Unavailable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
