"""The step of qr-decoder, and the reader behind it."""

from __future__ import annotations

import io
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import segno
from PIL import Image
from prometheus_client import REGISTRY

from qr_decoder.reader import Reader
from qr_decoder.reading import DOMAIN, Asked, Found, read_one
from qr_decoder.step import make_step
from visionmesh.contracts import ImageUploaded
from visionmesh.errors import Rejected, Unavailable
from visionmesh.isolated import Isolated
from visionmesh.qr_code import as_json
from visionmesh.results import QrCodesRow
from visionmesh.testing.results import MemoryResultStore
from visionmesh.worker.step import Done, Skipped, Verdict

MEBIBYTE = 1024 * 1024


def code_png(*contents: str, scale: int = 4) -> bytes:
    """A picture with a code for each content, side by side."""
    codes = []
    for content in contents:
        file = io.BytesIO()
        segno.make(content, error="m", micro=False).save(file, kind="png", scale=scale, border=6)
        codes.append(Image.open(file).convert("L"))
    sheet = Image.new("L", (sum(code.width for code in codes), max(code.height for code in codes)), 255)
    left = 0
    for code in codes:
        sheet.paste(code, (left, 0))
        left += code.width
    return png(sheet)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


OBJECTS = {
    "raw-images/one.png": code_png("https://example.org/one"),
    "raw-images/two.png": code_png("left", "right"),
    "raw-images/none.png": png(Image.linear_gradient("L")),
    "raw-images/cut.png": code_png("cut")[:200],
    "raw-images/text": b"this is no picture",
    "raw-images/paper.pdf": b"%PDF-1.7 and so on",
}


def fetch(minio_path: str) -> bytes:
    if minio_path == "raw-images/away":
        raise Unavailable("object_store", "connection refused")
    try:
        return OBJECTS[minio_path]
    except KeyError:
        raise Rejected("object_not_found", f"{minio_path} does not exist") from None


def read_here(data: bytes, *, profile: str | None = None, budget_ms: float | None = None) -> Found:
    """What a child would do, in this process."""
    return read_one(Asked(data, profile or "cascade", budget_ms or 60_000, Path("/nowhere")))


def message(name: str, tasks: tuple[str, ...] | None = None) -> ImageUploaded:
    return ImageUploaded(name, f"raw-images/{name}", tasks)


MIXED = [
    message("one.png"),
    message("missing.png"),
    message("two.png", ("qr",)),
    message("none.png"),
    message("cut.png"),
    message("text"),
    message("paper.pdf"),
    message("one.png", ("classify", "ocr")),
]


def told(verdicts: Sequence[Verdict]) -> list[object]:
    """The contents of each picture, or what became of it."""
    found: list[object] = []
    for verdict in verdicts:
        if isinstance(verdict, Done):
            (row,) = verdict.rows
            assert isinstance(row, QrCodesRow)
            assert verdict.messages == ()
            found.append(sorted(code.content for code in row.codes))
        else:
            found.append(verdict.code if isinstance(verdict, Rejected) else type(verdict).__name__)
    return found


EXPECTED = [
    ["https://example.org/one"],
    "object_not_found",
    ["left", "right"],
    [],
    "truncated_image",
    "not_an_image",
    "Skipped",
    "Skipped",
]


def test_each_picture_gets_its_codes_and_bad_ones_cost_only_themselves() -> None:
    assert told(make_step(fetch, read_here)(MIXED)) == EXPECTED


def test_twice_leaves_the_same_rows() -> None:
    step, store = make_step(fetch, read_here, processes=3), MemoryResultStore()
    contents = []
    for _ in range(2):
        store.save([row for verdict in step(MIXED) if isinstance(verdict, Done) for row in verdict.rows])
        contents.append([(row.image_id, [code.content for code in row.codes]) for row in store.qr_codes()])
    assert contents[0] == contents[1]
    assert [image_id for image_id, _ in contents[0]] == ["one.png", "two.png"]


def test_a_picture_without_codes_takes_the_place_of_codes_that_were_stored() -> None:
    store = MemoryResultStore()
    step = make_step(lambda _: OBJECTS["raw-images/one.png"], read_here)
    later = make_step(lambda _: OBJECTS["raw-images/none.png"], read_here)
    for each in (step, later):
        (verdict,) = each([message("a")])
        assert isinstance(verdict, Done)
        store.save(verdict.rows)
    assert store.qr_codes() == []


