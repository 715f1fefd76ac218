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
