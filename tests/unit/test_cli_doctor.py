"""`mesh doctor`: what it finds wrong in a mesh that runs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from typer.testing import CliRunner

from visionmesh import mesh as supervisor
from visionmesh.cli import app
from visionmesh.settings import get_settings
from visionmesh.stack.valkey import ValkeyServer
from visionmesh.topics import PARTITIONS


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Commands write into the environment of their process."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _all_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the package, `doctor` is the command.
    monkeypatch.setattr(sys.modules["visionmesh.cli.doctor"], "_servers", lambda _: [])
    monkeypatch.setattr(supervisor, "why_not_ready", lambda _: None)


def look(directory: Path, environment: dict[str, str]) -> tuple[int, str]:
    """The exit status and what people read of a mesh without replicas."""
    state = {"pid": os.getpid(), "environment": environment, "replicas": []}
    supervisor.running_file(directory).write_text(json.dumps(state))
    get_settings.cache_clear()
    result = CliRunner().invoke(app, ["doctor", "--directory", str(directory)])
    get_settings.cache_clear()
    return result.exit_code, result.output


def doctor(directory: Path, service: str, replicas: int) -> tuple[int, list[dict[str, Any]]]:
    """The exit status, and the findings on the scale of the services."""
    replica = {"service": service, "url": "http://127.0.0.1:15001", "restarts": 0}
    state = {"pid": os.getpid(), "environment": {}, "replicas": [replica] * replicas}
    supervisor.running_file(directory).write_text(json.dumps(state))
    result = CliRunner().invoke(app, ["doctor", "--json", "--directory", str(directory)])
    findings = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(findings) >= replicas, result.output
    return result.exit_code, [one for one in findings if one["name"].startswith("scale of ")]


def test_more_replicas_than_partitions_are_a_finding(tmp_path: Path) -> None:
    status, (finding,) = doctor(tmp_path, "classifier-fast", PARTITIONS + 1)
    assert status == 1
    assert finding["name"] == "scale of classifier-fast"
    assert f"only {PARTITIONS} have work" in finding["problem"]
    assert finding["advice"] == f"--scale classifier-fast={PARTITIONS} at most"


@pytest.mark.parametrize(
    ("service", "replicas"), [("classifier-fast", PARTITIONS), ("ingest-api", PARTITIONS + 1)]
)
def test_replicas_that_all_have_work_are_none(tmp_path: Path, service: str, replicas: int) -> None:
    assert doctor(tmp_path, service, replicas) == (0, [])


@pytest.mark.parametrize(
    ("url", "address", "said"),
    [
        (None, "none", "MESH_CACHE_URL"),
        ("redis://:secret@127.0.0.1:1/0", "127.0.0.1:1", "work goes on without it"),
    ],
)
def test_a_cache_that_is_away_is_no_fault(tmp_path: Path, url: str | None, address: str, said: str) -> None:
    environment = {} if url is None else {"MESH_CACHE_URL": url}
    status, output = look(tmp_path, environment)
    assert status == 0
    assert f"note   cache: {address}\n" in output
    assert said in output
    assert "secret" not in output


def test_a_cache_that_answers_is_well(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "cache", None)
    server.start()
    try:
        status, output = look(tmp_path, {"MESH_CACHE_URL": f"{server.url}?socket_timeout=10"})
    finally:
        server.stop()
    assert status == 0
    assert f"well   cache: {server.address}\n" in output


def test_a_cache_whose_address_cannot_be_understood_is_a_fault(tmp_path: Path) -> None:
    status, output = look(tmp_path, {"MESH_CACHE_URL": "http://:secret@127.0.0.1:6379"})
    assert status == 1
    assert "do: correct MESH_CACHE_URL" in output
    assert "secret" not in output
