"""`make sbom` and `make audit`, with programs that do nothing but say how they were called."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from visionmesh.settings import ROOT

HERE, ELSEWHERE = "visionmesh/ingest-api:local", "grafana/grafana:13"

# Of the two images that compose names, one is there.
DOCKER = f"""
case "$*" in
    info) exit $DOCKER_INFO;;
    compose*) printf '%s\\n' {HERE} {ELSEWHERE} {HERE}; exit $DOCKER_COMPOSE;;
    "image inspect {HERE}") exit 0;;
    *) exit 1;;
esac
"""
CALLED = 'echo "$@" >> $(basename "$0").calls'


def make(
    target: str, directory: Path, programs: Mapping[str, str], **environment: str
) -> subprocess.CompletedProcess[str]:
    """programs: by name, what those do that the target calls."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "requirements/audit.txt"):
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    folder = directory / ".venv-audit/bin"
    folder.mkdir(parents=True)
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    (folder.parent / "installed").touch()
    return subprocess.run(
        ["make", "--silent", target],
        cwd=directory, env={"PATH": f"{folder}:{os.environ['PATH']}"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def sbom(directory: Path, *, info: int = 0, compose: int = 0) -> subprocess.CompletedProcess[str]:
    """info, compose: how Docker ends when it is asked whether it is there, and for the images' names."""
    programs = {"docker": DOCKER, "syft": CALLED, "cyclonedx-py": CALLED}
    return make("sbom", directory, programs, DOCKER_INFO=str(info), DOCKER_COMPOSE=str(compose))


def calls(directory: Path, program: str) -> list[str]:
    file = directory / f"{program}.calls"
    return file.read_text().splitlines() if file.exists() else []


def test_every_image_that_is_there_has_its_list_once(tmp_path: Path) -> None:
    ended = sbom(tmp_path)
    assert ended.returncode == 0, ended.stderr
    (call,) = calls(tmp_path, "syft")
    assert f"docker:{HERE}" in call
    assert call.endswith("cyclonedx-json=build/sbom/images/visionmesh_ingest-api_local.cdx.json")
    assert (tmp_path / "build/sbom/images").is_dir()
    assert ELSEWHERE in ended.stderr, "an image without a list is told of"
    assert HERE not in ended.stderr


def test_without_docker_the_locks_have_theirs_and_it_is_said_what_lacks(tmp_path: Path) -> None:
    ended = sbom(tmp_path, info=1)
    assert ended.returncode == 0, ended.stderr
    assert any("requirements/ingest-api.txt" in call for call in calls(tmp_path, "cyclonedx-py"))
    assert calls(tmp_path, "syft") == []
    assert "Docker does not answer" in ended.stderr


def test_it_fails_where_the_images_names_are_not_known(tmp_path: Path) -> None:
    assert sbom(tmp_path, compose=1).returncode != 0


def test_make_audit_fails_where_no_image_could_be_scanned(tmp_path: Path) -> None:
    programs = {"pip-audit": "exit 0", "trivy": "exit 0", "docker": "exit 1"}
    assert make("audit", tmp_path, programs).returncode != 0
