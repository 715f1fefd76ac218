"""The mesh in containers as a project of its own, beside whatever runs on this machine.

It has secrets and infrastructure ports of its own; the gateway takes the seeds' ports on MESH_PUBLISH_ADDRESS
(127.0.0.1; 127.0.0.2 where those are taken). Images that neither lie here nor can be pulled are left out when
only people look at them: Grafana and Kafka UI.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx
import yaml

from visionmesh.accounts import ACCOUNTS
from visionmesh.compose import ComposeError
from visionmesh.stack.ports import free_port

ROOT: Final = Path(__file__).parents[1]
ADDRESS: Final = os.environ.get("MESH_PUBLISH_ADDRESS", "127.0.0.1")
FOR_PEOPLE_ONLY: Final = ("grafana", "kafka-ui")
SECRETS: Final = (
    "MINIO_ROOT_PASSWORD",
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "GRAFANA_ADMIN_PASSWORD",
    "KAFKA_UI_PASSWORD",
    "GRAFANA_POSTGRES_PASSWORD",
    *(account.variable for account in ACCOUNTS),
)
PORTS: Final = (
    "KAFKA_PORT",
    "MINIO_PORT",
    "MINIO_CONSOLE_PORT",
    "POSTGRES_PORT",
    "REDIS_PORT",
    "PROMETHEUS_PORT",
    "GRAFANA_PORT",
    "KAFKA_UI_PORT",
)


@dataclass(frozen=True)
class ComposeMesh:
    """A compose project. `values` is what its .env says, `absent` which services have no image here."""

    project: str
    env_file: Path
    values: dict[str, str]
    absent: tuple[str, ...]

    def compose(self, *arguments: str) -> str:
        """Output of `docker compose …`. Raises ComposeError."""
        done = subprocess.run(
            ["docker", "compose", "-p", self.project, "--env-file", str(self.env_file), *arguments],
            cwd=ROOT,
            env=os.environ | {"MESH_PUBLISH_ADDRESS": ADDRESS},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ComposeError(
                f"docker compose {' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            )
        return done.stdout

    def up(self, *options: str, replicas: Mapping[str, int] = MappingProxyType({})) -> None:
        """`docker compose up --wait` of everything."""
        scale = dict.fromkeys(self.absent, 0) | dict(replicas)
        words = [word for service, count in scale.items() for word in ("--scale", f"{service}={count}")]
        pull = ["--pull", "never"] if self.absent else []
        self.compose("up", "--wait", *pull, *options, *words)

    def environment(self) -> dict[str, str]:
        """In which commands of this machine mean this project."""
        project = {"COMPOSE_PROJECT_NAME": self.project, "MESH_PUBLISH_ADDRESS": ADDRESS}
        return os.environ | self.values | project

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()

    def sql(self, statement: str) -> list[list[str]]:
        output = self.compose("exec", "-T", "postgres", "psql", "-U", "mesh", "-AtF", "\t", "-c", statement)
        return [line.split("\t") for line in output.splitlines()]

    def members(self, group: str) -> list[int]:
        """How many partitions each member of a consumer group has."""
        described = self.compose(
            "exec", "-T", "kafka", "/opt/kafka/bin/kafka-consumer-groups.sh", "--bootstrap-server",
            "kafka:9092", "--describe", "--group", group, "--members",
        )  # fmt: skip
        return [int(line.split()[-1]) for line in described.splitlines() if line.startswith(group)]

    def prometheus(self, query: str) -> list[dict[str, Any]]:
        """The series of an instant query: `metric` and `value` (time, text)."""
        url = f"http://127.0.0.1:{self.values['PROMETHEUS_PORT']}/api/v1/query"
        answer = httpx.post(url, data={"query": query}, timeout=10).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@contextmanager
def compose_mesh(directory: Path) -> Iterator[ComposeMesh]:
    """A project that is not up yet, and is removed at the end with all it has. directory: for its .env."""
    values = {name: secrets.token_hex(16) for name in SECRETS} | free_ports()
    env_file = directory / ".env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    absent = tuple(service for service in FOR_PEOPLE_ONLY if not _can_be_had(service))
    mesh = ComposeMesh(f"visionmesh-test-{secrets.token_hex(3)}", env_file, values, absent)
    try:
        yield mesh
    finally:
        mesh.compose("down", "--volumes", "--timeout", "15", "--remove-orphans")


def http(port: int) -> str:
    return f"http://{ADDRESS}:{port}"


def free_ports() -> dict[str, str]:
    """By variable, for the ports that compose publishes beside the gateway's."""
    return {name: str(free_port()) for name in PORTS}


def _can_be_had(service: str) -> bool:
    image = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][service]["image"]
    return any(
        subprocess.run(["docker", *command, image], capture_output=True).returncode == 0
        for command in (("image", "inspect"), ("pull", "-q"))
    )
