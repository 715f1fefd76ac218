"""The rig of the chaos tests: one mesh for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.rig import Rig
from visionmesh.database import migrate
from visionmesh.kafka import create_topics
from visionmesh.mesh import Mesh
from visionmesh.object_store import S3ObjectStore
from visionmesh.settings import Settings
from visionmesh.stack.native import NativeStack


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    directory: Path = tmp_path_factory.mktemp("chaos")
    with NativeStack(directory / "stack") as stack:
        environment = stack.endpoints.environment() | {"MESH_KAFKA_MESSAGE_TIMEOUT_MS": "5000"}
        settings = Settings(
            kafka_bootstrap=stack.endpoints.kafka_bootstrap,
            s3_endpoint=stack.endpoints.s3_endpoint,
            s3_access_key=stack.endpoints.s3_access_key,  # type: ignore[arg-type]
            s3_secret_key=stack.endpoints.s3_secret_key,  # type: ignore[arg-type]
        )
        migrate(stack.endpoints.postgres_dsn)
        create_topics(settings)
        S3ObjectStore.from_settings(settings).ensure_buckets()
        workers = ("feature-extractor", "classifier-fast", "classifier-balanced", "classifier-accurate")
        mesh = Mesh(directory, scale=dict.fromkeys(workers, 2), ports="free")
        with mesh.started(environment):
            mesh.wait_until_ready(120)
            rig = Rig(stack, mesh, settings)
            yield rig
            rig.leave()
        rig.close()
