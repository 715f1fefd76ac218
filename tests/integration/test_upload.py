"""Uploads and results over HTTP: the whole application on a real server, its clients in memory."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx
import pypdfium2
import pytest
import uvicorn
from PIL import Image, ImageChops
from structlog.testing import capture_logs

import waiting
from ingest_api import intake
from ingest_api.__main__ import compose, fitted_consensus
from ingest_api.searchable_pdf import searchable_pdf
from visionmesh import http
from visionmesh.drawing import draw_on
from visionmesh.errors import Unavailable
from visionmesh.observability import metrics
from visionmesh.ocr_document import OcrDocument, PageSize, TextLine
from visionmesh.qr_code import QrCode
from visionmesh.results import FeaturesRow, OcrDocumentRow, OutcomeRow, PredictionRow, QrCodesRow
from visionmesh.settings import Settings
from visionmesh.testing.kafka import MemoryBroker
from visionmesh.testing.object_store import MemoryObjectStore
from visionmesh.testing.results import MemoryImages, MemoryResultStore
from visionmesh.topics import CLASSIFIERS, IMAGES

DEADLINE = 20.0
MAX_BYTES = 8 * 1024 * 1024
MAX_FILES = 5

eventually = partial(waiting.eventually, seconds=DEADLINE)


def jpeg(seed: int = 0, width: int = 64, height: int = 48) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (seed % 256, seed // 256 % 256, 90)).save(file, "JPEG")
    return file.getvalue()


def large_jpeg(size: int = 7 * 1024 * 1024) -> bytes:
    """A picture that does not fit into one part; decoders ignore what follows the end of a JPEG."""
    start = jpeg()
    return start + bytes(size - len(start))


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", 100) + b"IDAT" + bytes(100)


@dataclass
class Service:
    """The service and what is behind it."""

    broker: MemoryBroker = field(default_factory=MemoryBroker)
    store: MemoryObjectStore = field(default_factory=MemoryObjectStore)
    results: MemoryResultStore = field(default_factory=MemoryResultStore)
    extra_classifiers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.images = MemoryImages(self.results)
        settings = Settings(
            upload_max_bytes=MAX_BYTES,
            upload_max_files=MAX_FILES,
            extra_classifiers=self.extra_classifiers,
        )
        app = compose(
            settings,
            self.images,
            self.store,
            self.broker.publisher(),
            draw_on,
            searchable_pdf,
            self.images.pending,
        )
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)
        self._thread.start()
        eventually(lambda: self._server.started, "the service starts")
        self.http = httpx.Client(base_url="http://{}:{}".format(*self.address), timeout=30)

    def close(self) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join()

    def upload(self, *files: bytes, **fields: Any) -> httpx.Response:
        parts = [("file", (f"{number}.jpg", data)) for number, data in enumerate(files)]
        return self.http.post("/upload", files=parts, data=fields)

    def announced(self) -> list[dict[str, Any]]:
        return [json.loads(message.value() or b"") for message in self.broker.messages(IMAGES.name)]

    def rows(self) -> list[str]:
        return [row.image_id for row in self.images.images(limit=1000)]

    def metric(self, name: str) -> float:
        """The value of a series, written as in the exposition; 0 when there is none."""
        _, _, rest = self.http.get("/metrics").text.partition(f"\n{name} ")
        return float(rest.partition("\n")[0] or 0)

    def expect_nothing(self) -> None:
        """Neither object nor row nor record, once all that still goes on has ended."""
        eventually(lambda: self.store.paths() == [], "no object stays")
        assert self.rows() == []
        assert self.announced() == []


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


def expect_error(response: httpx.Response, status: int, code: str) -> None:
    answer = response.json()
    assert (response.status_code, answer["code"]) == (status, code)
    assert " " in answer["error"]


def test_an_upload_is_stored_written_down_and_announced(service: Service) -> None:
    data = jpeg()
    response = service.upload(data)
    answer = response.json()
    image_id = answer["image_id"]
    assert response.status_code == 202
    assert answer["status"] == "accepted"
    assert answer["links"]["predictions"] == f"/predictions/{image_id}"
    assert answer["minio_path"].startswith("raw-images/")
    assert answer["minio_path"].endswith(f"/{image_id}.jpg")
    assert service.store.get(answer["minio_path"], max_bytes=MAX_BYTES) == data
    eventually(lambda: len(service.announced()) == 1, "a record")
    assert service.announced() == [
        {"image_id": image_id, "minio_path": answer["minio_path"], "sha256": sha256(data).hexdigest()}
    ]
    eventually(lambda: service.images.pending() == 0, "the record is marked as published")


def test_the_record_is_keyed_by_the_image_and_carries_a_sampled_trace(service: Service) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    response = service.http.post("/upload", files={"file": jpeg()}, headers={"traceparent": trace})
    (message,) = service.broker.messages(IMAGES.name)
    assert message.key() == response.json()["image_id"].encode()
    assert dict(message.headers() or ())["traceparent"].startswith(b"00-0af7651916cd43dd8448eb211c80319c-")


def test_what_was_uploaded_can_be_read(service: Service) -> None:
    data = jpeg(width=64, height=48)
    image_id = service.upload(data, tasks="qr,classify").json()["image_id"]
    row = service.http.get(f"/images/{image_id}").json()
    assert (row["bytes"], row["width"], row["height"]) == (len(data), 64, 48)
    assert (row["media_type"], row["sha256"]) == ("image/jpeg", sha256(data).hexdigest())
    assert row["tasks"] == ["classify", "qr"]
    content = service.http.get(row["links"]["content"])
    assert content.content == data
    assert content.headers["content-type"] == "image/jpeg"
    assert content.headers["content-length"] == str(len(data))
    assert content.headers["etag"] == f'"{sha256(data).hexdigest()}"'
    assert content.headers["x-content-type-options"] == "nosniff"


def test_a_client_that_has_the_picture_is_told_so_without_asking_the_store(service: Service) -> None:
    data = large_jpeg()
    path = f"/images/{service.upload(data).json()['image_id']}/content"
    etag = service.http.get(path).headers["etag"]
    for known in (etag, f"W/{etag}", f'"another", {etag}', "*"):
        again = service.http.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag), known
    assert service.http.get(path, headers={"If-None-Match": '"another"'}).content == data
    service.store.available = False
    assert service.http.get(path, headers={"If-None-Match": etag}).status_code == 304


def test_a_picture_is_passed_on_while_it_is_read(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    data = large_jpeg()
    image_id = service.upload(data).json()["image_id"]
    first_arrived = threading.Event()

    def waiting(stored: bytes) -> Generator[bytes, None, None]:
        yield stored[:1000]
        assert first_arrived.wait(DEADLINE), "nothing is passed on before all is read"
        yield stored[1000:]

    monkeypatch.setattr(service.store, "_pieces", waiting)
    with service.http.stream("GET", f"/images/{image_id}/content") as answer:
        pieces = answer.iter_raw()
        received = next(pieces)
        first_arrived.set()
        assert received + b"".join(pieces) == data


def test_a_store_that_goes_away_half_way_never_looks_like_the_end_of_a_picture(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = service.upload(large_jpeg()).json()["image_id"]

    def breaking(stored: bytes) -> Generator[bytes, None, None]:
        yield stored[:1000]
        raise Unavailable("object_store", "gone")

    monkeypatch.setattr(service.store, "_pieces", breaking)
    with pytest.raises(httpx.RemoteProtocolError):
        service.http.get(f"/images/{image_id}/content")
    service.store.available = False
    expect_error(service.http.get(f"/images/{image_id}/content"), 503, "object_store_unavailable")


@pytest.mark.parametrize("size", [5 * 1024 * 1024, 5 * 1024 * 1024 + 1, MAX_BYTES])
def test_a_large_picture_arrives_whole(service: Service, size: int) -> None:
    data = large_jpeg(size)
    answer = service.upload(data).json()
    assert service.store.get(answer["minio_path"], max_bytes=MAX_BYTES) == data
    row = service.http.get(answer["links"]["image"]).json()
    assert (row["sha256"], row["width"]) == (sha256(data).hexdigest(), 64)


def test_fields_may_follow_the_file(service: Service) -> None:
    form = [("file", ("a.jpg", jpeg())), ("image_id", (None, "mine")), ("tasks", (None, "qr"))]
    assert service.http.post("/upload", files=form).json()["image_id"] == "mine"
    assert service.announced()[0]["tasks"] == ["qr"]
    form[0] = ("file", ("a.jpg", large_jpeg()))
    form[1] = ("image_id", (None, "large"))
    assert service.http.post("/upload", files=form).json()["image_id"] == "large"


def test_fields_may_stand_in_the_query(service: Service) -> None:
    query = {"image_id": "mine", "tasks": "qr,ocr"}
    response = service.http.post("/upload", params=query, files={"file": jpeg()})
    assert response.json()["image_id"] == "mine"
    assert service.announced()[0]["tasks"] == ["qr", "ocr"]


@pytest.mark.parametrize("name", ["", "note"])
def test_no_field_becomes_part_of_the_picture_before_it(service: Service, name: str) -> None:
    data = jpeg()
    answer = service.http.post("/upload", files=[("file", ("a.jpg", data)), (name, (None, "more"))])
    assert answer.status_code == (202 if name else 400)
    assert [service.store.get(path, max_bytes=MAX_BYTES) for path in service.store.paths()] == (
        [data] if name else []
    )


def test_the_same_picture_twice_under_one_id_is_one_picture(service: Service) -> None:
    first = service.upload(jpeg(), image_id="mine")
    eventually(lambda: service.images.pending() == 0, "the first is published")
    second = service.upload(jpeg(), image_id="mine")
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json() == second.json()
    assert len(service.store.paths()) == len(service.rows()) == len(service.announced()) == 1


@pytest.mark.parametrize("other", [jpeg(1), large_jpeg()])
def test_another_picture_under_a_known_id_is_a_conflict(service: Service, other: bytes) -> None:
    first = service.upload(jpeg(0), image_id="mine").json()
    expect_error(service.upload(other, image_id="mine"), 409, "image_id_conflict")
    assert service.store.paths() == [first["minio_path"]]
    assert service.store.get(first["minio_path"], max_bytes=MAX_BYTES) == jpeg(0)


def test_of_many_at_once_under_one_id_one_wins_and_nothing_else_stays(service: Service) -> None:
    pictures = [jpeg(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda data: service.upload(data, image_id="mine"), pictures))
    assert sorted(response.status_code for response in responses) == [202] + [409] * 7
    winner = next(n for n, response in enumerate(responses) if response.status_code == 202)
    path = responses[winner].json()["minio_path"]
    assert service.store.paths() == [path]
    assert service.store.get(path, max_bytes=MAX_BYTES) == pictures[winner]


def test_several_files_have_an_answer_each(service: Service) -> None:
    response = service.upload(jpeg(0), b"a text", jpeg(1), b"", tasks="classify")
    assert response.status_code == 202
    uploads = response.json()["uploads"]
    assert [upload["file"] for upload in uploads] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [upload["status"] for upload in uploads] == ["accepted", "rejected", "accepted", "rejected"]
    assert [upload.get("code") for upload in uploads] == [None, "not_an_image", None, "empty_file"]
    assert service.store.paths() == sorted(uploads[number]["minio_path"] for number in (0, 2))
    assert [message["tasks"] for message in service.announced()] == [["classify"]] * 2


def test_too_many_uploads_are_a_failure_of_the_mesh(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 'mesh_uploads_total{outcome="failed"}'
    before = service.metric(failed)
    monkeypatch.setattr(intake, "_HELD_IN_ALL_BYTES", 1000)
    large = large_jpeg(100_000)
    answers = service.upload(large), service.upload(large, b"", large)
    for answer in answers:
        expect_error(answer, 503, "too_many_uploads")
        assert int(answer.headers["retry-after"]) > 0
    uploads = answers[1].json()["uploads"]
    assert [upload["status"] for upload in uploads] == ["failed", "rejected", "failed"]
    assert service.metric(failed) == before + 3
    service.expect_nothing()


def test_an_upload_that_ends_in_a_bug_is_counted_as_failed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(*_: Any, **__: Any) -> int:
        raise KeyError("a bug")

    failed, rejected = (f'mesh_uploads_total{{outcome="{outcome}"}}' for outcome in ("failed", "rejected"))
    before = service.metric(failed), service.metric(rejected)
    monkeypatch.setattr(service.store, "put", put)
    # Without a configuration structlog draws a traceback with all that its frames hold.
    monkeypatch.setattr(http, "log", MagicMock())
    expect_error(service.upload(jpeg()), 500, "internal_error")
    assert (service.metric(failed), service.metric(rejected)) == (before[0] + 1, before[1])
    # Nor is a whole form that was spoiled a failure of the mesh.
    expect_error(service.upload(), 415, "not_multipart")
    assert (service.metric(failed), service.metric(rejected)) == (before[0] + 1, before[1])


def test_a_large_file_between_small_ones(service: Service) -> None:
    files = [jpeg(0), large_jpeg(), jpeg(1)]
    uploads = service.upload(*files).json()["uploads"]
    assert [service.store.get(upload["minio_path"], max_bytes=MAX_BYTES) for upload in uploads] == files


def test_several_files_of_which_none_is_good(service: Service) -> None:
    response = service.upload(b"a text", b"")
    expect_error(response, 415, "not_an_image")
    assert [upload["code"] for upload in response.json()["uploads"]] == ["not_an_image", "empty_file"]
    service.expect_nothing()


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 422, "empty_file"),
        (b"This is a text and no picture. " * 10, 415, "not_an_image"),
        (b"x", 415, "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 415, "not_an_image"),
        (b"\xff\xd8\xff\xe0" + b"garbage" * 100, 422, "truncated_image"),
        (png_header(20_000, 20_000), 413, "too_many_pixels"),
        (png_header(20_000, 20_000) + bytes(6 * 1024 * 1024), 413, "too_many_pixels"),
        (large_jpeg(MAX_BYTES + 1), 413, "too_many_bytes"),
        (large_jpeg(3 * MAX_BYTES), 413, "too_many_bytes"),
    ],
    ids=["empty", "text", "one-byte", "svg", "garbage", "bomb", "large-bomb", "too-large", "far-too-large"],
)
def test_a_bad_file_leaves_nothing_behind(service: Service, data: bytes, status: int, code: str) -> None:
    expect_error(service.upload(data), status, code)
    service.expect_nothing()


def test_a_body_of_100_mb_is_refused(service: Service) -> None:
    expect_error(service.upload(large_jpeg(100 * 1024 * 1024)), 413, "too_many_bytes")
    service.expect_nothing()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_picture_leaves_nothing_behind(service: Service, kind: str) -> None:
    file = io.BytesIO()
    Image.radial_gradient("L").save(file, kind)
    data = file.getvalue()
    expect_error(service.upload(data[: len(data) // 2]), 422, "truncated_image")
    service.expect_nothing()
    assert service.upload(data + b"more").status_code == 202


def test_a_large_truncated_jpeg_is_taken_for_the_worker_to_judge(service: Service) -> None:
    data = jpeg()[:-2]
    assert service.upload(data + b"\1" * (7 * 1024 * 1024)).status_code == 202


@pytest.mark.parametrize("image_id", ["a b", "a/b", "../../etc/passwd", "..\\x", "", "x" * 129, "nul\0", "ä"])
def test_a_forbidden_image_id(service: Service, image_id: str) -> None:
    expect_error(service.upload(jpeg(), image_id=image_id), 400, "bad_image_id")
    query = {"image_id": image_id}
    expect_error(service.http.post("/upload", params=query, files={"file": jpeg()}), 400, "bad_image_id")
    service.expect_nothing()


def test_an_image_id_is_for_one_file(service: Service) -> None:
    expect_error(service.upload(jpeg(0), jpeg(1), image_id="mine"), 400, "bad_image_id")
    service.expect_nothing()


def test_an_unknown_task(service: Service) -> None:
    response = service.upload(jpeg(), tasks="classify,fly")
    expect_error(response, 400, "unknown_task")
    assert "classify, qr, ocr" in response.json()["error"]
    service.expect_nothing()


def test_an_unknown_task_behind_the_files(service: Service) -> None:
    form = [("file", ("a", jpeg(0))), ("file", ("b", large_jpeg())), ("tasks", (None, "fly"))]
    expect_error(service.http.post("/upload", files=form), 400, "unknown_task")
    service.expect_nothing()


def test_a_path_in_the_filename_goes_nowhere(service: Service) -> None:
    name = "../../../etc/passwd"
    response = service.http.post("/upload", files=[("file", (name, jpeg(0))), ("file", (name, jpeg(1)))])
    for upload in response.json()["uploads"]:
        assert upload["file"] == name
        assert upload["minio_path"].endswith(f"/{upload['image_id']}.jpg")
    assert not any("passwd" in path for path in service.store.paths())


def test_too_many_files(service: Service) -> None:
    expect_error(service.upload(*map(jpeg, range(MAX_FILES + 1))), 413, "too_many_files")
    service.expect_nothing()


def test_a_form_without_a_picture(service: Service) -> None:
    expect_error(service.http.post("/upload", files={"tasks": (None, "qr")}), 400, "no_file")
    expect_error(service.http.post("/upload", files={"picture": ("a.jpg", jpeg())}), 422, "unknown_field")
    expect_error(service.http.post("/upload", content=jpeg()), 415, "not_multipart")
    service.expect_nothing()


def raw_upload(service: Service, file: bytes, *, end: bytes, missing: int) -> bytes:
    """Sends a form by hand, `missing` bytes shorter than it says, and returns what comes back."""
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n' + file + end
    head = (
        "POST /upload HTTP/1.1\r\nHost: mesh\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Connection: close\r\nContent-Length: {len(body) + missing}\r\n\r\n"
    ).encode()
    with socket.create_connection(service.address) as connection:
        connection.sendall(head + body)
        if missing:
            return b""
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("file", [jpeg(), large_jpeg()], ids=["small", "large"])
@pytest.mark.parametrize("end", [b"", b"\r\n--x--\r\n"], ids=["in-the-file", "after-the-form"])
def test_a_client_that_hangs_up_leaves_nothing_behind(service: Service, file: bytes, end: bytes) -> None:
    refused = 'mesh_http_requests_total{route="/upload",service="ingest-api",status="400"}'
    before = service.metric(refused)
    raw_upload(service, file, end=end, missing=1000)
    eventually(lambda: service.metric(refused) == before + 1, "the service notices")
    service.expect_nothing()


@pytest.mark.parametrize("file", [jpeg(), large_jpeg()], ids=["small", "large"])
@pytest.mark.parametrize("end", [b"", b"\r\n--x\r\n", b"\r\n--x"])
def test_a_form_without_its_end_leaves_nothing_behind(service: Service, file: bytes, end: bytes) -> None:
    answer = raw_upload(service, file, end=end, missing=0)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"truncated_body"' in answer
    service.expect_nothing()


@pytest.mark.parametrize("file", [jpeg(), large_jpeg()], ids=["small", "large"])
def test_a_client_that_stalls_is_let_go(
    service: Service, monkeypatch: pytest.MonkeyPatch, file: bytes
) -> None:
    monkeypatch.setattr("ingest_api.http._STALL_SECONDS", 0.1)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
    with socket.create_connection(service.address) as connection:
        connection.sendall(
            b"POST /upload HTTP/1.1\r\nHost: mesh\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Connection: close\r\nContent-Length: 99999999\r\n\r\n" + head + file
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"upload_stalled"' in answer
    service.expect_nothing()


def test_kafka_away_fails_no_upload(service: Service) -> None:
    service.broker.available = False
    responses = [service.upload(jpeg(number)) for number in range(5)]
    assert [response.status_code for response in responses] == [202] * 5
    assert service.announced() == []
    assert service.http.get("/ready").status_code == 200
    service.broker.available = True
    wanted = {response.json()["image_id"] for response in responses}
    eventually(lambda: {message["image_id"] for message in service.announced()} == wanted, "the relay")
    eventually(lambda: service.images.pending() == 0, "all marked")


@pytest.mark.parametrize("data", [jpeg(), large_jpeg()], ids=["small", "large"])
def test_the_object_store_away(service: Service, data: bytes) -> None:
    service.store.available = False
    response = service.upload(data)
    expect_error(response, 503, "object_store_unavailable")
    assert int(response.headers["retry-after"]) > 0
    ready = service.http.get("/ready")
    assert ready.status_code == 503
    assert not ready.json()["checks"]["object_store"]["ready"]
    assert ready.json()["checks"]["database"]["ready"]
    service.store.available = True
    service.expect_nothing()
    assert service.upload(data).status_code == 202


@pytest.mark.parametrize("data", [jpeg(), large_jpeg()], ids=["small", "large"])
def test_the_database_away(service: Service, data: bytes) -> None:
    service.images.available = False
    for _ in range(3):
        response = service.upload(data)
        expect_error(response, 503, "database_unavailable")
        assert int(response.headers["retry-after"]) > 0
    # Only the first was stored before its row failed; it is deleted once that is known to be final.
    assert len(service.store.paths()) <= 1
    ready = service.http.get("/ready")
    assert ready.status_code == 503
    assert not ready.json()["checks"]["database"]["ready"]
    expect_error(service.http.get("/predictions/x"), 503, "database_unavailable")
    service.images.available = True
    assert service.upload(data, image_id="mine").status_code == 202


@pytest.mark.parametrize("where", ["form", "query"])
def test_a_server_that_is_away_is_logged_with_the_client_s_id(service: Service, where: str) -> None:
    service.store.available = False
    with capture_logs() as logged:
        if where == "form":
            service.upload(jpeg(), image_id="mine")
        else:
            service.http.post("/upload?image_id=mine", files={"file": jpeg()})
    (line,) = (line for line in logged if line["event"] == "unavailable")
    assert (line["image_id"], line["server"]) == ("mine", "object_store")


def test_several_files_with_the_store_away(service: Service) -> None:
    service.store.available = False
    with capture_logs() as logged:
        response = service.upload(jpeg(0), jpeg(1))
    assert [line["server"] for line in logged if line["event"] == "unavailable"] == ["object_store"] * 2
    expect_error(response, 503, "object_store_unavailable")
    assert "retry-after" in response.headers
    assert [upload["status"] for upload in response.json()["uploads"]] == ["failed", "failed"]


def test_predictions_of_an_unknown_image(service: Service) -> None:
    for path in ("/predictions/x", "/results/x", "/images/x", "/images/x/content", "/predictions/a%00b"):
        expect_error(service.http.get(path), 404, "image_not_found")


def test_predictions_come_in_one_by_one(service: Service) -> None:
    image_id = service.upload(jpeg()).json()["image_id"]
    answer = service.http.get(f"/predictions/{image_id}").json()
    assert (answer["status"], answer["predictions"]) == ("processing", [])
    for number, classifier in enumerate(CLASSIFIERS):
        service.results.save(
            [
                PredictionRow(image_id, classifier, "cat", 0.9, ("cat", "dog"), (0.9, 0.1), "m", "1", 0.2),
                OutcomeRow(image_id, classifier, "done"),
            ]
        )
        answer = service.http.get(f"/predictions/{image_id}").json()
        assert len(answer["predictions"]) == number + 1
    assert answer["status"] == "done"
    assert answer["predictions"][0]["label"] == "cat"
    assert answer["predictions"][0]["probabilities"] == {"cat": 0.9, "dog": 0.1}


def test_results_wait_for_a_classifier_that_the_configuration_adds() -> None:
    service = Service(extra_classifiers=("forest",))
    try:
        image_id = service.upload(jpeg()).json()["image_id"]
        service.results.save([OutcomeRow(image_id, classifier, "done") for classifier in CLASSIFIERS])
        prediction = PredictionRow(image_id, "fast", "cat", 0.9, ("cat", "dog"), (0.9, 0.1), "m", "1", 0.2)
        service.results.save([prediction])
        for path in ("predictions", "results"):
            answer = service.http.get(f"/{path}/{image_id}").json()
            assert answer["status"] == "processing"
            assert answer["consensus"]["missing"] == ["balanced", "accurate", "forest"]
        service.results.save([OutcomeRow(image_id, "classifier-forest", "done")])
        assert service.http.get(f"/predictions/{image_id}").json()["status"] == "done"
    finally:
        service.close()


@pytest.mark.parametrize(
    ("table", "weights"),
    [
        ('kind = "consensus"\nclassifiers = {fast = "m@1"}\nweights = {fast = 3.0}', {"fast": 3.0}),
        ('kind = "consensus"\nclassifiers = {fast = "m@1"}\nweights = {fast = -3.0}', None),
        ('kind = "classifier"', None),
        ("not = = toml", None),
        (None, None),
    ],
)
def test_the_weights_of_the_consensus_are_read_from_models_toml_if_they_can_be(
    tmp_path: Path, table: str | None, weights: dict[str, float] | None
) -> None:
    if table is not None:
        (tmp_path / "models.toml").write_text(f"[consensus]\n{table}\n")
    fitted = fitted_consensus(Settings(models_dir=tmp_path, built_models_dir=tmp_path / "none"))
    assert (None if fitted is None else fitted.weights) == weights


def square(left: int, top: int, side: int) -> QrCode:
    right, bottom = left + side, top + side
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return QrCode("text", b"text", corners, "zxing", "qr", 2, "whole", False, "raw", None, 0.9, 1.0)


def greenest(picture: Image.Image, where: tuple[int, int, int, int]) -> int:
    """How much greener than red the greenest pixel of a part of the picture is."""
    red, green, _ = picture.crop(where).convert("RGB").split()
    return int(ImageChops.subtract(green, red).getextrema()[1])


@pytest.mark.parametrize(
    ("kind", "media_type"), [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("GIF", "image/png")]
)
def test_a_picture_is_shown_with_its_codes(service: Service, kind: str, media_type: str) -> None:
    file = io.BytesIO()
    Image.new("L", (300, 200), 200).save(file, kind)
    answer = service.upload(file.getvalue()).json()
    image_id = answer["image_id"]
    expect_error(service.http.get(answer["links"]["annotated"]), 409, "not_finished")
    service.results.save(
        [QrCodesRow(image_id, (square(40, 30, 60),)), OutcomeRow(image_id, "qr-decoder", "done")]
    )
    shown = service.http.get(answer["links"]["annotated"])
    assert shown.status_code == 200, shown.text
    assert shown.headers["content-type"] == media_type
    picture = Image.open(io.BytesIO(shown.content))
    assert picture.size == (300, 200)
    assert greenest(picture, (36, 50, 44, 70)) > 50, "the left edge of the code"
    assert greenest(picture, (150, 0, 300, 200)) < 10, "where there is nothing"


def test_what_cannot_be_drawn(service: Service) -> None:
    expect_error(service.http.get("/images/x/annotated"), 404, "image_not_found")
    service.results.save([QrCodesRow("plain", (square(1, 1, 5),)), OutcomeRow("plain", "qr-decoder", "done")])
    expect_error(service.http.get("/images/plain/annotated"), 404, "image_not_found")
    image_id = service.upload(jpeg()).json()["image_id"]
    expect_error(service.http.get(f"/images/{image_id}/annotated?task=fly"), 422, "invalid_request")
    service.results.save([OutcomeRow(image_id, "qr-decoder", "failed", "truncated_image: It ends.")])
    answer = service.http.get(f"/images/{image_id}/annotated")
    expect_error(answer, 422, "not_read")
    assert "truncated_image: It ends." in answer.json()["error"]


# Text


def pdf(*sizes: tuple[int, int]) -> bytes:
    """Pages of white pictures, a pixel a point."""
    first, *others = [Image.new("RGB", size, "white") for size in sizes]
    file = io.BytesIO()
    first.save(file, "PDF", save_all=True, append_images=others, resolution=72)
    return file.getvalue()


def text_line(text: str, left: int, top: int, page: int = 1) -> TextLine:
    """20 pixels high, 10 pixels a character."""
    right, bottom = left + 10 * len(text), top + 20
    return TextLine(text, ((left, top), (right, top), (right, bottom), (left, bottom)), 0.9, page)


def uploaded_document(service: Service, data: bytes, document: OcrDocument) -> str:
    image_id = str(service.upload(data).json()["image_id"])
    service.results.save([OcrDocumentRow(image_id, document), OutcomeRow(image_id, "ocr-worker", "done")])
    return image_id


TWO_PAGES = OcrDocument(
    text="Factura núm. 7\n\nTotal 12,50 €",
    lines=(text_line("Factura núm. 7", 50, 60), text_line("Total 12,50 €", 100, 400, 2)),
    pages=(PageSize(600, 800), PageSize(300, 600)),
    language="es+en",
    engine="double",
)


def test_what_was_read_stands_in_the_results_and_is_found(service: Service) -> None:
    image_id = uploaded_document(service, pdf((600, 800), (300, 600)), TWO_PAGES)
    results = service.http.get(f"/results/{image_id}").json()
    assert results["ocr"]["text"] == TWO_PAGES.text
    assert [line["page"] for line in results["ocr"]["lines"]] == [1, 2]
    answer = service.http.get("/search", params={"q": "FACTURA total"}).json()
    assert (answer["query"], answer["next"]) == ("FACTURA total", None)
    (hit,) = answer["results"]
    assert (hit["image_id"], hit["pages"], hit["language"]) == (image_id, 2, "es+en")
    assert hit["highlights"] == [
        {"page": 1, "text": "<mark>Factura</mark> núm. 7", "polygon": results["ocr"]["lines"][0]["polygon"]},
        {"page": 2, "text": "<mark>Total</mark> 12,50 €", "polygon": results["ocr"]["lines"][1]["polygon"]},
    ]
    assert service.http.get(hit["links"]["text"]).text == TWO_PAGES.text


def test_a_search_page_by_page(service: Service) -> None:
    for number in range(5):
        document = OcrDocument(f"word {number}", (), (PageSize(1, 1),), "es", "double")
        service.results.save([OcrDocumentRow(f"d{number}", document)])
    seen, offset = [], 0
    while offset is not None:
        answer = service.http.get("/search", params={"q": "word", "limit": 2, "offset": offset}).json()
        seen += [hit["image_id"] for hit in answer["results"]]
        offset = answer["next"]
    assert sorted(seen) == [f"d{number}" for number in range(5)]
    assert service.http.get("/search?q=nothing").json()["results"] == []
    for query in ("", "?q=", f"?q={'a' * 501}", "?q=a&limit=0", "?q=a&limit=21", "?q=a&offset=-1"):
        expect_error(service.http.get(f"/search{query}"), 422, "invalid_request")


@pytest.mark.parametrize(
    ("kind", "media_type", "holds"),
    [
        ("txt", "text/plain; charset=utf-8", "Factura núm. 7\n\nTotal"),
        ("hocr", "text/html; charset=utf-8", 'class="ocrx_word"'),
        ("alto.xml", "application/xml", 'CONTENT="Factura"'),
    ],
)
def test_the_text_as_a_file(service: Service, kind: str, media_type: str, holds: str) -> None:
    image_id = uploaded_document(service, pdf((600, 800), (300, 600)), TWO_PAGES)
    answer = service.http.get(f"/images/{image_id}/text.{kind}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert holds in answer.text
    assert answer.headers["content-disposition"].endswith(f'"{image_id}.{kind}"')


def test_a_pdf_that_can_be_searched(service: Service) -> None:
    image_id = uploaded_document(service, pdf((600, 800), (300, 600)), TWO_PAGES)
    answer = service.http.get(f"/images/{image_id}/text.pdf")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/pdf")
    with pypdfium2.PdfDocument(answer.content) as document:
        assert [page.get_size() for page in document] == [(600, 800), (300, 600)]
        texts = [page.get_textpage().get_text_range().split() for page in document]
    assert texts == [["Factura", "núm.", "7"], ["Total", "12,50", "€"]]


def test_a_document_is_shown_with_its_lines_page_by_page(service: Service) -> None:
    image_id = uploaded_document(service, pdf((600, 800), (300, 600)), TWO_PAGES)
    for page, size, line in ((1, (600, 800), (46, 62, 54, 78)), (2, (300, 600), (96, 402, 104, 418))):
        answer = service.http.get(f"/images/{image_id}/annotated", params={"task": "ocr", "page": page})
        assert answer.status_code == 200, answer.text
        picture = Image.open(io.BytesIO(answer.content))
        assert picture.size == size
        assert greenest(picture, line) > 50, "the left edge of the line"
        assert greenest(picture, (150, 500, 300, 600)) < 10, "where there is nothing"
    expect_error(service.http.get(f"/images/{image_id}/annotated?task=ocr&page=3"), 404, "not_found")


def test_a_picture_is_shown_with_its_lines_and_becomes_a_pdf(service: Service) -> None:
    line = text_line("hello", 20, 10)
    document = OcrDocument("hello", (line,), (PageSize(200, 100),), "es", "double")
    image_id = uploaded_document(service, jpeg(0, 200, 100), document)
    shown = service.http.get(f"/images/{image_id}/annotated?task=ocr")
    assert Image.open(io.BytesIO(shown.content)).size == (200, 100)
    made = service.http.get(f"/images/{image_id}/text.pdf")
    with pypdfium2.PdfDocument(made.content) as pages:
        assert pages[0].get_textpage().get_text_range().split() == ["hello"]


def test_text_that_is_not_there(service: Service) -> None:
    expect_error(service.http.get("/images/x/text.txt"), 404, "image_not_found")
    image_id = service.upload(jpeg()).json()["image_id"]
    for path in ("text.txt", "text.pdf", "annotated?task=ocr"):
        service.results.begin("ocr-worker", [image_id])
        expect_error(service.http.get(f"/images/{image_id}/{path}"), 409, "not_finished")
    service.results.save([OutcomeRow(image_id, "ocr-worker", "failed", "encrypted_document: A password.")])
    answer = service.http.get(f"/images/{image_id}/text.pdf")
    expect_error(answer, 422, "not_read")
    assert "A password." in answer.json()["error"]
    assert service.http.get(f"/images/{image_id}/text.doc").status_code == 422
    service.results.save([OcrDocumentRow("plain", TWO_PAGES), OutcomeRow("plain", "ocr-worker", "done")])
    assert service.http.get("/images/plain/text.txt").text == TWO_PAGES.text
    expect_error(service.http.get("/images/plain/text.pdf"), 404, "image_not_found")


def test_a_failed_picture_says_why(service: Service) -> None:
    image_id = service.upload(jpeg()).json()["image_id"]
    service.results.save([OutcomeRow(image_id, "feature-extractor", "failed", "truncated_image: It ends.")])
    answer = service.http.get(f"/predictions/{image_id}").json()
    assert answer["status"] == "failed"
    assert answer["error"] == "feature-extractor: truncated_image: It ends."
    assert answer["outcomes"][0]["state"] == "failed"


def test_results_of_an_image_that_never_went_through_upload(service: Service) -> None:
    service.results.save([FeaturesRow("plain", (0.5,) * 20, "extractor@1")])
    answer = service.http.get("/results/plain").json()
    assert answer["features"]["descriptor_count"] == 20
    assert answer["image"] is None
    assert service.http.get("/predictions/plain").json()["status"] == "processing"
    expect_error(service.http.get("/images/plain"), 404, "image_not_found")


def test_the_listing_goes_page_by_page_from_the_newest(service: Service) -> None:
    image_ids = [service.upload(jpeg(number)).json()["image_id"] for number in range(5)]
    seen: list[str] = []
    before: str | None = None
    for _ in range(3):
        query = {"limit": "2"} | ({"before": before} if before else {})
        page = service.http.get("/images", params=query).json()
        seen += [image["image_id"] for image in page["images"]]
        before = page["next"]
    assert seen == image_ids[::-1]
    assert before is None
    expect_error(service.http.get("/images?before=nonsense"), 422, "bad_cursor")
    assert service.http.get("/images?limit=0").status_code == 422


def test_outcomes_are_shown_before_there_is_one() -> None:
    # Otherwise the first failures are no rise, and no alert.
    metrics.UPLOADS.clear()
    service = Service()
    try:
        text = service.http.get("/metrics").text
    finally:
        service.close()
    for outcome in ("accepted", "duplicate", "rejected", "failed"):
        assert f'mesh_uploads_total{{outcome="{outcome}"}} 0.0\n' in text


def test_metrics_count_what_became_of_files(service: Service) -> None:
    def counts() -> list[float]:
        outcomes = ("accepted", "duplicate", "rejected")
        return [service.metric(f'mesh_uploads_total{{outcome="{outcome}"}}') for outcome in outcomes]

    before = counts()
    service.upload(jpeg(), image_id="mine")
    service.upload(jpeg(), image_id="mine")
    service.upload(b"")
    assert counts() == [count + 1 for count in before]