def test_a_skipped_picture_says_why() -> None:
    paper, other = make_step(fetch, read_here)(MIXED[-2:])
    assert isinstance(paper, Skipped)
    assert "application/pdf" in paper.reason
    assert isinstance(other, Skipped)
    assert "task_not_asked" in other.reason


def test_a_store_that_is_away_is_not_the_picture_s_fault() -> None:
    with pytest.raises(Unavailable):
        make_step(fetch, read_here)([message("one.png"), message("away")])


def test_all_that_is_known_of_a_code_is_told() -> None:
    (code,) = read_here(OBJECTS["raw-images/one.png"]).codes
    assert as_json(code) == {
        "content": "https://example.org/one",
        "bytes": b"https://example.org/one".hex(),
        "corners": [list(corner) for corner in code.corners],
        "symbology": "qr",
        "decoder": "zxing",
        "level_used": 2,
        "level": "whole",
        "preprocessing_applied": False,
        "preprocessing": "raw",
        "rotation_angle": None,
        "confidence": 1.0,
        "processing_time_ms": round(code.processing_time_ms, 1),
    }
    assert len(code.corners) == 4


# In children


@pytest.fixture(scope="module")
def isolated() -> Iterator[Isolated[Asked, Found]]:
    with Isolated(read_one, deadline_seconds=30, memory_bytes=1024 * MEBIBYTE, preload=(DOMAIN,)) as isolated:
        yield isolated


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_what_children_read_is_counted(isolated: Isolated[Asked, Found], tmp_path: Path) -> None:
    read = Reader(isolated, tmp_path, profile="cascade", budget_ms=20_000)
    series = [
        ("mesh_qr_codes_total", {"level": "whole", "decoder": "zxing"}),
        ("mesh_qr_seconds_count", {"result": "found"}),
        ("mesh_qr_seconds_count", {"result": "none"}),
    ]
    before = [sample(name, **labels) for name, labels in series]
    assert told(make_step(fetch, read)(MIXED)) == EXPECTED
    gained = [sample(name, **labels) - one for (name, labels), one in zip(series, before, strict=True)]
    assert gained == [3, 2, 1]


def test_a_budget_that_is_over_is_said(isolated: Isolated[Asked, Found], tmp_path: Path) -> None:
    read = Reader(isolated, tmp_path, profile="cascade", budget_ms=0.001)
    found = read(OBJECTS["raw-images/none.png"])
    assert found.truncated
    assert found.codes == ()
    assert (found.width, found.height) == (256, 256)


def test_a_profile_that_does_not_exist_is_found_out_at_the_start(
    isolated: Isolated[Asked, Found], tmp_path: Path
) -> None:
    with pytest.raises(Rejected, match="no profile or level 'magic'") as caught:
        Reader(isolated, tmp_path, profile="magic", budget_ms=1000)
    assert caught.value.code == "unknown_profile"


def test_a_lack_of_memory_is_one_whoever_meets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_for_too_much(*_: object, **__: object) -> None:
        cv2.resize(np.zeros((10, 10), np.uint8), (400_000, 400_000), interpolation=cv2.INTER_NEAREST)

    monkeypatch.setattr("qr_decoder.domain.decode", ask_for_too_much)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 1024 * MEBIBYTE, limits[1]))
    try:
        with pytest.raises(MemoryError):
            read_here(b"")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_decoder_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyzbar", None)
    with pytest.raises(Rejected, match="'ultralight' is not installed") as caught:
        read_here(OBJECTS["raw-images/one.png"], profile="ultralight")
    assert caught.value.code == "profile_unavailable"


@pytest.mark.parametrize("profile", ["onnx", "hybrid", "locator-l"])
def test_a_profile_of_locators_that_are_not_there_is_said(profile: str) -> None:
    with pytest.raises(Rejected, match=f"No locator that profile '{profile}' asks") as caught:
        read_here(OBJECTS["raw-images/one.png"], profile=profile)
    assert caught.value.code == "profile_unavailable"
