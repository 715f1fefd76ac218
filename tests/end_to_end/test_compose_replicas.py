"""Replicas that Docker runs are counted, changed and replaced; on a service that is up in a second."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from visionmesh.autoscale import ScaleError
from visionmesh.mesh import Service
from visionmesh.scalers import ComposeReplicas

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

SERVICES = (Service("worker", "stand_in", None),)

# One of the images of the mesh's own compose file.
COMPOSE = """
name: {name}
services:
  worker: &worker
    image: valkey/valkey:9.0.4
    command: [valkey-server, --save, "", --port, "${{PORT_INSIDE:-6379}}"]
    healthcheck:
      test: [CMD, valkey-cli, ping]
      interval: 1s
      retries: 5
  neighbour: *worker
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "compose.yml").write_text(COMPOSE.format(name=f"replicas-{uuid4().hex[:8]}"))
    docker(tmp_path, "compose", "up", "--detach", "--wait")
    yield tmp_path
    docker(tmp_path, "compose", "down", "--timeout", "1")


def docker(folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["docker", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_containers_come_go_and_are_replaced(folder: Path) -> None:
    replicas = ComposeReplicas(folder, SERVICES)
    assert replicas.replicas() == {"worker": 1, "neighbour": 1}
    (first,) = docker(folder, "compose", "ps", "--quiet", "worker")
    (neighbour,) = docker(folder, "compose", "ps", "--quiet", "neighbour")
    replicas.scale("worker", 2)
    two = docker(folder, "compose", "ps", "--quiet", "worker")
    assert len(two) == 2
    assert first in two
    replicas.restart("worker")
    renewed = docker(folder, "compose", "ps", "--quiet", "worker")
    assert len(renewed) == 2
    assert not set(two) & set(renewed)
    replicas.scale("worker", 1)
    assert replicas.replicas() == {"worker": 1, "neighbour": 1}
    assert docker(folder, "compose", "ps", "--quiet", "neighbour") == [neighbour]


def test_a_new_version_that_does_not_get_healthy_replaces_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = docker(folder, "compose", "ps", "--quiet", "worker")
    # It listens where its own health check does not look.
    monkeypatch.setenv("PORT_INSIDE", "6380")
    with pytest.raises(ScaleError):
        ComposeReplicas(folder, SERVICES).restart("worker")
    assert docker(folder, "compose", "ps", "--all", "--quiet", "worker") == before


def test_a_killed_replica_of_before_is_not_taken_for_a_new_one_and_a_run_beside_them_goes_on(
    folder: Path,
) -> None:
    replicas = ComposeReplicas(folder, SERVICES)
    replicas.scale("worker", 2)
    before = docker(folder, "compose", "ps", "--quiet", "worker")
    docker(folder, "kill", before[0])
    (beside,) = docker(folder, "compose", "run", "--detach", "--no-TTY", "worker", "sleep", "600")
    try:
        replicas.restart("worker")
        assert not set(before) & set(docker(folder, "compose", "ps", "--all", "--quiet", "worker"))
        assert replicas.replicas()["worker"] == 1
        assert docker(folder, "inspect", "--format", "{{.State.Status}}", beside) == ["running"]
    finally:
        docker(folder, "rm", "--force", beside)
