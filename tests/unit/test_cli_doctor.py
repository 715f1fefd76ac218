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

from docker_double import DESCRIBED, put_in_front
from running_folder import runs_in
from visionmesh import mesh as supervisor
from visionmesh.cli import app, prerequisites
from visionmesh.cli.prerequisites import Engine, Prerequisite
from visionmesh.compose import ComposeProject
from visionmesh.settings import Settings, get_settings
from visionmesh.stack.valkey import ValkeyServer
from visionmesh.topics import PARTITIONS

CONTAINERS = ComposeProject.containers


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Commands write into the environment of their process."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _all_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the package, `doctor` is the command.
    monkeypatch.setattr(sys.modules["visionmesh.cli.doctor"], "_servers", lambda _: [])
    monkeypatch.setattr(prerequisites, "docker", lambda: Prerequisite("docker", "29.0, compose 5.0"))
    monkeypatch.setattr(prerequisites, "engine", lambda: None)
    monkeypatch.setattr(prerequisites, "memory", lambda _: Prerequisite("memory", "16 GB in all"))
    monkeypatch.setattr(prerequisites, "disk", lambda _: Prerequisite("disk", "100 GB free"))
    monkeypatch.setattr(ComposeProject, "containers", lambda _: [])
    monkeypatch.setattr(supervisor, "why_not_ready", lambda _: None)


def look(directory: Path, environment: dict[str, str]) -> tuple[int, str]:
    """The exit status and what people read of a mesh without replicas."""
    runs_in(directory, environment)
    get_settings.cache_clear()
    result = CliRunner().invoke(app, ["doctor", "--directory", str(directory)])
    get_settings.cache_clear()
    return result.exit_code, result.output


def doctor(directory: Path, service: str, replicas: int) -> tuple[int, list[dict[str, Any]]]:
    """The exit status, and the findings on the scale of the services."""
    replica = {"service": service, "url": "http://127.0.0.1:15001", "restarts": 0}
    runs_in(directory, {}, [replica] * replicas)
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


def findings(directory: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status and the findings of a mesh that does not run in a folder, by name."""
    get_settings.cache_clear()
    result = CliRunner().invoke(app, ["doctor", "--json", "--directory", str(directory), *options])
    get_settings.cache_clear()
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, {one["name"]: one for one in map(json.loads, result.stdout.splitlines())}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The usual folder, in which nothing runs."""
    for name in ("visionmesh.cli.console", "visionmesh.cli.doctor"):
        monkeypatch.setattr(sys.modules[name], "DIRECTORY", tmp_path)
    return tmp_path


LITTLE = Prerequisite("memory", "4.0 GB in all", "less than 8 GB", "more of it")


def test_too_little_memory_is_a_fault_where_containers_are_to_run(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prerequisites, "memory", lambda _: LITTLE)
    status, found = findings(elsewhere)
    assert status == 1
    assert (found["memory"]["problem"], found["memory"]["advice"]) == ("less than 8 GB", "more of it")
    assert found["docker"]["problem"] is found["disk"]["problem"] is None


def test_too_little_memory_is_a_note_where_no_containers_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prerequisites, "memory", lambda _: LITTLE)
    status, output = look(tmp_path, {})
    assert status == 0
    assert "note   memory: 4.0 GB in all\n       less than 8 GB; for containers: more of it" in output


# In containers


def container(service: str, **changed: Any) -> dict[str, Any]:
    """As `docker compose ps --format json` tells of one that is well."""
    well = {"Service": service, "Name": f"mesh-{service}-1", "State": "running", "Health": "healthy"}
    return well | {"ExitCode": 0} | changed


