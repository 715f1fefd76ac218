"""A mesh with a folder of its own is found by every command that is told of the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import httpx
import pytest
from typer.testing import CliRunner, Result

from running_folder import runs_in
from visionmesh import settings
from visionmesh.cli import app
from visionmesh.settings import ROOT
from visionmesh.topics import dead_letter_topics

LETTERS = dead_letter_topics()[0]
COMMANDS = (
    ["topics"],
    ["topics", "create"],
    ["topics", "tail", LETTERS],
    ["dlq", "list"],
    ["dlq", "show", LETTERS],
    ["dlq", "replay", LETTERS, "--yes"],
    ["doctor"],
)


class AskedError(Exception):
    """A command asked for its settings; the text is the broker they name."""


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Commands write into the environment of their process."""
    with mock.patch.dict(os.environ):
        for name in ("MESH_DIRECTORY", "MESH_KAFKA_BOOTSTRAP"):
            os.environ.pop(name, None)
        yield


@pytest.fixture
def _asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_settings() -> None:
        raise AskedError(os.environ.get("MESH_KAFKA_BOOTSTRAP"))

    monkeypatch.setattr(settings, "get_settings", get_settings)


def with_a_mesh(directory: Path, broker: str = "127.0.0.1:15001") -> Path:
    """A folder in which a mesh runs."""
    directory.mkdir(exist_ok=True)
    intake = {"service": "ingest-api", "url": "http://127.0.0.1:15002", "restarts": 0}
    runs_in(directory, {"MESH_KAFKA_BOOTSTRAP": broker, "MESH_S3_SECRET_KEY": "hunter2"}, [intake])
    return directory


def mesh(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.mark.usefixtures("_asked")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_by_the_option(command: list[str], tmp_path: Path) -> None:
    result = mesh(*command, "--directory", str(with_a_mesh(tmp_path)))
    assert repr(result.exception) == "AskedError('127.0.0.1:15001')", result.output


@pytest.mark.usefixtures("_asked")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_by_the_environment(command: list[str], tmp_path: Path) -> None:
    os.environ["MESH_DIRECTORY"] = str(with_a_mesh(tmp_path))
    assert repr(mesh(*command).exception) == "AskedError('127.0.0.1:15001')"


@pytest.mark.usefixtures("_asked")
def test_the_option_of_a_group_is_that_of_its_commands_and_yields_to_theirs(tmp_path: Path) -> None:
    one, two = with_a_mesh(tmp_path / "one"), with_a_mesh(tmp_path / "two", "127.0.0.1:16001")
    os.environ["MESH_DIRECTORY"] = str(two)
    assert (
        repr(mesh("topics", "--directory", str(one), "create").exception) == "AskedError('127.0.0.1:15001')"
    )
    os.environ.pop("MESH_KAFKA_BOOTSTRAP")
    result = mesh("topics", "--directory", str(one), "create", "--directory", str(two))
    assert repr(result.exception) == "AskedError('127.0.0.1:16001')"


@pytest.mark.usefixtures("_asked")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_folder_in_which_no_mesh_runs_is_not_taken_for_another_mesh(
    command: list[str], tmp_path: Path
) -> None:
    result = mesh(*command, "--directory", str(tmp_path))
    assert result.exit_code == 1
    assert f"No mesh runs in {tmp_path}" in result.output


@pytest.mark.parametrize("how", ["option", "environment"])
def test_upload_goes_to_its_ingest_api(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(202, json={"image_id": "one"})

    monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=httpx.MockTransport(answer)))
    with_a_mesh(tmp_path)
    if how == "environment":
        os.environ["MESH_DIRECTORY"] = str(tmp_path)
    options = ["--directory", str(tmp_path)] if how == "option" else []
    result = mesh("upload", str(ROOT / "samples" / "cat.jpg"), *options)
    assert asked == ["http://127.0.0.1:15002/upload"], result.output


def test_settings_prints_what_it_has_and_no_secret(tmp_path: Path) -> None:
    printed = mesh("settings", "--directory", str(with_a_mesh(tmp_path))).stdout
    assert "127.0.0.1:15001" in printed
    assert "hunter2" not in printed
