"""Kafka is away and the edge-publisher dies meanwhile, again and again: every reading is a row, once."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import psycopg
import pytest

from chaos.rig import eventually, size
from edge_doubles import forwarding
from edge_publisher.publisher import KafkaSink
from visionmesh.database import migrate
from visionmesh.kafka import KafkaPublisher, create_topics
from visionmesh.mesh import SERVICES, Mesh
from visionmesh.settings import Settings
from visionmesh.stack import open_stack

pytestmark = [pytest.mark.native, pytest.mark.timeout(1800)]

EDGE = {
    "EDGE_DEVICE_ID": "chaos",
    "EDGE_SENSORS": '["tfluna", "mpu6050"]',
    "EDGE_SIMULATE": "all",
    "EDGE_TFLUNA_HZ": "250",
    "EDGE_MPU6050_HZ": "100",
}


def test_an_outage_with_kills_in_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    kills = size("MESH_CHAOS_EDGE_KILLS", 3)
    seconds = size("MESH_CHAOS_EDGE_SECONDS", 15)
    chance = random.Random(20261121)
    queue = tmp_path / "queue.db"
    services = [service for service in SERVICES if service.name in ("edge-publisher", "sensor-sink")]
    with open_stack("native", tmp_path / "stack") as stack:
        dsn = stack.endpoints.postgres_dsn
        migrate(dsn)
        connected = Settings(kafka_bootstrap=stack.endpoints.kafka_bootstrap)
        create_topics(connected)
        mesh = Mesh(tmp_path, services=services, ports="free")
        edge = mesh.replicas[0]
        over, ended = threading.Event(), threading.Event()

        def keep() -> None:
            mesh.keep(over.is_set)
            # Linux takes the end of the thread that started a process for the end of its parent.
            ended.wait()

        def health() -> dict[str, object]:
            found: dict[str, object] = httpx.get(f"{edge.url}/health", timeout=10).json()
            return found

        def waiting() -> int:
            found = health()
            assert isinstance(found["queue"], dict)
            return int(found["queue"]["waiting"]["kafka"])

        def rows() -> dict[str, tuple[int, int]]:
            with psycopg.connect(dsn) as connection:
                found = connection.execute(
                    "SELECT sensor, count(*), count(DISTINCT seq) FROM sensor_readings GROUP BY sensor"
                ).fetchall()
            return {sensor: (count, distinct) for sensor, count, distinct in found}

        environment = stack.endpoints.environment() | EDGE | {"EDGE_QUEUE_PATH": str(queue)}
        with mesh.started(environment | {"MESH_KAFKA_MESSAGE_TIMEOUT_MS": "5000"}):
            keeper = threading.Thread(target=keep, daemon=True)
            keeper.start()
            eventually(lambda: len(rows()) == 2, "rows of both sensors")
            stack.kafka.kill()
            for _ in range(kills):
                time.sleep(chance.uniform(0.5, 1.5) * seconds / kills)
                before = waiting()
                pid = edge.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                eventually(lambda pid=pid: edge.pid not in (None, pid), "another process")  # type: ignore[misc]
                eventually(lambda before=before: waiting() > before, "more readings on disk")  # type: ignore[misc]
            stack.kafka.start()
            eventually(lambda: waiting() < 1000 and health()["status"] == "ok", "readings sent")
            over.set()
            edge.ask_to_stop()
            assert edge.stop(30), "it ends by itself"
            with forwarding(queue, [KafkaSink(KafkaPublisher(connected))]) as rest:
                eventually(lambda: rest.health()["waiting"] == {"kafka": 0}, "what was read last sent")
            with closing(sqlite3.connect(queue)) as connection:
                made = dict(connection.execute("SELECT sensor, seq FROM sources"))
            wanted = {sensor: (seq, seq) for sensor, seq in made.items()}
            eventually(lambda: sum(count for count, _ in rows().values()) >= sum(made.values()), "all rows")
            assert rows() == wanted
            ended.set()
            keeper.join()
    assert edge.restarts == kills
    print(f"{sum(made.values())} readings, {kills} kills, Kafka away for {seconds} s: {made}")
