"""Every query of every dashboard, asked of a real Prometheus that has scraped a running mesh."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import pytest
import yaml

import grafana
import waiting
from prometheus_servers import program, running_prometheus
from promql import metrics_in
from running_mesh import DEADLINE_SECONDS, RunningMesh, running_mesh
from visionmesh.topics import IMAGES

# What is asked is of the services, whatever their servers are; the real ones have theirs in containers.
pytestmark = pytest.mark.embedded

ROOT: Final = Path(__file__).parents[2]

# What only containers have: a limit of their memory, and the object store's own server under a known address.
# `tests/end_to_end/test_compose.py` asks for these as well.
_OF_CONTAINERS: Final = {
    "mesh_memory_kills_total",
    "mesh_memory_limit_bytes",
    "minio_cluster_capacity_usable_free_bytes",
}


def queries() -> list[tuple[str, str]]:
    """Where each stands, and what it asks."""
    return [(where, query) for where, query in grafana.queries() if not metrics_in(query) & _OF_CONTAINERS]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    program("prometheus")
    with running_mesh(tmp_path_factory.mktemp("mesh")) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def prometheus(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server that finds the replicas as the one in containers does, by name and number."""
    targets = [
        {"targets": [replica["url"].removeprefix("http://")], "labels": {"job": replica["service"]}}
        for replica in mesh.state()["replicas"]
    ]
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "deploy/prometheus/alerts.yml")],
        "scrape_configs": [{"job_name": "mesh", "static_configs": targets}],
    }
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), yaml.safe_dump(configuration)) as url:
        with httpx.Client(base_url=url, timeout=30) as client:
            yield client


def ask(prometheus: httpx.Client, query: str) -> list[dict[str, Any]]:
    answer = prometheus.get("/api/v1/query", params={"query": query})
    assert answer.status_code == 200, f"{query}: {answer.text}"
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def has_data(prometheus: httpx.Client, query: str) -> bool:
    return any(math.isfinite(float(series["value"][1])) for series in ask(prometheus, query))


def has_rows(database: psycopg.Connection, statement: str) -> bool:
    return bool(database.execute(statement).fetchall())


def upload(mesh: RunningMesh, name: str) -> str:
    answer = mesh.http.post("/upload", files={"file": (ROOT / "samples" / name).read_bytes()})
    assert answer.status_code in (200, 202), answer.text
    return str(answer.json()["image_id"])


@pytest.mark.timeout(1200)
def test_every_query_of_every_dashboard_is_answered(mesh: RunningMesh, prometheus: httpx.Client) -> None:
    assert mesh.http.post("/upload", files={"file": b"no picture at all"}).status_code == 415
    # A dead letter, of an object that is not there.
    mesh.publish(IMAGES.name, "gone", b'{"image_id": "gone", "minio_path": "raw-images/gone.jpg"}')
    deadline = time.monotonic() + 4 * DEADLINE_SECONDS
    silent = queries()
    assert len(silent) > 100
    while silent and time.monotonic() < deadline:
        # The same pictures again, so that the cache is hit as well.
        for image_id in [upload(mesh, name) for name in ("qr.png", "cat.jpg", "qr.png")]:
            mesh.outcome(image_id)
            # Text takes longest, and would fall behind more with every round: of that there is an alert.
            mesh.result_of("ocr-worker", image_id)
        silent = [(where, query) for where, query in silent if not has_data(prometheus, query)]
    assert not silent
    with psycopg.connect(mesh.settings().postgres_dsn.get_secret_value(), autocommit=True) as database:
        for where, sql in grafana.statements():
            shows = partial(has_rows, database, sql)
            waiting.eventually(shows, f"rows of {where}", seconds=DEADLINE_SECONDS)


def test_prometheus_has_read_the_alerts_and_a_mesh_that_is_well_raises_none_that_is_critical(
    mesh: RunningMesh, prometheus: httpx.Client
) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 10
    assert not [rule["lastError"] for rule in rules if rule.get("lastError")]
    # There is no gateway outside containers.
    critical = 'ALERTS{alertstate="firing", severity="critical", alertname!="DiskLow", job!="gateway"}'
    assert not ask(prometheus, critical)
