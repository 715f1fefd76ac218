"""`mesh topics tail` on a real Kafka: every topic, readable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from unittest import mock
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from visionmesh.cli import app
from visionmesh.kafka import KafkaPublisher, Record, create_topics, partition_offsets
from visionmesh.settings import Settings, get_settings
from visionmesh.stack import Stack
from visionmesh.topics import FEATURES, IMAGES, SENSORS, dead_letter_topics


@pytest.fixture
def settings(session_stack: Stack) -> Iterator[Settings]:
    with mock.patch.dict(os.environ, session_stack.endpoints.environment()):
        get_settings.cache_clear()
        settings = Settings()
        if settings.kafka_group_protocol == "classic":
            create_topics(settings)
        yield settings
    get_settings.cache_clear()


def tail(settings: Settings, key: str, *topics: str) -> dict[str, dict[str, object]]:
    """What lies in these topics, or in all of them, under a key; by topic."""
    everything = (IMAGES.name, FEATURES.name, SENSORS.name, *dead_letter_topics())
    offsets = [
        each for topic in topics or everything for each in partition_offsets(settings, topic, "nobody")
    ]
    count = sum(each.high - each.low for each in offsets)
    result = CliRunner().invoke(app, ["topics", "tail", *topics, "--from-beginning", "--limit", str(count)])
    assert result.exception is None, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return {line["topic"]: line for line in lines if line["key"] == key}


def test_messages_of_every_topic_are_readable(settings: Settings) -> None:
    letters = dead_letter_topics()
    ocr = IMAGES.dead_letters("ocr-worker")
    name = f"tail-{uuid4()}"
    key = name.encode()
    KafkaPublisher(settings).publish(
        [
            Record(IMAGES.name, key, b'{"image_id": "a", "minio_path": "raw-images/a.jpg"}'),
            Record(FEATURES.name, key, b'{"image_id": "a", "descriptors": [0.5]}'),
            Record(SENSORS.name, key, b'{"device_id": "pi", "values": {"distance_cm": 1.5}}'),
            *(Record(topic, key, b"\xffno JSON", (("x-error", "ñ".encode()),)) for topic in letters),
        ]
    )
    found = tail(settings, name)
    assert set(found) == {IMAGES.name, FEATURES.name, SENSORS.name, *letters}
    assert found[SENSORS.name]["value"] == {"device_id": "pi", "values": {"distance_cm": 1.5}}
    assert found[ocr]["value"] == "\N{REPLACEMENT CHARACTER}no JSON"
    assert found[ocr]["headers"] == {"x-error": "ñ"}
    assert all(str(line["time"]).startswith("20") for line in found.values())
    assert set(tail(settings, name, SENSORS.name)) == {SENSORS.name}


def test_a_topic_that_is_not_there_is_told(settings: Settings) -> None:
    if settings.kafka_group_protocol == "consumer":
        pytest.skip("the embedded broker makes whatever topic it is asked for")
    result = CliRunner().invoke(app, ["topics", "tail", "nothing"])
    assert result.exit_code == 1
