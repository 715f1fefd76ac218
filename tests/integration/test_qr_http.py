"""The routes of qr-decoder, on the real child process."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import segno
from PIL import Image
from starlette.testclient import TestClient

from answers import assert_error
from qr_decoder.http import make_app
from qr_decoder.reader import Reader
from qr_decoder.reading import DOMAIN, Found, read_one
from visionmesh.errors import Rejected
from visionmesh.isolated import Isolated

MEBIBYTE = 1024 * 1024
MAX_BYTES = 16 * MEBIBYTE
CONTENT = "https://example.org/Straße?q=1"


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def code(content: str = CONTENT, scale: int = 5) -> Image.Image:
    file = io.BytesIO()
    segno.make(content, error="m", micro=False).save(file, kind="png", scale=scale)
    return Image.open(file).convert("L")


def two_codes() -> bytes:
    sheet = Image.new("L", (700, 300), 255)
    sheet.paste(code("first"), (20, 20))
    sheet.paste(code("second"), (400, 60))
    return png(sheet)


CODE = png(code())
NOTHING = png(Image.linear_gradient("L"))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with Isolated(read_one, deadline_seconds=30, memory_bytes=1024 * MEBIBYTE, preload=(DOMAIN,)) as isolated:
        read = Reader(isolated, Path("/nowhere"), profile="cascade", budget_ms=20_000)
        app = make_app(
            "qr-decoder", read, own_profile="cascade", checks={}, max_bytes=MAX_BYTES, max_budget_ms=20_000
        )
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client


# The seeds' calls


def test_the_seed_s_fallback_gives_the_content_and_nothing_else(client: TestClient) -> None:
    answer = client.post("/qr/hybrid-fallback", content=CODE)
    assert (answer.status_code, answer.json()) == (200, {"content": CONTENT})


def test_the_seed_s_fallback_without_a_code(client: TestClient) -> None:
    answer = client.post("/qr/hybrid-fallback", content=NOTHING)
    assert answer.status_code == 404
    assert answer.json() == {"error": "No QR detected", "code": "no_qr"}


def test_detect_tells_all_that_is_known(client: TestClient) -> None:
    answer = client.post("/detect", content=two_codes(), headers={"content-type": "application/octet-stream"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert list(body) == [
        "success", "data", "model", "latency_ms", "image_size", "truncated", "codes",
    ]  # fmt: skip
    assert body["success"] is True
    assert body["data"] == body["codes"][0]["content"]
    assert body["model"] == "cascade"
    assert isinstance(body["latency_ms"], int)
    assert body["image_size"] == [700, 300]
    assert body["truncated"] is False
    at = {each["content"]: each for each in body["codes"]}
    assert set(at) == {"first", "second"}
    for content, (left, top) in {"first": (20, 20), "second": (400, 60)}.items():
        # The quiet zone is 4 modules of 5 pixels.
        assert at[content]["corners"][0] == pytest.approx([left + 20, top + 20], abs=3)
        assert at[content]["bytes"] == content.encode().hex()


def test_detect_answers_200_without_a_code(client: TestClient) -> None:
    body = client.post("/detect", content=NOTHING).json()
    assert (body["success"], body["data"], body["codes"]) == (False, None, [])
    assert body["image_size"] == [256, 256]


# Ways to send, ways to read


@pytest.mark.parametrize("path", ["/detect", "/qr/hybrid-fallback"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_every_format_and_every_way_to_send_it(client: TestClient, path: str, kind: str) -> None:
    data = png(code(), kind)
    form = client.post(path, files={"picture": ("p", data)})
    # What curl --data-binary says of a picture.
    raw = client.post(path, content=data, headers={"content-type": "application/x-www-form-urlencoded"})
    for answer in (form, raw):
        assert answer.status_code == 200, answer.text
        assert answer.json().get("content", answer.json().get("data")) == CONTENT


@pytest.mark.parametrize("profile", ["light", "raw", "clahe,raw+opencv"])
def test_the_profile_can_be_asked_for(client: TestClient, profile: str) -> None:
    body = client.post("/detect", params={"profile": profile}, content=CODE).json()
    assert body["model"] == profile
    assert body["data"] == CONTENT
    if "," in profile or profile == "raw":
        assert body["codes"][0]["level"] == profile.partition(",")[0]


def test_a_budget_that_is_over_is_said(client: TestClient) -> None:
    # Noise, so that every level has something to do.
    pixels = random.Random(8008).randbytes(600 * 400)
    noise = png(Image.frombytes("L", (600, 400), pixels))
    body = client.post("/detect?budget_ms=1", content=noise).json()
    assert body["truncated"] is True
    assert body["success"] is False
    assert_error(client.post("/qr/hybrid-fallback?budget_ms=1", content=noise), 404, "no_qr")


@pytest.mark.parametrize("budget", ["0", "-5", "20001", "soon", "nan"])
def test_a_budget_that_makes_no_sense(client: TestClient, budget: str) -> None:
    answer = client.post("/detect", params={"budget_ms": budget}, content=CODE)
    assert answer.status_code == 422
    assert "budget_ms" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/detect", "/qr/hybrid-fallback"])
def test_an_unknown_profile(client: TestClient, path: str) -> None:
    assert_error(client.post(path, params={"profile": "magic"}, content=CODE), 422, "unknown_profile")


# What is refused


@pytest.mark.parametrize("path", ["/detect", "/qr/hybrid-fallback"])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "empty_file"),
        (b"this is a text file", 415, "not_an_image"),
        (b"%PDF-1.7 and so on", 415, "unsupported_media_type"),
        (CODE[:150], 422, "truncated_image"),
        (b"\0" * (MAX_BYTES + MEBIBYTE), 413, "body_too_large"),
    ],
    ids=["empty", "text", "pdf", "truncated", "large"],
)
def test_bad_pictures(client: TestClient, path: str, body: bytes, status: int, code: str) -> None:
    assert_error(client.post(path, content=body), status, code)


def test_bad_forms(client: TestClient) -> None:
    assert_error(client.post("/detect", files={"field": (None, "no file")}), 400, "no_file")
    assert_error(client.get("/detect"), 405, "method_not_allowed")


def test_a_picture_that_takes_too_long_is_no_code_and_not_an_error() -> None:
    def read(data: bytes, *, profile: str | None = None, budget_ms: float | None = None) -> Found:
        raise Rejected("deadline_exceeded", "Reading the file took longer than 5 s.")

    app = make_app("qr-decoder", read, own_profile="light", checks={}, max_bytes=1000, max_budget_ms=10)
    with TestClient(app) as client:
        body = client.post("/detect", content=b"?").json()
        assert (body["success"], body["truncated"], body["image_size"]) == (False, True, None)
        assert_error(client.post("/qr/hybrid-fallback", content=b"?"), 404, "no_qr")
