"""`mesh qr`: one line per picture, drawings, and a success rate at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segno
from PIL import Image
from typer.testing import CliRunner, Result

from visionmesh.cli import app
from visionmesh.settings import get_settings


def qr(*arguments: str) -> tuple[Result, list[dict[str, Any]]]:
    result = CliRunner().invoke(app, ["qr", "--json", *arguments])
    return result, [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    segno.make("first", micro=False).save(str(pictures / "code.png"), scale=6)
    segno.make("second", micro=False).save(str(pictures / "more" / "code.png"), scale=6)
    Image.new("RGB", (200, 150), "white").save(pictures / "empty.png")
    return pictures


def test_a_picture_is_one_line_with_all_that_is_known(folder: Path) -> None:
    result, (line,) = qr(str(folder / "code.png"))
    assert result.exit_code == 0
    assert set(line) == {"file", "codes", "processing_time_ms"}
    (code,) = line["codes"]
    assert (code["content"], bytes.fromhex(code["bytes"])) == ("first", b"first")
    assert (code["level_used"], code["level"], code["decoder"]) == (2, "whole", "zxing")
    assert len(code["corners"]) == 4
    assert {"preprocessing_applied", "rotation_angle", "confidence", "processing_time_ms"} <= set(code)


def test_a_folder_ends_with_its_success_rate(folder: Path) -> None:
    result, lines = qr(str(folder))
    assert result.exit_code == 0
    assert [len(line["codes"]) for line in lines] == [1, 0, 1]
    assert "2 of 3 pictures with codes (66.7%), 2 codes." in result.stderr


def test_a_file_that_cannot_be_read_is_an_error_and_its_neighbours_are_not(folder: Path) -> None:
    broken = folder / "broken.jpg"
    broken.write_text("no picture")
    result, lines = qr(str(broken), str(folder / "code.png"), str(folder / "gone.png"))
    assert result.exit_code == 1
    assert [line.get("error", {}).get("code") for line in lines] == ["not_an_image", None, "file_not_found"]
    assert all(line["error"]["message"] for line in lines if "error" in line)


def test_pictures_are_drawn_with_their_codes_outlined(folder: Path, tmp_path: Path) -> None:
    drawings = tmp_path / "drawings"
    result, _ = qr(str(folder), "--draw", str(drawings))
    assert result.exit_code == 0
    assert sorted(path.name for path in drawings.iterdir()) == ["code-2.png", "code.png", "empty.png"]
    before = np.asarray(Image.open(folder / "code.png").convert("RGB"))
    after = np.asarray(Image.open(drawings / "code.png"))
    assert before.shape == after.shape
    assert (before != after).any()
    # Grey before; outlined in colour after.
    assert (after[..., 1] > after[..., 0]).any()


def test_people_read_the_contents(folder: Path) -> None:
    result = CliRunner().invoke(app, ["qr", str(folder / "code.png"), str(folder / "empty.png")])
    assert result.stdout.splitlines() == [
        f"{folder / 'code.png'}: 'first' (whole)",
        f"{folder / 'empty.png'}: no code",
    ]


def test_an_unknown_profile_says_which_there_are(folder: Path) -> None:
    result, _ = qr(str(folder), "--profile", "magic")
    assert result.exit_code == 2
    assert "ultralight" in result.stderr


def test_a_profile_without_its_locators_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = get_settings().model_copy(update={"models_dir": tmp_path})
    monkeypatch.setattr("visionmesh.settings.get_settings", lambda: bare)
    result, _ = qr(str(folder), "--profile", "locator-l")
    assert result.exit_code == 2
    assert "No locator that profile 'locator-l' asks" in result.stderr
