"""`mesh profile`: which process is meant, and a profile of a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from running_folder import runs_in
from visionmesh.cli import app

BUSY = """
def turning_round():
    print("begun", flush=True)
    while True:
        sum(range(1000))

turning_round()
"""


@pytest.fixture
def busy() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.kill()
    process.wait()
    process.stdout.close()


def mesh_in(directory: Path, pid: int) -> None:
    replica = {"service": "edge-publisher", "number": 1, "url": "", "pid": pid, "restarts": 0}
    runs_in(directory, {}, [replica])


@pytest.mark.parametrize("name", ["edge-publisher", "edge-publisher-1"])
def test_a_running_service_is_watched(tmp_path: Path, busy: int, name: str) -> None:
    mesh_in(tmp_path, busy)
    path = tmp_path / "profile.json"
    result = CliRunner().invoke(
        app, ["profile", name, "--seconds", "1", "--output", str(path), "--directory", str(tmp_path)]
    )
    if "with sudo" in result.output:
        pytest.skip("looking into processes is not allowed here")
    assert result.exit_code == 0, result.output
    profile = json.loads(path.read_text())
    assert "speedscope" in profile["$schema"]
    assert "turning_round" in {frame["name"] for frame in profile["shared"]["frames"]}


def test_what_does_not_run_is_told(tmp_path: Path) -> None:
    mesh_in(tmp_path, 1)
    result = CliRunner().invoke(app, ["profile", "qr-decoder", "--directory", str(tmp_path)])
    assert result.exit_code == 1
    assert "there are edge-publisher-1" in result.output


@pytest.mark.parametrize("arguments", [[], ["edge-publisher", "--pid", "1"]])
def test_one_process_is_named(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["profile", *arguments])
    assert result.exit_code == 2
    assert "Name a service, or a process" in result.output


def test_a_process_that_is_gone_is_told(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path = tmp_path / "profile.json"
    result = CliRunner().invoke(
        app, ["profile", "--pid", str(gone.pid), "--seconds", "1", "--output", str(path)]
    )
    assert result.exit_code == 1
    assert "could not watch it" in result.output
    assert not path.exists()


def test_a_profiler_that_does_not_end_is_stopped_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "py-spy"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    # The name in the package is the command's.
    module = import_module("visionmesh.cli.profile")
    monkeypatch.setattr(module, "_program", lambda: str(program))
    monkeypatch.setattr(module, "_GRACE_SECONDS", -0.9)
    result = CliRunner().invoke(app, ["profile", "--pid", "1", "--seconds", "1"])
    assert result.exit_code == 1
    assert "py-spy did not end" in result.output
