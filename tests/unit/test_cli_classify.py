"""`mesh classify`: one line per picture, and an exit status that says whether any could not be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from visionmesh.cli import app
from visionmesh.settings import ROOT

CAT = ROOT / "samples" / "cat.jpg"


def classify(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    result = CliRunner().invoke(app, ["classify", "--json", *arguments])
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def test_a_picture_gets_descriptors_and_a_label_of_each_classifier() -> None:
    status, (line,) = classify(str(CAT))
    assert status == 0
    assert set(line) == {"file", "descriptors", "predictions"}
    assert len(line["descriptors"]) == 20
    assert [one["classifier"] for one in line["predictions"]] == ["fast", "balanced", "accurate"]
    assert {one["label"] for one in line["predictions"]} == {"cat"}


def test_a_file_that_cannot_be_read_is_an_error_and_its_neighbours_are_not(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(CAT.read_bytes()[:9000])
    status, lines = classify(str(text), str(CAT), str(empty), str(tmp_path / "gone.jpg"), str(cut))
    assert status == 1
    codes = [line.get("error", {}).get("code") for line in lines]
    assert codes == ["not_an_image", None, "empty_file", "file_not_found", "truncated_image"]
    assert all(line["error"]["message"] for line in lines if "error" in line)


def test_a_folder_gives_its_pictures_to_any_depth_in_order(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.JPG", "a/c.png", "notes.txt"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(CAT, target)
    status, lines = classify(str(tmp_path))
    assert status == 0
    names = [str(Path(line["file"]).relative_to(tmp_path)) for line in lines]
    assert names == ["b.jpg", "a/c.png", "a/z.JPG"]


def test_a_folder_without_pictures_is_an_error_and_its_neighbours_are_not(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    status, (empty, cat) = classify(str(tmp_path), str(CAT))
    assert status == 1
    assert (empty["file"], empty["error"]["code"]) == (str(tmp_path), "no_pictures")
    assert "predictions" in cat
    result = CliRunner().invoke(app, ["classify", str(tmp_path)])
    assert result.exit_code == 1
    assert "The folder has no pictures." in result.stdout


def test_a_batch_gives_what_one_picture_gives(tmp_path: Path) -> None:
    names = [str(ROOT / "samples" / name) for name in ("cat.jpg", "horse.png", "ship.jpg", "truck.jpg")]
    together = classify(*names)[1]
    assert [line["predictions"] for line in together] == [
        classify(name)[1][0]["predictions"] for name in names
    ]


def test_an_altered_model_is_a_sentence_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionmesh.settings import get_settings

    for file in (ROOT / "models").glob("*.*"):
        shutil.copy(file, tmp_path)
    with (tmp_path / "extractor.onnx").open("ab") as model:
        model.write(b"x")
    monkeypatch.setenv("MESH_MODELS_DIR", str(tmp_path))
    get_settings.cache_clear()
    try:
        result = CliRunner().invoke(app, ["classify", str(CAT)])
    finally:
        get_settings.cache_clear()
    assert result.exit_code == 1
    assert "sha256" in result.output
    assert "Traceback" not in result.output
