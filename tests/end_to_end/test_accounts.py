"""The whole mesh with an account for each service: what one may not do would show as work that never ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from psycopg import conninfo

import waiting
from visionmesh.accounts import ACCOUNTS, make_roles, make_users
from visionmesh.kafka import create_topics
from visionmesh.mesh import SERVICES, Mesh, Service
from visionmesh.object_store import S3ObjectStore
from visionmesh.settings import ROOT, Settings
from visionmesh.stack import Stack, StackKind

PASSWORDS = {account.name: f"secret-of-{account.name}" for account in ACCOUNTS}
WORKERS = {service.name for service in SERVICES} - {"ingest-api", "edge-publisher", "sensor-sink"}

# Eleven services, each of which takes seconds to start on a busy machine.
DEADLINE_SECONDS = 240.0

T = TypeVar("T")


def until(question: Callable[[], T | None], mesh: Mesh, what: str) -> T:
    def asked() -> T | None:
        mesh.tend()
        return question()

    return waiting.answer_of(asked, what, seconds=DEADLINE_SECONDS, pause=0.05)


@pytest.fixture
def services(session_stack: Stack, postgres_dsn: str, stack_kind: StackKind) -> tuple[Service, ...]:
    """Each with its own account instead of the owner's."""
    endpoints = session_stack.endpoints
    settings = Settings(
        kafka_bootstrap=endpoints.kafka_bootstrap,
        s3_endpoint=endpoints.s3_endpoint,
        s3_access_key=endpoints.s3_access_key,
        s3_secret_key=endpoints.s3_secret_key,
    )
    S3ObjectStore.from_settings(settings).ensure_buckets()
    make_roles(postgres_dsn, PASSWORDS)
    # The embedded stack's S3 knows no users, and takes whoever comes.
    if stack_kind == "native":
        create_topics(settings)
        make_users(settings, PASSWORDS)

    def own(service: Service) -> Service:
        name = "classifier" if service.package == "classifier" else service.name
        if name not in PASSWORDS:
            account = {
                "MESH_POSTGRES_DSN": "postgresql://nobody@127.0.0.1:1/none",
                "MESH_S3_SECRET_KEY": "none",
            }
        else:
            account = {
                "MESH_POSTGRES_DSN": conninfo.make_conninfo(
                    postgres_dsn, user=name, password=PASSWORDS[name]
                ),
                "MESH_S3_ACCESS_KEY": name,
                "MESH_S3_SECRET_KEY": PASSWORDS[name],
            }
        return replace(service, environment={**service.environment, **account})

    return tuple(own(service) for service in SERVICES)


@pytest.mark.timeout(600)
def test_every_service_does_its_work_with_its_own_account(
    session_stack: Stack, services: tuple[Service, ...], tmp_path: Path
) -> None:
    mesh = Mesh(tmp_path, services=services, ports="free")
    with mesh.started(session_stack.endpoints.environment()):
        mesh.wait_until_ready(DEADLINE_SECONDS, lambda: False)
        with httpx.Client(base_url=mesh.url_of("ingest-api"), timeout=30) as client:
            picture = (ROOT / "samples" / "qr.png").read_bytes()
            image_id = client.post("/upload", files={"file": ("qr.png", picture)}).json()["image_id"]

            def done() -> dict[str, Any] | None:
                answer = client.get(f"/results/{image_id}")
                if answer.status_code != 200:
                    return None
                found: dict[str, Any] = answer.json()
                ended = {each["worker"] for each in found["outcomes"] if each["state"] == "done"}
                return found if ended >= WORKERS else None

            found = until(done, mesh, "end of the work")
            assert found["qr_codes"]
            assert len(found["predictions"]) == 3
            assert client.get(f"/images/{image_id}/content").content == picture
            assert client.get("/search", params={"q": "visionmesh"}).status_code == 200
            sensors = until(lambda: client.get("/sensors").json().get("sensors") or None, mesh, "readings")
            device, sensor = sensors[0]["device_id"], sensors[0]["sensor"]
            assert client.get(f"/sensors/{device}/{sensor}/readings").json()["readings"]
            assert client.delete(f"/images/{image_id}").status_code == 204
            assert client.get(f"/images/{image_id}").status_code == 404
