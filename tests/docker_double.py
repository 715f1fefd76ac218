"""A `docker` that tells of a mesh in containers what a test says of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

# What compose makes of the file and `.env`, as far as it is asked.
DESCRIBED: dict[str, Any] = {
    "kafka": {"restart": "unless-stopped", "ports": [{"target": 19092, "published": "19"}]},
    "minio": {"restart": "unless-stopped", "ports": [{"target": 9001}, {"target": 9000, "published": "20"}]},
    "postgres": {"restart": "unless-stopped", "ports": [{"target": 5432, "published": "21"}]},
    "redis": {"restart": "unless-stopped", "ports": [{"target": 6379, "published": "22"}]},
    "migrate": {
        "environment": {
            "MESH_S3_ACCESS_KEY": "mesh",
            "MESH_S3_SECRET_KEY": "s3-secret",
            "MESH_POSTGRES_DSN": "postgresql://mesh:pg-secret@postgres:5432/mesh",
        }
    },
    "feature-extractor": {
        "restart": "unless-stopped",
        "environment": {"MESH_CACHE_URL": "redis://:cache-secret@redis:6379/0"},
    },
    "ingest-api": {
        "restart": "unless-stopped",
        "environment": {"MESH_EXTRA_CLASSIFIERS": '["night"]'},
        "healthcheck": {"test": ["CMD", "python", "-c", "MESH_HTTP_PORT"]},
    },
}

DOCKER = """
import json, os, pathlib, sys
folder = pathlib.Path(os.environ["DOCKER_DOUBLE"])
match sys.argv[1:]:
    case ["compose", "config", "--format", "json"]:
        print((folder / "config").read_text())
    case ["compose", "ps", "--all", "--format", "json"]:
        print((folder / "containers").read_text())
    case ["exec", "mesh-ingest-api-1", "python", "-c", _]:
        print('{"checks": {"database": "away"}}')
    case asked:
        sys.exit(f"asked for {asked}")
"""


def put_in_front(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first `docker` on the path. What it tells lies in files of `folder`: config, containers."""
    program = folder / "bin" / "docker"
    program.parent.mkdir()
    # This Python, and nothing that is installed for it: it is started a hundred times.
    program.write_text(f"#!{sys.executable} -IS{DOCKER}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_DOUBLE", str(folder))
    (folder / "config").write_text(json.dumps({"services": DESCRIBED}))
