"""The mesh in containers, with its own ports and passwords, is found by every command told to look there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner, Result

from docker_double import put_in_front
from running_folder import runs_in
from visionmesh import settings
from visionmesh.cli import app, console
from visionmesh.settings import Settings
from visionmesh.topics import dead_letter_topics

LETTERS = dead_letter_topics()[0]
COMMANDS = (
    ["topics", "--compose"],
    ["topics", "create", "--compose"],
    ["topics", "tail", LETTERS, "--compose"],
    ["topics", "--compose", "tail", LETTERS],
    ["dlq", "list", "--compose"],
    ["dlq", "show", LETTERS, "--compose"],
    ["dlq", "replay", LETTERS, "--yes", "--compose"],
    ["reconcile", "--compose"],
    ["autoscale", "--compose"],
    ["models", "compare", "--compose"],
)
every_command = pytest.mark.parametrize("command", COMMANDS, ids=" ".join)


class AskedError(Exception):
    """A command asked for its settings, which are those of the process at that moment."""

    def __init__(self) -> None:
        self.settings = Settings()


@pytest.fixture(autouse=True)
def _in_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A mesh in containers, and another one that `mesh up` runs in the usual folder."""

    def get_settings() -> Settings:
        raise AskedError

    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("MESH_")]:
            os.environ.pop(name)
        put_in_front(tmp_path, monkeypatch)
        monkeypatch.setattr(settings, "get_settings", get_settings)
        monkeypatch.setattr(console, "DIRECTORY", tmp_path)
        runs_in(tmp_path, {"MESH_KAFKA_BOOTSTRAP": "up:1"})
        os.environ["MESH_DIRECTORY"] = str(tmp_path)
        yield


def mesh(command: list[str]) -> Result:
    return CliRunner().invoke(app, command)


def asked(command: list[str]) -> Settings:
    """The settings that a command works with."""
    result = mesh(command)
    assert isinstance(result.exception, AskedError), result.output
    return result.exception.settings


@every_command
def test_where_compose_publishes_the_servers_with_their_passwords(command: list[str]) -> None:
    found = asked(command)
    assert found.kafka_bootstrap == "127.0.0.1:19"
    assert found.s3_endpoint == "127.0.0.1:20"
    assert found.s3_secret_key.get_secret_value() == "s3-secret"
    assert found.postgres_dsn.get_secret_value() == "postgresql://mesh:pg-secret@127.0.0.1:21/mesh"
    assert found.extra_classifiers == ("night",)


@every_command
def test_not_unless_told_to(command: list[str]) -> None:
    assert asked([word for word in command if word != "--compose"]).kafka_bootstrap == "up:1"


def test_what_the_environment_says_goes_before() -> None:
    os.environ["MESH_KAFKA_BOOTSTRAP"] = "elsewhere:1"
    found = asked(["reconcile", "--compose"])
    assert (found.kafka_bootstrap, found.s3_endpoint) == ("elsewhere:1", "127.0.0.1:20")


def test_that_docker_does_not_answer_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bin" / "docker").write_text("#!/bin/sh\necho POSTGRES_PASSWORD is missing >&2; exit 1\n")
    result = mesh(["reconcile", "--compose"])
    assert result.exit_code == 1
    assert result.output == (
        "mesh: `docker compose config --format json` failed: POSTGRES_PASSWORD is missing\n"
    )
