"""Readings from an edge device through Kafka into Postgres, on the servers of the stack."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock

import psycopg
import pytest
from fastapi.testclient import TestClient

from edge_doubles import DEADLINE_SECONDS, eventually, forwarding, reading
from edge_publisher.publisher import KafkaSink
from edge_publisher.queue import ReadingQueue
from ingest_api.sensors import sensor_routes
from sensor_sink.step import make_step
from visionmesh.database import Database
from visionmesh.http import create_app
from visionmesh.kafka import KafkaPublisher, Record, create_topics
from visionmesh.results import PostgresResultStore
from visionmesh.sensors import PostgresSensors
from visionmesh.settings import Settings
from visionmesh.stack import Stack, StackKind
from visionmesh.topics import SENSORS
from visionmesh.worker.dead_letters import read_dead_letters
from visionmesh.worker.loop import Worker

GROUP = "sensor-sink"


@pytest.fixture(scope="module")
def settings(session_stack: Stack, postgres_dsn: str, stack_kind: StackKind) -> Settings:
    with mock.patch.dict(os.environ, session_stack.endpoints.environment()):
        settings = Settings(postgres_dsn=postgres_dsn, kafka_message_timeout_ms=3000)  # type: ignore[arg-type]
    if stack_kind == "native":
        create_topics(settings)
    return settings


@pytest.fixture(scope="module")
def sink(settings: Settings) -> Iterator[None]:
    with Database.from_settings(settings) as database:
        worker = Worker.from_settings(
            GROUP, SENSORS, make_step(), settings, store=PostgresResultStore(database), max_batch=512
        )
        thread = Thread(target=worker.run)
        thread.start()
        yield
        worker.stop()
        thread.join(DEADLINE_SECONDS)


@pytest.fixture
def device() -> str:
    return f"pi-{uuid.uuid4().hex[:8]}"


def rows(settings: Settings, device: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(settings.postgres_dsn.get_secret_value()) as connection:
        return connection.execute(
            "SELECT sensor, seq FROM sensor_readings WHERE device_id = %s ORDER BY sensor, seq", (device,)
        ).fetchall()


@contextmanager
def edge(path: Path, settings: Settings) -> Iterator[Any]:
    with forwarding(path, [KafkaSink(KafkaPublisher(settings))]) as forward:
        yield forward


def test_every_reading_is_a_row_that_is_read_over_http(
    tmp_path: Path, settings: Settings, sink: None, device: str
) -> None:
    with edge(tmp_path / "q", settings) as forward:
        for number in range(300):
            forward.offer(reading(number, device_id=device))
            if number % 3 == 0:
                forward.offer(reading(number, "hcsr04", device_id=device))
        eventually(lambda: len(rows(settings, device)) == 400, "400 rows")
    assert rows(settings, device) == [
        *(("hcsr04", seq) for seq in range(1, 101)),
        *(("tfluna", seq) for seq in range(1, 301)),
    ]
    with Database.from_settings(settings) as database:
        app = create_app("test", checks={})
        app.include_router(sensor_routes(PostgresSensors(database)))
        with TestClient(app) as client:
            found = client.get(f"/sensors/{device}/tfluna/readings").json()["readings"]
    assert [one["values"]["distance_cm"] for one in found] == list(range(300))
    assert [one["monotonic_ns"] for one in found] == list(range(300))


def test_what_is_sent_again_after_a_kill_is_not_doubled(
    tmp_path: Path, settings: Settings, sink: None, device: str
) -> None:
    path = tmp_path / "q"
    queue = ReadingQueue(path, sinks=["kafka"], max_bytes=1 << 30)
    queue.put([reading(number, device_id=device) for number in range(100)])
    KafkaSink(KafkaPublisher(settings)).send(queue.after("kafka", 60), lambda: False)
    # Killed here: sent, and not written down as sent.
    queue._connection.close()
    with edge(path, settings) as forward:
        forward.offer(reading(100, device_id=device))
        eventually(lambda: len(rows(settings, device)) == 101, "all rows")
        eventually(lambda: forward.health()["waiting"]["kafka"] == 0, "an empty queue")
    assert rows(settings, device) == [("tfluna", seq) for seq in range(1, 102)]


def test_what_is_no_reading_is_a_dead_letter_and_holds_nothing_up(
    settings: Settings, sink: None, device: str
) -> None:
    good = b'{"device_id":"%s","sensor":"a","seq":%d,"captured_at":"2026-11-21T14:00:00Z","values":%s}'
    early = b'{"device_id":"%s","sensor":"a","seq":2,"captured_at":"1970-01-01T00:00:00Z","values":{}}'
    name = device.encode()
    values = [
        good % (name, 1, b"{}"),
        b"nonsense",
        early % name,
        # Postgres has no such letter.
        good % (name, 3, rb'{"a":"\u0000"}'),
        good % (name, 4, b"{}"),
    ]
    KafkaPublisher(settings).publish([Record(SENSORS.name, name, value) for value in values])
    eventually(lambda: len(rows(settings, device)) == 2, "the good ones")
    assert rows(settings, device) == [("a", 1), ("a", 4)]

    def codes() -> set[str]:
        letters = read_dead_letters(settings, SENSORS.dead_letters(GROUP))
        return {letter.headers["x-error-code"] for letter in letters if letter.key == name}

    eventually(lambda: codes() == {"invalid_message", "implausible_time", "cannot_store"}, "dead letters")


def test_a_broker_that_is_away_costs_nothing_but_time(
    tmp_path: Path, session_stack: Stack, settings: Settings, sink: None, device: str
) -> None:
    if session_stack.kafka.pid is None:
        pytest.skip("this Kafka is no process")
    session_stack.kafka.stop()
    try:
        with edge(tmp_path / "q", settings) as forward:
            for number in range(200):
                forward.offer(reading(number, device_id=device))
            eventually(lambda: bool(forward.health()["problems"]), "a word about it")
            assert forward.health()["waiting"]["kafka"] == 200
    finally:
        session_stack.kafka.start()
    with edge(tmp_path / "q", settings) as forward:
        forward.offer(reading(200, device_id=device))
        eventually(lambda: forward.health()["waiting"]["kafka"] == 0, "an empty queue")
        eventually(lambda: len(rows(settings, device)) == 201, "all rows")
    assert rows(settings, device) == [("tfluna", seq) for seq in range(1, 202)]


def test_the_time_of_a_reading_is_that_of_the_device(settings: Settings, sink: None, tmp_path: Path) -> None:
    device = f"pi-{uuid.uuid4().hex[:8]}"
    before = datetime.now(UTC)
    with edge(tmp_path / "q", settings) as forward:
        forward.offer(reading(1, device_id=device))
        eventually(lambda: len(rows(settings, device)) == 1, "the row")
    with Database.from_settings(settings) as database:
        (found,) = [row for row in PostgresSensors(database).latest() if row.device_id == device]
    assert before <= found.captured_at <= datetime.now(UTC)
