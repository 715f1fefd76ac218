from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from answers import assert_error
from feature_extractor.domain import prepare_one
from feature_extractor.http import make_app
from visionmesh.errors import Rejected, Unavailable
from visionmesh.isolated import Isolated
from visionmesh.model_store import ModelStore
from visionmesh.observability import metrics
from visionmesh.registry import FixedSource
from visionmesh.settings import ROOT
from visionmesh.testing.cache import MemoryCache

MEBIBYTE = 1024 * 1024
MAX_BYTES = 64 * MEBIBYTE


def jpeg(size: tuple[int, int] = (320, 240)) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


OBJECTS = {"raw-images/2024/10/06/uuid.jpg": jpeg(), "raw-images/text.txt": b"no picture"}


def fetch(minio_path: str) -> bytes:
    if minio_path.startswith("away/"):
        raise Unavailable("object_store", "connection refused")
    try:
        return OBJECTS[minio_path]
    except KeyError:
        raise Rejected("object_not_found", f"object {minio_path} does not exist") from None


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    source = FixedSource(ModelStore(ROOT / "models").load("extractor"))
    with Isolated(prepare_one, deadline_seconds=10, memory_bytes=512 * MEBIBYTE) as isolated:

        def prepare(data: bytes, side: int) -> NDArray[np.uint8]:
            return isolated.call((data, side))

        app = make_app(
            "feature-extractor", fetch, prepare, source, MemoryCache(), checks={}, max_bytes=MAX_BYTES
        )
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client


def assert_features(response: Any, image_id: str | None) -> list[float]:
    assert response.status_code == 200, response.text
    body = response.json()
    assert set(body) == {"image_id", "descriptors", "descriptor_count"}
    assert body["image_id"] == image_id
    assert body["descriptor_count"] == len(body["descriptors"]) == 20
    assert all(float(f"{value:.4g}") == value for value in body["descriptors"])
    descriptors: list[float] = body["descriptors"]
    return descriptors


JSON = {"content-type": "application/json"}
IN_STORE = '{"image_id": "test-123", "minio_path": "raw-images/2024/10/06/uuid.jpg"}'


def test_the_seed_s_call(client: TestClient) -> None:
    body = '{\n    "image_id": "test-123",\n    "minio_path": "raw-images/test.jpg"\n  }'
    assert_error(client.post("/extract", content=body, headers=JSON), 404, "object_not_found")


def test_every_way_to_send_a_picture_gives_the_same(client: TestClient) -> None:
    stored = assert_features(client.post("/extract", content=IN_STORE, headers=JSON), "test-123")
    assert any(stored)
    as_bytes = client.post("/extract?image_id=a", content=jpeg(), headers={"content-type": "image/jpeg"})
    assert assert_features(as_bytes, "a") == stored
    assert assert_features(client.post("/extract", content=jpeg()), None) == stored
    form = client.post("/extract", files={"file": ("test.jpg", jpeg(), "image/jpeg")})
    assert assert_features(form, None) == stored
    # What curl --data-binary says of a picture.
    as_form = {"content-type": "application/x-www-form-urlencoded"}
    assert assert_features(client.post("/extract", content=jpeg(), headers=as_form), None) == stored


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "empty_file"),
        (b"this is a text file", 415, "not_an_image"),
        (b"%PDF-1.7 and so on", 415, "unsupported_media_type"),
        (jpeg((1000, 1000))[:2000], 422, "truncated_image"),
        (jpeg()[:40] + b"\0" * 400, 422, "corrupt_image"),
        (bomb(20_000, 20_000), 413, "too_many_pixels"),
        (b"\0" * (100 * MEBIBYTE), 413, "body_too_large"),
        (b"\0" * (MAX_BYTES + 1), 415, "not_an_image"),
    ],
    ids=["empty", "text", "pdf", "truncated", "corrupt", "bomb", "100MB", "just_above"],
)
def test_bad_pictures(client: TestClient, body: bytes, status: int, code: str) -> None:
    assert_error(client.post("/extract", content=body), status, code)
    assert_features(client.post("/extract", content=jpeg()), None)


def test_a_chunked_body_of_100_mb(client: TestClient) -> None:
    chunks = (b"\0" * MEBIBYTE for _ in range(100))
    assert_error(client.post("/extract", content=chunks), 413, "body_too_large")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("", 400, "invalid_json"),
        ('{"image_id": "a", "minio_path"', 400, "invalid_json"),
        ('{"image_id": NaN, "minio_path": "raw-images/a.jpg"}', 400, "invalid_json"),
        ('{"image_id": "a"}', 422, "invalid_request"),
        ('{"image_id": "../a b", "minio_path": "raw-images/a.jpg"}', 400, "bad_image_id"),
        ('{"image_id": 5, "minio_path": "raw-images/a.jpg"}', 422, "invalid_request"),
        ('{"image_id": "a", "minio_path": "raw-images/text.txt"}', 415, "not_an_image"),
        ('{"image_id": "a", "minio_path": "away/a.jpg"}', 503, "object_store_unavailable"),
    ],
)
def test_bad_json(client: TestClient, body: str, status: int, code: str) -> None:
    assert_error(client.post("/extract", content=body, headers=JSON), status, code)


def test_bad_forms(client: TestClient) -> None:
    assert_error(client.post("/extract", files={"field": (None, "no file")}), 400, "no_file")
    broken = {"content-type": "multipart/form-data"}
    assert_error(client.post("/extract", content=b"rubbish", headers=broken), 400, "bad_request")


def test_bad_image_id(client: TestClient) -> None:
    in_query = client.post("/extract?image_id=a/b", content=jpeg())
    assert_error(in_query, 400, "bad_image_id")
    body = {"image_id": "a/b", "minio_path": "raw-images/2024/10/06/uuid.jpg"}
    assert client.post("/extract", json=body).json() == in_query.json()


def test_wrong_method(client: TestClient) -> None:
    assert_error(client.get("/extract"), 405, "method_not_allowed")


def test_a_picture_that_is_asked_for_again_is_not_computed_again(client: TestClient) -> None:
    inferences = metrics.INFERENCES.labels("answer")
    before = inferences._value.get()
    answers = [
        assert_features(client.post("/extract?image_id=a", content=jpeg((77, 33))), "a") for _ in range(3)
    ]
    assert inferences._value.get() == before + 1
    assert answers[0] == answers[1] == answers[2]
