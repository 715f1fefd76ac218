"""The engine `qreader` on a double of the package: its weights, and what it makes of detections."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import segno
from PIL import Image

from qr_decoder import domain, export_qrdet, qreader_engine, weights
from qr_decoder.qreader_engine import Weights
from qr_decoder.reading import Asked, Found
from visionmesh.errors import Rejected

DOUBLE = Path(__file__).parents[1] / "qreader_double"
MODULES = ("qreader", "qrdet", "qrdet.qrdet", "torch")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(DOUBLE))
    _forget()
    import qreader

    yield qreader
    _forget()


def _forget() -> None:
    for name in MODULES:
        sys.modules.pop(name, None)
    qreader_engine._reader.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    for size in weights.SIZES:
        weights.file_of(size, folder).write_bytes(b"weights " + size.encode())
    monkeypatch.setenv("QREADER_DOUBLE_RELEASE", str(folder))
    return folder


@pytest.fixture
def ready(package: ModuleType, release: Path, folder: Path) -> Path:
    weights.fetch("s", folder)
    return folder


def picture(*codes: tuple[str, int, int]) -> bytes:
    sheet = Image.new("RGB", (700, 300), "white")
    for content, left, top in codes:
        file = io.BytesIO()
        segno.make(content, error="m", micro=False).save(file, kind="png", scale=5)
        sheet.paste(Image.open(file).convert("RGB"), (left, top))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


ONE = picture(("one", 20, 20))


def read(data: bytes, folder: Path, profile: str = "qreader-s", budget_ms: float = 60_000) -> Found:
    return qreader_engine.read_one(Asked(data, profile, budget_ms, folder))


def code_of(error: pytest.ExceptionInfo[Rejected]) -> str:
    return error.value.code


# Weights


def test_weights_are_downloaded_once(ready: Path, release: Path) -> None:
    file = weights.file_of("s", ready)
    assert file.read_bytes() == b"weights s"
    file.write_bytes(b"weights of mine")
    weights.file_of("s", release).unlink()
    weights.fetch("s", ready)
    weights.opened("s", ready)
    assert file.read_bytes() == b"weights of mine"
    assert sorted(each.name for each in ready.iterdir()) == ["current_release.txt", "qrdet-s.pt"]


def test_weights_put_there_by_hand_are_not_downloaded_over(package: ModuleType, folder: Path) -> None:
    folder.mkdir()
    weights.file_of("m", folder).write_bytes(b"weights by hand")
    qreader_engine.prepare(Weights("m", folder))
    assert weights.file_of("m", folder).read_bytes() == b"weights by hand"


def test_a_download_that_fails_is_a_sentence_and_leaves_nothing(package: ModuleType, folder: Path) -> None:
    with pytest.raises(Rejected, match=r"qrdet-s\.pt is not there .*ConnectionError") as error:
        weights.fetch("s", folder)
    assert code_of(error) == "weights_missing"
    assert list(folder.iterdir()) == []


def test_a_page_in_place_of_weights_is_not_kept(package: ModuleType, release: Path, folder: Path) -> None:
    weights.file_of("s", release).write_bytes(b"<html>404")
    with pytest.raises(Rejected, match="invalid load key") as error:
        weights.fetch("s", folder)
    assert code_of(error) == "weights_missing"
    assert list(folder.iterdir()) == []


def test_a_folder_that_can_t_be_made(package: ModuleType, release: Path, folder: Path) -> None:
    folder.touch()
    with pytest.raises(Rejected) as error:
        weights.fetch("s", folder / "below")
    assert code_of(error) == "weights_missing"


def test_broken_weights(package: ModuleType, folder: Path) -> None:
    folder.mkdir()
    weights.file_of("s", folder).write_bytes(b"no such thing")
    with pytest.raises(Rejected, match=r"can't load .*qrdet-s\.pt: ValueError") as error:
        qreader_engine.prepare(Weights("s", folder))
    assert code_of(error) == "weights_broken"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "qreader", None)
    with pytest.raises(Rejected, match="qreader is not installed here") as error:
        qreader_engine.prepare(Weights("s", folder))
    assert code_of(error) == "package_missing"
    assert not folder.exists()


def test_an_export_that_fails_is_one_line(
    package: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made.onnx"
    arguments = ["--size", "s", "--weights-folder", str(folder), "--onnx", str(made)]
    assert export_qrdet.main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not made.exists()


# Levels


def test_numbers_of_levels_are_nobody_else_s() -> None:
    assert list(qreader_engine.LEVELS.items()) == [
        ("qreader-n", 101),
        ("qreader-s", 102),
        ("qreader-m", 103),
        ("qreader-l", 104),
    ]
    assert not set(qreader_engine.LEVELS.values()) & set(domain.NUMBERS.values())
    assert not set(qreader_engine.LEVELS) & {*domain.LEVELS, *domain.PROFILES}


# Reading


def test_codes_as_the_mesh_tells_them(ready: Path) -> None:
    found = read(picture(("one", 20, 20), ("Straße", 400, 60)), ready)
    assert (found.width, found.height, found.truncated) == (700, 300, False)
    codes = {code.content: code for code in found.codes}
    assert set(codes) == {"one", "Straße"}
    code = codes["Straße"]
    assert code.data == "Straße".encode()
    assert (code.decoder, code.level, code.level_used) == ("qreader", "qreader-s", 102)
    assert (code.preprocessing_applied, code.rotation_angle, code.confidence) == (True, None, 0.875)
    # Clockwise from the top left, though the package begins elsewhere; the quiet zone is 4 modules of 5.
    side = 21 * 5
    corners = np.array([[420, 80], [420 + side, 80], [420 + side, 80 + side], [420, 80 + side]])
    assert np.abs(np.array(code.corners) - corners).max() < 3


def test_nothing_is_loaded_without_a_budget(package: ModuleType, folder: Path) -> None:
    found = read(ONE, folder, budget_ms=0)
    assert (found.codes, found.truncated) == ((), True)


def test_one_reader_per_process(ready: Path, package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(package.QReader):  # type: ignore[name-defined,misc]
        def __init__(self, model_size: str, weights_folder: str) -> None:
            made.append(model_size)
            super().__init__(model_size, weights_folder)

    monkeypatch.setattr(package, "QReader", Counted)
    for _ in range(3):
        read(ONE, ready)
    assert made == ["s"]


@pytest.mark.parametrize(
    ("profile", "code"), [("cascade", "unknown_profile"), ("qreader-l", "profile_unavailable")]
)
def test_profiles_that_are_not_here(ready: Path, profile: str, code: str) -> None:
    with pytest.raises(Rejected) as error:
        read(ONE, ready, profile)
    assert code_of(error) == code


def test_what_is_no_picture(ready: Path) -> None:
    with pytest.raises(Rejected) as error:
        read(b"text", ready)
    assert code_of(error) == "not_an_image"


def test_detections_that_overlap_are_one_code(
    ready: Path, package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = package.QReader.detect
    monkeypatch.setattr(package.QReader, "detect", lambda self, image: detect(self, image) * 2)
    found = read(picture(("one", 20, 20), ("one", 400, 60)), ready)
    assert [code.content for code in found.codes] == ["one", "one"]


def test_a_place_that_can_t_be_read_does_not_hide_others(
    ready: Path, package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(self: Any, image: Any, detection_result: dict[str, Any]) -> str | None:
        if detection_result["text"] == "broken":
            raise ValueError("not enough values to unpack")
        return None if detection_result["text"] == "unread" else str(detection_result["text"])

    monkeypatch.setattr(package.QReader, "decode", decode)
    found = read(picture(("broken", 20, 20), ("unread", 240, 20), ("three", 460, 20)), ready)
    assert [code.content for code in found.codes] == ["three"]


def test_the_budget_ends_between_codes(
    ready: Path, package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(float(second) for second in range(100))
    monkeypatch.setattr(qreader_engine.time, "perf_counter", lambda: next(now))
    found = read(picture(("one", 20, 20), ("two", 400, 60)), ready, budget_ms=500)
    assert len(found.codes) == 1
    assert found.truncated


@pytest.mark.parametrize(
    "failure", [AssertionError("one class"), TypeError("object of type 'NoneType' has no len()")]
)
def test_a_picture_that_the_package_stumbles_over(
    ready: Path, package: ModuleType, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def detect(self: Any, image: Any) -> list[dict[str, Any]]:
        raise failure

    monkeypatch.setattr(package.QReader, "detect", detect)
    with pytest.raises(Rejected, match=type(failure).__name__) as error:
        read(ONE, ready)
    assert code_of(error) == "reader_failed"


def test_torch_s_lack_of_memory_is_lack_of_memory(
    ready: Path, package: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detect(self: Any, image: Any) -> list[dict[str, Any]]:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(package.QReader, "detect", detect)
    with pytest.raises(MemoryError):
        read(ONE, ready)
