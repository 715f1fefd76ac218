"""Names that people copy out of a table stand in it whole, however narrow the terminal."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from visionmesh import kafka
from visionmesh.cli import app, main
from visionmesh.settings import Settings, get_settings
from visionmesh.topics import dead_letter_topics
from visionmesh.worker import dead_letters


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_every_variable_of_the_settings() -> None:
    printed = CliRunner().invoke(app, ["settings"]).stdout
    ours = {name for name in Settings.model_fields if not name.startswith("mlflow_")}
    assert all(f"MESH_{name.upper()} " in printed for name in ours)
    # By the names that every client of MLflow reads.
    assert all(f" {name.upper()} " in printed for name in Settings.model_fields.keys() - ours)
    assert "MESH_MLFLOW" not in printed


def test_no_setting_shows_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ["MLFLOW_TRACKING_PASSWORD", "MESH_S3_SECRET_KEY", "MESH_POSTGRES_DSN", "MESH_CACHE_URL"]
    for name in secrets:
        monkeypatch.setenv(name, "redis://:geheim@127.0.0.1:1/0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mesh:geheim@127.0.0.1:5000")
    printed = CliRunner().invoke(app, ["settings"]).stdout
    assert "now: " in printed
    assert "geheim" not in printed


def test_a_setting_that_does_not_parse_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESH_EXTRA_CLASSIFIERS", "night")
    monkeypatch.setattr(sys, "argv", ["mesh", "models", "list"])
    get_settings.cache_clear()
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == (
        'mesh: MESH_EXTRA_CLASSIFIERS: Value error, has to be a list in JSON, for example ["night"]\n'
    )


def test_lists_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_EXTRA_CLASSIFIERS", '["night", "day"]')
    monkeypatch.setenv("MESH_S3_ALLOWED_BUCKETS", '["raw-images", "other"]')
    assert Settings().extra_classifiers == ("night", "day")
    assert Settings().s3_allowed_buckets == ("raw-images", "other")


def test_every_dead_letter_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "partition_offsets", lambda *_: [])
    monkeypatch.setattr(dead_letters, "read_dead_letters", lambda *_: [])
    for command in (["topics"], ["dlq", "list"]):
        printed = CliRunner().invoke(app, command).stdout
        assert all(f" {name} " in printed for name in dead_letter_topics()), command


def test_a_table_in_a_file_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    printed = CliRunner().invoke(app, ["settings"]).stdout
    assert "file of the API keys that are let in, which `mesh keys` writes" in printed
