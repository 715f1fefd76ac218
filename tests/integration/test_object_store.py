"""One suite for `ObjectStore`, on the double and on a real S3; then what only a server has."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from minio import Minio
from prometheus_client import REGISTRY
from urllib3.exceptions import HTTPError

from visionmesh.errors import Rejected, Unavailable
from visionmesh.object_store import PART_BYTES, PIECE_BYTES, ObjectStore, S3ObjectStore
from visionmesh.stack import Endpoints, Stack
from visionmesh.testing.object_store import MemoryObjectStore

BUCKETS = ("raw-images", "other-images")
PATH = "raw-images/2024/10/06/picture.jpg"


@dataclass
class Subject:
    """A store and a way to take its server away for a while."""

    store: ObjectStore
    away: Callable[[], AbstractContextManager[None]]


def s3_store(endpoints: Endpoints, *, buckets: tuple[str, ...] = BUCKETS, secret: str = "") -> S3ObjectStore:
    return S3ObjectStore(
        endpoints.s3_endpoint,
        access_key=endpoints.s3_access_key,
        secret_key=secret or endpoints.s3_secret_key,
        secure=False,
        allowed_buckets=buckets,
    )


def plain_client(endpoints: Endpoints) -> Minio:
    return Minio(
        endpoints.s3_endpoint,
        access_key=endpoints.s3_access_key,
        secret_key=endpoints.s3_secret_key,
        secure=False,
    )


@pytest.fixture
def endpoints(session_stack: Stack) -> Endpoints:
    return session_stack.endpoints


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.servers)])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "memory":
        memory = MemoryObjectStore(BUCKETS)

        @contextmanager
        def memory_away() -> Iterator[None]:
            memory.available = False
            yield
            memory.available = True

        return Subject(memory, memory_away)
    stack: Stack = request.getfixturevalue("session_stack")
    store = s3_store(stack.endpoints)
    store.ensure_buckets()

    @contextmanager
    def s3_away() -> Iterator[None]:
        stack.s3.stop()
        try:
            yield
        finally:
            stack.s3.start()

    return Subject(store, s3_away)


def blocks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def pattern(length: int) -> bytes:
    return (hashlib.sha256(b"pattern").digest() * (length // 32 + 1))[:length]


@pytest.mark.parametrize("block", [1_000, 65_536, 8 * 1024 * 1024])
@pytest.mark.parametrize(
    "length", [0, 1, 1000, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 2 * PART_BYTES + 77]
)
def test_what_is_put_is_got(subject: Subject, length: int, block: int) -> None:
    data = pattern(length)
    assert subject.store.put(PATH, blocks(data, block), media_type="image/jpeg") == length
    assert subject.store.get(PATH, max_bytes=length) == data
    stream = subject.store.stream(PATH)
    pieces = list(stream.pieces)
    assert (stream.length, b"".join(pieces)) == (length, data)
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)


def test_a_stream_that_is_left_half_way_is_in_nobodys_way(subject: Subject) -> None:
    data = pattern(3 * PIECE_BYTES)
    subject.store.put(PATH, [data], media_type="image/jpeg")
    for _ in range(3):
        pieces = subject.store.stream(PATH).pieces
        assert next(pieces) == data[:PIECE_BYTES]
        pieces.close()
        # Not even begun.
        subject.store.stream(PATH)
        assert subject.store.get(PATH, max_bytes=len(data)) == data


def test_empty_chunks_are_not_the_end(subject: Subject) -> None:
    subject.store.put(PATH, iter([b"", b"one", b"", b"two", b""]), media_type="image/jpeg")
    assert subject.store.get(PATH, max_bytes=100) == b"onetwo"


def test_putting_again_replaces(subject: Subject) -> None:
    for data in (b"first", b"second"):
        subject.store.put(PATH, [data], media_type="image/jpeg")
    assert subject.store.get(PATH, max_bytes=100) == b"second"


def test_a_larger_object_is_rejected_and_the_next_read_works(subject: Subject) -> None:
    subject.store.put(PATH, [pattern(3_000_000)], media_type="image/jpeg")
    for _ in range(3):
        with pytest.raises(Rejected) as raised:
            subject.store.get(PATH, max_bytes=2_999_999)
        assert raised.value.code == "too_many_bytes"
    assert len(subject.store.get(PATH, max_bytes=3_000_000)) == 3_000_000


def test_a_missing_object_is_rejected(subject: Subject) -> None:
    path = "raw-images/nothing/here.jpg"
    for read in (lambda: subject.store.get(path, max_bytes=100), lambda: subject.store.stream(path)):
        with pytest.raises(Rejected) as raised:
            read()
        assert raised.value.code == "object_not_found"
        assert path in raised.value.reason


def test_deleting_is_idempotent(subject: Subject) -> None:
    subject.store.put(PATH, [b"data"], media_type="image/jpeg")
    subject.store.delete(PATH)
    subject.store.delete(PATH)
    with pytest.raises(Rejected) as raised:
        subject.store.get(PATH, max_bytes=100)
    assert raised.value.code == "object_not_found"


@pytest.mark.parametrize(
    "path",
    ["raw-images/año/照片 1.jpg", "raw-images/a+b%20c&d=e?f#g;h.jpg", "other-images/x", "raw-images/..a"],
)
def test_unusual_names_are_plain_names(subject: Subject, path: str) -> None:
    subject.store.put(path, [path.encode()], media_type="image/jpeg")
    assert subject.store.get(path, max_bytes=100) == path.encode()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("", "bad_path"),
        ("/", "bad_path"),
        ("raw-images", "bad_path"),
        ("raw-images/", "bad_path"),
        ("/raw-images/a.jpg", "bad_path"),
        ("/etc/passwd", "bad_path"),
        ("raw-images/../secret-bucket/a.jpg", "bad_path"),
        ("raw-images/a/../../b.jpg", "bad_path"),
        ("raw-images/./a.jpg", "bad_path"),
        ("raw-images//a.jpg", "bad_path"),
        ("raw-images/a/", "bad_path"),
        ("raw-images/..", "bad_path"),
        ("raw-images\\..\\a.jpg", "bad_path"),
        ("raw-images/a\nb.jpg", "bad_path"),
        ("raw-images/a\0b.jpg", "bad_path"),
        ("raw-images/a\x85b.jpg", "bad_path"),
        ("raw-images/\ud800.jpg", "bad_path"),
        ("raw-images/" + "a" * 1024, "bad_path"),
        ("raw-images/" + "é" * 512, "bad_path"),
        ("secret-bucket/a.jpg", "bucket_not_allowed"),
        ("../a.jpg", "bucket_not_allowed"),
        ("s3:/raw-images/a.jpg", "bucket_not_allowed"),
        ("Raw-Images/a.jpg", "bucket_not_allowed"),
    ],
)
def test_a_path_that_is_not_ours_is_rejected_by_every_call(subject: Subject, path: str, code: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: subject.store.get(path, max_bytes=100),
        lambda: subject.store.stream(path),
        lambda: subject.store.put(path, [b"data"], media_type="image/jpeg"),
        lambda: subject.store.delete(path),
    ]
    for call in calls:
        with pytest.raises(Rejected) as raised:
            call()
        assert raised.value.code == code


@pytest.mark.parametrize("before", [10, PART_BYTES + 10])
def test_nothing_is_stored_when_the_chunks_raise(subject: Subject, before: int) -> None:
    def broken() -> Iterator[bytes]:
        yield pattern(before)
        raise Rejected("too_many_bytes", "enough")

    subject.store.delete(PATH)
    with pytest.raises(Rejected, match="enough"):
        subject.store.put(PATH, broken(), media_type="image/jpeg")
    with pytest.raises(Rejected) as raised:
        subject.store.get(PATH, max_bytes=100)
    assert raised.value.code == "object_not_found"


def test_an_absent_server_is_unavailable_and_back_again_works(subject: Subject) -> None:
    subject.store.put(PATH, [b"data"], media_type="image/jpeg")
    calls: list[Callable[[], object]] = [
        lambda: subject.store.get(PATH, max_bytes=100),
        lambda: subject.store.stream(PATH),
        lambda: subject.store.put(PATH, [b"data"], media_type="image/jpeg"),
        lambda: subject.store.put(PATH, blocks(pattern(PART_BYTES + 1), 65_536), media_type="image/jpeg"),
        lambda: subject.store.delete(PATH),
        lambda: subject.store.ensure_buckets(),
        lambda: subject.store.ping(),
    ]
    with subject.away():
        for call in calls:
            with pytest.raises(Unavailable) as raised:
                call()
            assert raised.value.server == "object_store"
    subject.store.ensure_buckets()
    subject.store.ping()
    subject.store.put(PATH, [b"again"], media_type="image/jpeg")
    assert subject.store.get(PATH, max_bytes=100) == b"again"


def test_many_threads_share_one_store(subject: Subject) -> None:
    def round_trip(number: int) -> bool:
        path = f"raw-images/threads/{number}.jpg"
        data = pattern(1000 + number)
        subject.store.put(path, [data], media_type="image/jpeg")
        return subject.store.get(path, max_bytes=10_000) == data

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(round_trip, range(64)))


# A server alone


def test_wrong_credentials_are_not_the_message_s_fault(session_stack: Stack, endpoints: Endpoints) -> None:
    if session_stack.__class__.__name__ == "EmbeddedStack":
        pytest.skip("moto checks no signature")
    s3_store(endpoints).ensure_buckets()
    store = s3_store(endpoints, secret="wrong-secret")
    with pytest.raises(Unavailable, match="SignatureDoesNotMatch"):
        store.get(PATH, max_bytes=100)
    with pytest.raises(Unavailable):
        store.ping()


def test_a_missing_bucket_makes_ping_fail_and_is_made(endpoints: Endpoints) -> None:
    store = s3_store(endpoints, buckets=("new-images",))
    with pytest.raises(Unavailable, match="new-images"):
        store.ping()
    with pytest.raises(Rejected) as raised:
        store.get("new-images/a.jpg", max_bytes=100)
    assert raised.value.code == "object_not_found"
    store.delete("new-images/a.jpg")
    store.ensure_buckets()
    store.ensure_buckets()
    store.ping()
    plain_client(endpoints).remove_bucket("new-images")


def test_a_put_without_its_bucket_is_unavailable_once(endpoints: Endpoints) -> None:
    store = s3_store(endpoints, buckets=("lost-images",))
    with pytest.raises(Unavailable, match="NoSuchBucket"):
        store.put("lost-images/a.jpg", [b"data"], media_type="image/jpeg")
    store.put("lost-images/a.jpg", [b"data"], media_type="image/jpeg")
    store.delete("lost-images/a.jpg")
    plain_client(endpoints).remove_bucket("lost-images")


def test_an_abandoned_upload_leaves_no_parts(endpoints: Endpoints) -> None:
    def broken() -> Iterator[bytes]:
        yield pattern(PART_BYTES + 10)
        raise ValueError("client went away")

    store = s3_store(endpoints)
    store.ensure_buckets()
    with pytest.raises(ValueError, match="client went away"):
        store.put(PATH, broken(), media_type="image/jpeg")
    bucket, _, key = PATH.partition("/")
    assert plain_client(endpoints)._list_multipart_uploads(bucket, prefix=key).uploads == []


def test_an_abandoned_upload_is_the_clients_though_the_store_cannot_forget_it(
    endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[bytes]:
        yield pattern(PART_BYTES + 10)
        raise ValueError("client went away")

    def away(*_: object) -> None:
        raise HTTPError("away")

    store = s3_store(endpoints)
    store.ensure_buckets()
    monkeypatch.setattr(store._client, "_abort_multipart_upload", away)
    with pytest.raises(ValueError, match="client went away"):
        store.put(PATH, broken(), media_type="image/jpeg")


def test_the_media_type_is_kept(endpoints: Endpoints) -> None:
    store = s3_store(endpoints)
    store.ensure_buckets()
    for length in (10, PART_BYTES + 10):
        store.put(PATH, [pattern(length)], media_type="image/webp")
        bucket, _, key = PATH.partition("/")
        assert plain_client(endpoints).stat_object(bucket, key).content_type == "image/webp"


def test_calls_are_timed(endpoints: Endpoints) -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("mesh_object_store_seconds_count", {"operation": "get"}) or 0.0

    before = count()
    with pytest.raises(Rejected):
        s3_store(endpoints).get("raw-images/none", max_bytes=1)
    assert count() == before + 1


@contextmanager
def answering(status: int, body: bytes, *, promised: int | None = None) -> Iterator[S3ObjectStore]:
    """A store whose server gives one and the same answer; `promised` is a false Content-Length."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/xml" if body.startswith(b"<?xml") else "text/html")
            self.send_header("Content-Length", str(promised or len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        do_HEAD = do_PUT = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield S3ObjectStore(
                f"127.0.0.1:{server.server_port}",
                access_key="a",
                secret_key="b",
                secure=False,
                allowed_buckets=BUCKETS,
            )
        finally:
            server.shutdown()
            thread.join()


def s3_error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as if</Message></Error>'.encode()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, s3_error("SlowDown")),
        (503, s3_error("XMinioServerNotInitialized")),
        (500, s3_error("InternalError")),
        (507, s3_error("XMinioStorageFull")),
        (403, s3_error("AccessDenied")),
        (403, s3_error("InvalidAccessKeyId")),
        (403, s3_error("RequestTimeTooSkewed")),
        (502, b"<html>Bad Gateway</html>"),
        (503, b""),
    ],
)
def test_a_server_that_refuses_is_unavailable(status: int, body: bytes) -> None:
    with answering(status, body) as store, pytest.raises(Unavailable) as raised:
        store.get(PATH, max_bytes=100)
    assert raised.value.server == "object_store"
    assert len(raised.value.reason) < 300


@pytest.mark.parametrize("code", ["KeyTooLongError", "XMinioInvalidObjectName"])
def test_a_name_that_the_server_refuses_is_rejected(code: str) -> None:
    with answering(400, s3_error(code)) as store, pytest.raises(Rejected) as raised:
        store.get(PATH, max_bytes=100)
    assert raised.value.code == "bad_path"


def test_a_server_that_breaks_off_half_way_is_unavailable_to_whoever_reads_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The client asks for it first, and would get the same answer.
    monkeypatch.setattr(Minio, "_get_region", lambda *_, **__: "us-east-1")
    with answering(200, pattern(PIECE_BYTES + 1), promised=2 * PIECE_BYTES) as store:
        stream = store.stream(PATH)
        assert stream.length == 2 * PIECE_BYTES
        assert len(next(stream.pieces)) == PIECE_BYTES
        with pytest.raises(Unavailable):
            next(stream.pieces)


def test_a_silent_server_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionmesh.object_store.READ_TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = S3ObjectStore(
            f"127.0.0.1:{listener.getsockname()[1]}",
            access_key="a",
            secret_key="b",
            secure=False,
            allowed_buckets=BUCKETS,
        )
        with pytest.raises(Unavailable):
            store.get(PATH, max_bytes=100)