@pytest.fixture
def containers(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a double of Docker says of containers; all are well."""
    monkeypatch.setattr(ComposeProject, "containers", CONTAINERS)
    put_in_front(elsewhere, monkeypatch)
    return [
        container("migrate", State="exited", Health="") if service == "migrate" else container(service)
        for service in DESCRIBED
    ]


def in_containers(directory: Path, told: list[dict[str, Any]]) -> tuple[int, dict[str, dict[str, Any]]]:
    (directory / "containers").write_text("\n".join(map(json.dumps, told)))
    return findings(directory)


def test_containers_that_are_well_are_no_fault_and_no_port_is_asked(
    elsewhere: Path, containers: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "why_not_ready", lambda url: pytest.fail(f"{url} was asked"))
    seen: list[Settings] = []
    monkeypatch.setattr(sys.modules["visionmesh.cli.doctor"], "_servers", lambda s: seen.append(s) or [])
    status, found = in_containers(elsewhere, containers)
    assert status == 0
    assert found["ingest-api"]["address"] == "mesh-ingest-api-1"
    # The servers are asked where compose publishes them, with the owner's accounts.
    (settings,) = seen
    assert settings.kafka_bootstrap == "127.0.0.1:19"
    assert settings.s3_endpoint == "127.0.0.1:20"
    assert settings.s3_secret_key.get_secret_value() == "s3-secret"
    assert settings.postgres_dsn.get_secret_value() == "postgresql://mesh:pg-secret@127.0.0.1:21/mesh"
    assert settings.cache_url is not None
    assert settings.cache_url.get_secret_value() == "redis://:cache-secret@127.0.0.1:22/0"
    assert settings.extra_classifiers == ("night",)
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (container("ingest-api", Health="unhealthy"), 'it is unhealthy: {"checks": {"database": "away"}}'),
        (container("kafka", State="exited", Health="", ExitCode=137), "it is exited, status 137"),
        (container("redis", State="exited", Health=""), "it is exited, status 0"),
        (container("migrate", State="exited", Health="", ExitCode=1), "it is exited, status 1"),
        (container("migrate", Health=""), "it is not done yet"),
    ],
)
def test_a_container_that_is_not_well_is_a_fault(
    elsewhere: Path, containers: list[dict[str, Any]], changed: dict[str, Any], said: str
) -> None:
    told = [changed if one["Service"] == changed["Service"] else one for one in containers]
    status, found = in_containers(elsewhere, told)
    assert status == 1
    assert [one["problem"] for one in found.values() if one["problem"]] == [said]
    assert f"docker compose logs --tail 50 {changed['Service']}" in found[changed["Service"]]["advice"]


@pytest.mark.parametrize(("service", "status"), [("ingest-api", 1), ("grafana", 0), ("migrate", 0)])
def test_a_service_without_a_container_is_a_fault_unless_it_is_over_or_for_people(
    elsewhere: Path, containers: list[dict[str, Any]], service: str, status: int
) -> None:
    described = DESCRIBED | {"grafana": {"restart": "unless-stopped"}}
    (elsewhere / "config").write_text(json.dumps({"services": described}))
    told = [*containers, container("grafana")]
    ended, found = in_containers(elsewhere, [one for one in told if one["Service"] != service])
    assert ended == status
    assert found.get(service, {}).get("address") == (None if service == "migrate" else "no container")


def test_compose_before_2_21_tells_of_containers_in_one_list(
    elsewhere: Path, containers: list[dict[str, Any]]
) -> None:
    (elsewhere / "containers").write_text(json.dumps(containers))
    status, found = findings(elsewhere)
    assert (status, found["kafka"]["address"]) == (0, "mesh-kafka-1")


def test_more_containers_than_partitions_are_a_finding(
    elsewhere: Path, containers: list[dict[str, Any]]
) -> None:
    there = {"feature-extractor": PARTITIONS + 1, "ingest-api": PARTITIONS + 1, "kafka": 1}
    told = containers + [container(name) for name, count in there.items() for _ in range(count - 1)]
    told.append(container("kafka", State="exited", Health=""))
    status, found = in_containers(elsewhere, told)
    assert status == 1
    assert [name for name in found if name.startswith("scale of")] == ["scale of feature-extractor"]


def test_containers_can_be_asked_for_beside_what_runs_in_a_folder(
    elsewhere: Path, containers: list[dict[str, Any]]
) -> None:
    (elsewhere / "containers").write_text("\n".join(map(json.dumps, containers)))
    runs_in(elsewhere, {"MESH_KAFKA_BOOTSTRAP": "elsewhere:1"})
    _, found = findings(elsewhere)
    assert "kafka" not in found
    _, found = findings(elsewhere, "--compose")
    assert found["kafka"]["address"] == "mesh-kafka-1"


def test_containers_that_were_asked_for_and_cannot_be_is_told(
    elsewhere: Path, containers: list[dict[str, Any]]
) -> None:
    (elsewhere / "bin" / "docker").write_text("#!/bin/sh\necho POSTGRES_PASSWORD is missing >&2; exit 1\n")
    result = CliRunner().invoke(app, ["doctor", "--compose"])
    assert result.exit_code == 1
    assert "`docker compose ps --all --format json` failed: POSTGRES_PASSWORD is missing" in result.output


# The machine itself


def test_memory_and_disk_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert prerequisites.memory().found.endswith("GB in all")
    assert prerequisites.disk(tmp_path / "not" / "there").name == f"disk of {tmp_path}"
    monkeypatch.setattr(prerequisites, "MEMORY_BYTES", 2**62)
    monkeypatch.setattr(prerequisites, "DISK_BYTES", 2**62)
    for found in (prerequisites.memory(), prerequisites.disk(tmp_path)):
        assert found.lack is not None
        assert found.advice is not None


def test_a_container_has_the_memory_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(prerequisites, "_CGROUP_LIMIT", limit)
    limit.write_text("1000000000\n")
    assert prerequisites.memory().found == "1.0 GB in all"
    limit.write_text("max\n")
    assert prerequisites.memory().found != "1.0 GB in all"


@pytest.mark.parametrize(
    ("program", "lack"),
    [
        (None, "there is no `docker` command"),
        ("echo 29.0", None),
        ("echo Cannot connect to the Docker daemon >&2; exit 1", "Cannot connect to the Docker daemon"),
        ('test "$1" = version && echo 29.0 || { echo no such command >&2; exit 1; }', "the compose plugin"),
    ],
)
def test_docker_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, lack: str | None
) -> None:
    monkeypatch.undo()
    if program is not None:
        command = tmp_path / "docker"
        command.write_text(f"#!/bin/sh\n{program}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = prerequisites.docker()
    if lack is None:
        assert (found.found, found.lack) == ("29.0, compose 29.0", None)
    else:
        assert lack in str(found.lack)


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("4000000000 /var/lib/docker data", Engine(4_000_000_000, Path("/var/lib/docker data"))),
        ("Cannot connect to the Docker daemon", None),
    ],
)
def test_what_docker_has_is_asked_of_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, found: Engine | None
) -> None:
    monkeypatch.undo()
    command = tmp_path / "docker"
    command.write_text(f"#!/bin/sh\necho {told}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prerequisites.engine() == found
    if found is not None:
        assert prerequisites.memory(found).found == "4.0 GB in all"
