from __future__ import annotations

import asyncio
from threading import Event, active_count

from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from visionmesh.errors import Unavailable
from visionmesh.http import create_app
from visionmesh.observability.health import Finding, Readiness
from visionmesh.service import ready_when


def away() -> None:
    raise Unavailable("kafka", "no broker answers")


def broken() -> None:
    raise ValueError("bad DSN postgresql://mesh:hunter2@db/mesh")


def test_findings() -> None:
    readiness = Readiness({"fine": lambda: {"partitions": [1]}, "away": away, "broken": broken})
    assert asyncio.run(readiness.findings()) == {
        "fine": Finding(True, detail={"partitions": [1]}),
        "away": Finding(False, "no broker answers"),
        "broken": Finding(False, "ValueError: bad DSN postgresql://mesh:***@db/mesh"),
    }


def test_a_check_that_hangs_is_not_waited_for_and_gathers_no_threads() -> None:
    release = Event()
    started = 0

    def hang() -> None:
        nonlocal started
        started += 1
        release.wait()

    readiness = Readiness({"slow": hang, "fine": lambda: None}, deadline_seconds=1, cache_seconds=0)

    async def ask() -> list[dict[str, Finding]]:
        return [await readiness.findings() for _ in range(2)]

    before = active_count()
    found = asyncio.run(ask())
    assert all(not findings["slow"].ready and findings["fine"].ready for findings in found)
    assert started == 1
    assert active_count() <= before + 2
    release.set()


def test_answers_are_cached() -> None:
    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1

    readiness = Readiness({"check": count}, cache_seconds=60)

    async def ask() -> None:
        for _ in range(5):
            await readiness.findings()

    asyncio.run(ask())
    assert asked == 1


def test_ready() -> None:
    with TestClient(create_app("test", checks={"database": lambda: None})) as client:
        response = client.get("/ready")
    assert response.status_code == 200
    assert response.json() == {"ready": True, "service": "test", "checks": {"database": {"ready": True}}}


def test_not_ready_says_why_while_alive() -> None:
    with TestClient(create_app("test", checks={"kafka": away, "database": lambda: None})) as client:
        response = client.get("/ready")
        assert client.get("/health").status_code == 200
    assert response.status_code == 503
    assert response.json()["checks"] == {
        "kafka": {"ready": False, "error": "no broker answers"},
        "database": {"ready": True},
    }


class FakeLoop:
    def __init__(self, **status: object) -> None:
        self._status = {"ready": True, "partitions": [0, 3], "waiting_for": None} | status

    def run(self) -> None: ...

    def stop(self) -> None: ...

    def status(self) -> dict[str, object]:
        return self._status


def test_ready_when_the_worker_is() -> None:
    checks = {
        "works": ready_when(FakeLoop()),
        "waits": ready_when(FakeLoop(ready=False, waiting_for={"server": "database", "reason": "refused"})),
        "stops": ready_when(FakeLoop(ready=False)),
    }
    assert asyncio.run(Readiness(checks).findings()) == {
        "works": Finding(True, detail={"partitions": [0, 3]}),
        "waits": Finding(False, "database: refused"),
        "stops": Finding(False, "worker: the worker is stopping"),
    }


def test_what_a_check_found_is_a_metric() -> None:
    asyncio.run(Readiness({"told-well": lambda: None, "told-away": away}).findings())
    assert REGISTRY.get_sample_value("mesh_check_ready", {"check": "told-well"}) == 1
    assert REGISTRY.get_sample_value("mesh_check_ready", {"check": "told-away"}) == 0
