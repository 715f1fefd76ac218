"""`mesh upload`: what it prints of each picture, and an exit status that says whether all went well."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from visionmesh.cli import app

FAILED = {
    "status": "failed",
    "error": "feature-extractor: truncated_image: The picture ends early.",
    "predictions": [],
    "consensus": None,
    "outcomes": [
        {
            "worker": "feature-extractor",
            "state": "failed",
            "error": "truncated_image: The picture ends early.",
        }
    ],
}

Serve = Callable[[dict[str, Any]], None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Gives the command an ingest-api that takes all but `refused`, with these predictions of each."""

    def answered_with(predictions: dict[str, Any]) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                return httpx.Response(200, json=predictions)
            if b"refused" in request.read():
                return httpx.Response(415, json={"error": "This is no picture.", "code": "not_an_image"})
            return httpx.Response(202, json={"image_id": "one", "status": "accepted"})

        monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=httpx.MockTransport(answer)))

    return answered_with


def upload(*arguments: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["upload", "--url", "http://mesh", *arguments])
    return result.exit_code, result.stdout.splitlines()


def upload_json(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    status, lines = upload("--json", *arguments)
    return status, [json.loads(line) for line in lines]


def test_an_error_has_the_shape_of_classify(tmp_path: Path, serve: Serve) -> None:
    serve({})
    text, gone = tmp_path / "text.jpg", tmp_path / "gone.jpg"
    text.write_text("refused")
    status, lines = upload_json(str(text), str(gone))
    assert status == 1
    assert lines == [
        {"file": str(text), "error": {"code": "not_an_image", "message": "This is no picture."}},
        {"file": str(gone), "error": {"code": "file_not_found", "message": "No such file or directory"}},
    ]
    classified = CliRunner().invoke(app, ["classify", "--json", str(gone)])
    assert json.loads(classified.stdout) == lines[1]


def test_what_failed_after_the_upload_has_that_shape_too(tmp_path: Path, serve: Serve) -> None:
    serve(FAILED)
    picture = tmp_path / "cut.jpg"
    picture.touch()
    status, (line,) = upload_json("--wait", str(picture))
    assert status == 1
    assert line["error"] == {
        "code": "truncated_image",
        "message": "feature-extractor: The picture ends early.",
    }
    assert upload("--wait", str(picture))[1] == [
        f"{picture}: one failed: feature-extractor: The picture ends early. (truncated_image)"
    ]


def test_a_folder_gives_its_pictures_to_any_depth_in_order(tmp_path: Path, serve: Serve) -> None:
    serve({})
    for name in ("b.jpg", "a/z.JPG", "a/c.png", "notes.txt"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.touch()
    status, lines = upload_json(str(tmp_path))
    assert status == 0
    names = [str(Path(line["file"]).relative_to(tmp_path)) for line in lines]
    assert names == ["b.jpg", "a/c.png", "a/z.JPG"]


def test_a_folder_without_pictures_is_an_error(tmp_path: Path, serve: Serve) -> None:
    serve({})
    (tmp_path / "notes.txt").touch()
    status, (line,) = upload_json(str(tmp_path))
    assert status == 1
    assert line["error"]["code"] == "no_pictures"


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (
            [{"worker": "feature-extractor", "state": "skipped", "error": "task_not_asked: classify"}],
            "skipped by feature-extractor: task_not_asked: classify",
        ),
        ([], "no predictions"),
    ],
)
def test_a_picture_that_gets_no_labels_says_why(
    tmp_path: Path, serve: Serve, outcomes: list[dict[str, Any]], said: str
) -> None:
    serve({"status": "done", "error": None, "predictions": [], "consensus": None, "outcomes": outcomes})
    picture = tmp_path / "code.png"
    picture.touch()
    assert upload("--wait", "--tasks", "qr", str(picture)) == (0, [f"{picture}: one {said}"])


def test_the_agreed_answer_stands_beside_the_others(tmp_path: Path, serve: Serve) -> None:
    predictions = [
        {"classifier": "accurate", "label": "cat", "confidence": 0.96},
        {"classifier": "fast", "label": "dog", "confidence": 0.6},
    ]
    consensus = {"label": "cat", "confidence": 0.8, "agreement": "split"}
    serve(
        {"status": "done", "error": None, "predictions": predictions, "consensus": consensus, "outcomes": []}
    )
    picture = tmp_path / "cat.png"
    picture.touch()
    assert upload("--wait", str(picture)) == (
        0,
        [f"{picture}: one accurate cat 96%, fast dog 60%; agreed cat 80% (split)"],
    )
    assert upload_json("--wait", str(picture))[1][0]["consensus"] == consensus
