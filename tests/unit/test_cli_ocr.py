"""`mesh ocr`: one line per file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont
from typer.testing import CliRunner

from visionmesh.cli import app
from visionmesh.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture = Image.new("RGB", (500, 120), "white")
    ImageDraw.Draw(picture).text((40, 40), "Invoice 4711", font=ImageFont.load_default(36), fill="black")
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.pdf")
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff but no more")
    Image.new("RGB", (100, 100), "white").save(tmp_path / "d.png")
    return tmp_path


def test_every_file_of_a_folder_is_one_line(folder: Path) -> None:
    result = CliRunner().invoke(app, ["ocr", "--json", str(folder)])
    first, second, broken, empty = (json.loads(line) for line in result.stdout.splitlines())
    assert {"file", "text", "lines", "seconds"} <= set(first)
    assert (first["file"], first["text"]) == (str(folder / "a.png"), "Invoice 4711")
    (line,) = first["lines"]
    assert set(line) == {"text", "polygon", "confidence", "page"}
    assert (line["text"], len(line["polygon"]), line["page"]) == ("Invoice 4711", 4, 1)
    assert first["seconds"] > 0
    assert second["text"] == "Invoice 4711"
    assert set(broken) == {"file", "error"}
    assert set(broken["error"]) == {"code", "message"}
    assert (empty["text"], empty["lines"]) == ("", [])
    assert result.exit_code == 1
    assert "1 of 4 could not be read." in result.stderr


def test_a_language_that_is_not_read_is_told_before_any_file() -> None:
    result = CliRunner().invoke(app, ["ocr", "--language", "tlh", "nothing.png"])
    assert result.exit_code == 2
    assert "no language" in result.stderr


class Faulty:
    """An engine with a bug."""

    name = "faulty"
    language = "es"

    def read(self, _: object) -> None:
        raise KeyError("a bug")


def test_a_bug_costs_its_own_file_and_the_engine_has_the_folder_of_the_settings(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def open_engine(name: str, language: str, **options: object) -> Faulty:
        asked.update(options, name=name)
        return Faulty()

    monkeypatch.setattr("ocr_worker.domain.open_engine", open_engine)
    monkeypatch.setattr("visionmesh.settings.get_settings", lambda: Settings(ocr_paddle_models=folder))
    result = CliRunner().invoke(app, ["ocr", "--json", "--engine", "paddleocr", str(folder)])
    errors = [json.loads(line)["error"] for line in result.stdout.splitlines()]
    assert [error["code"] for error in errors] == ["bug", "bug", errors[2]["code"], "bug"]
    assert errors[0]["message"] == "KeyError: 'a bug'"
    assert "4 of 4 could not be read." in result.stderr
    assert asked == {"name": "paddleocr", "threads": 1, "folder": folder}
