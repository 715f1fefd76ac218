"""`mesh classify`: one line per picture, and an exit status that says whether any could not be read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import small_models
from mlflow_servers import Registry
from visionmesh.cli import app
from visionmesh.model_store import ModelStore
from visionmesh.settings import ROOT, get_settings
from visionmesh.testing.mlflow import MemoryMlflow

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


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets settings, in a machine with models of its own."""
    large = {
        "large": small_models.extractor(width=50, side=64),
        **{
            f"classifier-{favourite}": small_models.classifier(
                width=50, favourite=favourite, extractor="large@1.0.0"
            )
            for favourite in ("frog", "ship")
        },
    }
    built = small_models.write_models(tmp_path / "built", large)

    def set_to(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()

    set_to(MESH_BUILT_MODELS_DIR=str(built))
    yield set_to
    get_settings.cache_clear()


def labels(*arguments: str) -> dict[str, str]:
    status, (line,) = classify(str(CAT), *arguments)
    assert status == 0
    return {one["classifier"]: one["label"] for one in line["predictions"]}


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["classify", str(CAT), *arguments])
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr


def test_the_models_are_those_of_the_settings_and_the_options(use: Callable[..., None]) -> None:
    use(MESH_EXTRACTOR_MODEL="large", MESH_CLASSIFIER_MODEL="classifier-frog")
    assert labels() == {"fast": "frog", "balanced": "frog", "accurate": "frog"}
    chosen = ("--classifier", "fast=classifier-ship", "--classifier", "night=classifier-ship:8010")
    assert labels(*chosen) == {"fast": "ship", "balanced": "frog", "accurate": "frog", "night": "ship"}
    assert len(classify(str(CAT))[1][0]["descriptors"]) == 50


def test_a_model_that_can_not_be_had_or_does_not_fit_is_a_sentence(use: Callable[..., None]) -> None:
    assert "has no model 'nowhere'" in refusal("--classifier", "night=nowhere")
    assert "is of kind extractor" in refusal("--classifier", "night=extractor")
    assert "is not understood" in refusal("--classifier", "night")
    wide = refusal("--classifier", "night=classifier-frog")
    assert wide == (
        "mesh: Got 20 descriptors, and classifier-frog@1.0.0 takes 50. "
        "Name a model that was trained on these: --classifier night=MODEL.\n"
    )
    use(MESH_EXTRACTOR_MODEL="classifier-frog")
    assert "is of kind classifier" in refusal()


def test_a_champion_of_mlflow_answers_here_too(use: Callable[..., None]) -> None:
    space = ModelStore(ROOT / "models").load("extractor").space
    with MemoryMlflow().running() as memory:
        registry = Registry(memory, "classifier-fast")
        registry.register(*small_models.classifier(favourite="deer", extractor=space))
        use(MLFLOW_TRACKING_URI=memory.url)
        chosen = ("--classifier", f"fast={registry.champion}")
        assert labels(*chosen) == {"fast": "deer", "balanced": "cat", "accurate": "cat"}
        memory.stop()
        assert refusal(*chosen) == f"mesh: MLflow on {memory.url} does not answer (NewConnectionError)\n"


def test_an_altered_model_is_a_sentence_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
