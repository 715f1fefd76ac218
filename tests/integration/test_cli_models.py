"""`mesh models` beside an MLflow in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import small_models
from visionmesh.cli import app
from visionmesh.settings import get_settings
from visionmesh.testing.mlflow import MemoryMlflow


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    table, model = small_models.classifier()
    models = small_models.write_models(
        tmp_path / "models", {"classifier-fast": (table | {"metrics": {"top1": 0.9}}, model)}
    )
    monkeypatch.setenv("MESH_MODELS_DIR", str(models))
    monkeypatch.setenv("MESH_BUILT_MODELS_DIR", str(tmp_path / "built"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryMlflow]:
    with MemoryMlflow().running() as memory:
        for name in ("classifier-fast", "classifier-night"):
            memory.ask("POST", "registered-models/create", {"name": name})
            for _ in range(2):
                run = memory.ask("POST", "runs/create", {})["run"]["info"]["run_id"]
                memory.ask("POST", "model-versions/create", {"name": name, "source": "", "run_id": run})
        monkeypatch.setenv("MLFLOW_TRACKING_URI", memory.url)
        get_settings.cache_clear()
        yield memory


def mesh(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["models", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_without_mlflow_the_table_is_listed() -> None:
    rows = [json.loads(line) for line in mesh("list", "--json").splitlines()]
    assert [(row["model"], row["version"], row["from"]) for row in rows] == [
        ("classifier-fast", "1.0.0", "models.toml")
    ]
    assert "90.00%" in mesh("list")
    assert "MLFLOW_TRACKING_URI" in mesh("promote", "classifier-fast", "1", status=1)


def test_a_model_that_was_built_here_says_so(tmp_path: Path) -> None:
    table, model = small_models.classifier()
    came = {"classifier-fast": (table | {"metrics": {"top1": 0.9}}, model)}
    # One that is in both tables is the one that came with the mesh.
    small_models.write_models(tmp_path / "built", came | {"mine": small_models.classifier(favourite="dog")})
    rows = [json.loads(line) for line in mesh("list", "--json").splitlines()]
    assert {row["model"]: row["from"] for row in rows} == {
        "classifier-fast": "models.toml",
        "mine": "built here",
    }


def test_registered_versions_and_aliases_are_listed(mlflow: MemoryMlflow) -> None:
    assert mesh("promote", "classifier-fast", "2") == (
        "models:/classifier-fast@champion is version 2 from now on\n"
    )
    mesh("promote", "classifier-fast", "1", "--alias", "night")
    rows = [json.loads(line) for line in mesh("list", "--json").splitlines()]
    assert [(row["model"], row["version"], row["from"]) for row in rows] == [
        ("classifier-fast", "1.0.0", "models.toml"),
        ("classifier-fast", "2", "MLflow @champion"),
        ("classifier-fast", "1", "MLflow @night"),
        ("classifier-night", "2", "MLflow"),
        ("classifier-night", "1", "MLflow"),
    ]


def test_a_model_is_shown_with_its_table_and_its_versions(mlflow: MemoryMlflow) -> None:
    mesh("promote", "classifier-fast", "2")
    shown = mesh("show", "classifier-fast")
    assert "family: favourite\n" in shown
    assert "metrics.top1: 0.9\n" in shown
    assert "labels: airplane, automobile" in shown
    assert "version 2 in MLflow: @champion, of 20" in shown
    assert "version 1 in MLflow: without an alias" in shown
    found = json.loads(mesh("show", "classifier-night", "--json"))
    assert found["table"] is None
    assert [each["version"] for each in found["versions"]] == ["2", "1"]


def test_what_is_not_there_is_said() -> None:
    assert "no model 'nowhere'" in mesh("show", "nowhere", status=1)


def test_mlflow_away_is_a_sentence_after_what_is_known_without_it(mlflow: MemoryMlflow) -> None:
    mlflow.stop()
    away = f"mesh: MLflow on {mlflow.url} does not answer (NewConnectionError)\n"
    for command in (["show", "other"], ["promote", "classifier-fast", "1"]):
        assert mesh(*command, status=1) == away
    row, said = mesh("list", "--json", status=1).splitlines(keepends=True)
    assert (json.loads(row)["model"], said) == ("classifier-fast", away)
    shown = mesh("show", "classifier-fast", status=1)
    assert shown.startswith("version: 1.0.0\n")
    assert shown.endswith(away)


def test_what_mlflow_does_not_have_is_a_sentence(mlflow: MemoryMlflow) -> None:
    assert "version=9) not found" in mesh("promote", "classifier-fast", "9", status=1)
    assert "no model 'nowhere'" in mesh("show", "nowhere", status=1)


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        ("nowhere", "There is no classifier 'nowhere' in models.toml; there are classifier-fast."),
        ("models:/night@champion", "Set MLFLOW_TRACKING_URI to the address of the MLflow server."),
    ],
)
def test_a_mesh_whose_models_can_not_be_had_does_not_start(tmp_path: Path, model: str, fault: str) -> None:
    where = ["--directory", str(tmp_path / "mesh"), "--ports", "free"]
    models = ["--shadow", "feature-extractor=classifier-fast", "--classifier", f"night={model}"]
    result = CliRunner().invoke(app, ["up", *where, *models])
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "mesh: feature-extractor works without a shadow: "
        "There is no extractor 'classifier-fast' in models.toml; there are none.",
        f"mesh: classifier-night has no model: {fault}",
    ]


def test_an_address_that_is_none_is_told_by_mesh_up(tmp_path: Path, mlflow: MemoryMlflow) -> None:
    where = ["--directory", str(tmp_path / "mesh"), "--ports", "free"]
    result = CliRunner().invoke(app, ["up", *where, "--classifier", "night=models:/night"])
    assert (result.exit_code, "is no address of a model in MLflow" in result.output) == (1, True)


def test_a_mesh_whose_classifiers_would_refuse_the_extractor_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {
        "large": small_models.extractor(version="3"),
        "classifier-fast-large": small_models.classifier(extractor="large@3"),
    }
    small_models.write_models(tmp_path / "built", models)
    monkeypatch.setenv("MESH_EXTRACTOR_MODEL", "large")
    get_settings.cache_clear()
    where = [
        "--directory",
        str(tmp_path / "mesh"),
        "--ports",
        "free",
        "--classifier",
        "night=classifier-fast",
    ]
    result = CliRunner().invoke(app, ["up", *where, "--classifier", "fast=classifier-fast-large"])
    assert result.exit_code == 1
    assert result.output == (
        "mesh: classifier-night would refuse every picture: classifier-fast was trained on descriptors of "
        "extractor@1.0.0, and large gives those of large@3. Name a model that was trained on these: "
        "--classifier night=MODEL.\n"
    )


def test_a_mesh_without_a_table_of_models_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_MODELS_DIR", str(tmp_path))
    get_settings.cache_clear()
    result = CliRunner().invoke(app, ["up", "--directory", str(tmp_path / "mesh"), "--ports", "free"])
    assert result.exit_code == 1
    assert result.output.startswith(f"mesh: There is no {tmp_path}/models.toml")
