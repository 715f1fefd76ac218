"""`mesh models build`: what the training environment is asked for, and what is said when it can't be."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from visionmesh.cli import app
from visionmesh.settings import ROOT, get_settings

# In the place of an interpreter with TensorFlow: writes down how it was called.
INTERPRETER = """\
#!{python}
import json, os, sys
print("loss: 0.5", flush=True)
called = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "path": os.environ["PYTHONPATH"]}}
json.dump(called, open({calls!r}, "w"))
{end}
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MESH_BUILT_MODELS_DIR", str(tmp_path / "built"))
    monkeypatch.chdir(tmp_path)
    get_settings.cache_clear()
    yield interpreter(tmp_path, monkeypatch, end="")
    get_settings.cache_clear()


def interpreter(folder: Path, monkeypatch: pytest.MonkeyPatch, *, end: str) -> Path:
    path, called = folder / "python", folder / "called.json"
    path.write_text(INTERPRETER.format(python=sys.executable, calls=str(called), end=end))
    path.chmod(0o755)
    monkeypatch.setenv("MESH_TRAIN_PYTHON", str(path))
    return called


def build(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", "build", *arguments])


def options(calls: Path) -> dict[str, str]:
    found: dict[str, Any] = json.loads(calls.read_text())
    assert found["arguments"][:2] == ["-m", "training.resnet50"]
    return dict(argument.split("=", 1) for argument in found["arguments"][2:] if "=" in argument)


def test_the_usual_build_writes_where_services_look(calls: Path, tmp_path: Path) -> None:
    result = build("resnet50-pca")
    assert result.exit_code == 0, result.output
    assert options(calls) == {
        "--into": str(tmp_path / "built"),
        "--weights": "imagenet",
        "--fine-tune": "0",
        "--side": "224",
        "--descriptors": "20",
    }
    assert "MESH_EXTRACTOR_MODEL=resnet50-pca mesh up" in result.stdout
    for classifier in ("fast", "balanced", "accurate"):
        assert f"--classifier {classifier}=classifier-{classifier}-resnet50-pca" in result.stdout
        assert f"MESH_CLASSIFIER_MODEL=classifier-{classifier}-resnet50-pca" in result.stdout
    assert "MESH_BUILT_MODELS_DIR" not in result.stdout


def test_every_option_reaches_the_training_and_paths_stay_the_callers(calls: Path, tmp_path: Path) -> None:
    chosen = {
        "--data": "pictures.npz",
        "--weights": "net.keras",
        "--origin": "a net of mine",
        "--fine-tune": "2",
        "--side": "64",
        "--descriptors": "10",
        "--limit": "500",
        "--seed": "7",
    }
    given = [word for pair in chosen.items() for word in pair]
    for name in ("--data", "--weights"):
        Path(chosen[name]).touch()
    result = build("resnet50-pca", *given, "--into", "else where", "--int8")
    assert result.exit_code == 0, result.output
    assert options(calls) == chosen | {"--into": str(tmp_path / "else where")}
    call = json.loads(calls.read_text())
    assert "--int8" in call["arguments"]
    assert call["folder"] == str(tmp_path)
    assert call["path"].split(os.pathsep) == [str(ROOT / name) for name in ("shared", "services", "models")]
    assert f"MESH_BUILT_MODELS_DIR='{tmp_path / 'else where'}'" in result.stdout


def test_the_services_read_the_command_as_it_is_printed(calls: Path) -> None:
    from visionmesh.mesh import parse_services

    words = build("resnet50-pca").stdout.replace("\\\n", " ").split()
    given = [words[at + 1] for at, word in enumerate(words) if word == "--classifier"]
    models = {service.environment.get("MESH_CLASSIFIER_MODEL") for service in parse_services(given)}
    assert {f"classifier-{name}-resnet50-pca" for name in ("fast", "balanced", "accurate")} <= models


def test_a_failed_training_is_no_model(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter(tmp_path, monkeypatch, end="sys.exit(3)")
    result = build("resnet50-pca")
    assert result.exit_code == 3
    assert "resnet50-pca was not built" in result.output
    assert "is built" not in result.output


def test_a_killed_training_is_told_apart(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter(tmp_path, monkeypatch, end="os.kill(os.getpid(), 9)")
    result = build("resnet50-pca")
    assert result.exit_code == 1
    assert "SIGKILL" in result.output


def test_without_an_environment_it_says_how_to_make_one(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_TRAIN_PYTHON", str(tmp_path / "gone"))
    result = build("resnet50-pca")
    assert result.exit_code == 1
    assert str(tmp_path / "gone") in result.output
    assert "make .venv-train/installed" in result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_no_program_is_a_sentence(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text"
    text.touch()
    monkeypatch.setenv("MESH_TRAIN_PYTHON", str(text))
    result = build("resnet50-pca")
    assert result.exit_code == 1
    assert "can't be run" in result.output


@pytest.mark.parametrize("option", ["--data", "--weights"])
def test_a_file_that_is_not_there_is_found_out_at_once(calls: Path, option: str) -> None:
    result = build("resnet50-pca", option, "gone.npz")
    assert result.exit_code == 2
    assert "gone.npz" in result.output
    assert not calls.exists()


def test_an_unknown_model_names_those_there_are(calls: Path) -> None:
    result = build("resnet18")
    assert result.exit_code == 2
    assert "resnet50-pca" in result.output
    assert not calls.exists()
