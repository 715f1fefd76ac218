"""The mesh in containers, as compose tells of it: what runs, how it is, where its servers are reached.

Compose itself is asked, so that COMPOSE_FILE, COMPOSE_PROJECT_NAME, COMPOSE_PROFILES and `.env` hold as well.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from visionmesh.settings import ROOT

# Compose publishes the servers on loopback, whatever the address of the gateway.
_HOST: Final = "127.0.0.1"

# What the answer of /ready says, from inside: from outside it may ask for a key, or lie behind TLS.
_READY: Final = """\
import os, urllib.error, urllib.request
try:
    urllib.request.urlopen(f"http://127.0.0.1:{os.environ['MESH_HTTP_PORT']}/ready", timeout=5)
except urllib.error.HTTPError as error:
    print(error.read(2000).decode(errors="replace"))
"""


class ComposeError(Exception):
    """Docker can't be run, or a command of it failed; the text says which and why."""


@dataclass(frozen=True)
class Container:
    """state: running, exited, restarting, ... health: empty where nobody looks, or not yet."""

    service: str
    name: str
    state: str
    health: str
    exit_status: int


def run_docker(folder: Path, *arguments: str) -> str:
    """What a command of Docker prints. folder: where it runs. Raises `ComposeError`."""
    command = ("docker", *arguments)
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ComposeError(f"docker can't be run: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ComposeError(f"`{' '.join(command)}` failed: {said[-1] if said else done.returncode}")
    return done.stdout


class ComposeProject:
    """Asks once for what the compose file says, and each time for what runs. All raise `ComposeError`."""

    def __init__(self, folder: Path = ROOT) -> None:
        """folder: where the compose file is."""
        self._folder = folder
        self._services: dict[str, Any] | None = None

    def services(self) -> Mapping[str, bool]:
        """Every service, and whether it goes on; the others are over when their work is done."""
        return {name: "restart" in service for name, service in self._described().items()}

    def containers(self) -> list[Container]:
        """Those that ended as well."""
        told = run_docker(self._folder, "compose", "ps", "--all", "--format", "json").strip()
        # Before compose 2.21 one list, since then a line for each.
        lines = json.loads(told) if told.startswith("[") else map(json.loads, told.splitlines())
        return [
            Container(one["Service"], one["Name"], one["State"], one["Health"], one["ExitCode"])
            for one in lines
        ]

    def why_not_ready(self, container: Container) -> str:
        """What a container of the mesh says to `GET /ready`; nothing where it is asked for something else."""
        service = self._described()[container.service]
        if "MESH_HTTP_PORT" not in str(service.get("healthcheck")):
            return ""
        try:
            return run_docker(self._folder, "exec", container.name, "python", "-c", _READY).strip()
        except ComposeError as error:
            return str(error).splitlines()[-1]

    def connect(self) -> None:
        """Points the settings at its servers, unless the environment points elsewhere.

        To be called before `get_settings`.
        """
        for name, value in self.settings().items():
            os.environ.setdefault(name, value)

    def settings(self) -> dict[str, str]:
        """By which variables this machine reaches the servers, with the owner's accounts."""
        owner = self._environment("migrate")
        settings = {
            "MESH_KAFKA_BOOTSTRAP": self._published("kafka", 19092),
            "MESH_S3_ENDPOINT": self._published("minio", 9000),
            "MESH_S3_ACCESS_KEY": owner["MESH_S3_ACCESS_KEY"],
            "MESH_S3_SECRET_KEY": owner["MESH_S3_SECRET_KEY"],
            "MESH_POSTGRES_DSN": owner["MESH_POSTGRES_DSN"].replace(
                "@postgres:5432/", f"@{self._published('postgres', 5432)}/"
            ),
            "MESH_CACHE_URL": self._environment("feature-extractor")["MESH_CACHE_URL"].replace(
                "@redis:6379/", f"@{self._published('redis', 6379)}/"
            ),
        }
        extra = self._environment("ingest-api").get("MESH_EXTRA_CLASSIFIERS")
        return settings if not extra else settings | {"MESH_EXTRA_CLASSIFIERS": extra}

    def _environment(self, service: str) -> Mapping[str, str]:
        environment: Mapping[str, str] = self._described()[service]["environment"]
        return environment

    def _published(self, service: str, port: int) -> str:
        for published in self._described()[service].get("ports", []):
            if published["target"] == port:
                return f"{_HOST}:{published['published']}"
        raise ComposeError(f"Port {port} of {service} is not published.")

    def _described(self) -> dict[str, Any]:
        if self._services is None:
            told = run_docker(self._folder, "compose", "config", "--format", "json")
            self._services = json.loads(told)["services"]
        return self._services
