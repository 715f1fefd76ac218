"""What only a real broker does to a publisher: refuse records, be away, come back."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from visionmesh.errors import Unavailable
from visionmesh.kafka import KafkaPublisher, PartitionOffsets, Record, create_topics, partition_offsets
from visionmesh.settings import Settings
from visionmesh.stack.native import NativeStack
from visionmesh.topics import TOPICS, dead_letter_topics
from visionmesh.worker.retry import until_available

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> NativeStack:
    stack = NativeStack(tmp_path_factory.mktemp("publisher"))
    stack.kafka.start()
    yield stack  # type: ignore[misc]
    stack.stop()


@pytest.fixture
def local(stack: NativeStack) -> Settings:
    return Settings(kafka_bootstrap=stack.endpoints.kafka_bootstrap, kafka_message_timeout_ms=3000)


def offsets(settings: Settings, topic: str) -> list[PartitionOffsets]:
    """A new topic's partitions have no leader for a moment."""
    return until_available(
        lambda: partition_offsets(settings, topic, uuid.uuid4().hex), threading.Event(), lambda _: None
    )


def messages(settings: Settings, topic: str) -> int:
    return sum(place.high - place.low for place in offsets(settings, topic))


def test_a_record_over_the_limit_is_named_and_its_batch_arrives(local: Settings) -> None:
    topic = uuid.uuid4().hex
    new = NewTopic(topic, 1, 1, config={"max.message.bytes": "10000"})
    admin = AdminClient({"bootstrap.servers": local.kafka_bootstrap})
    for future in admin.create_topics([new]).values():
        future.result()
    # Random bytes, for the limit is on the compressed batch.
    records = [Record(topic, b"k", bytes([number]) * 100) for number in range(7)]
    noise = b"".join(uuid.uuid4().bytes for _ in range(2000))
    records[3] = Record(topic, b"k", noise)
    refused = KafkaPublisher(local, **{"linger.ms": 200}).publish(records)
    assert list(refused) == [3]
    assert messages(local, topic) == 6


def test_topics_are_created_once_with_twelve_partitions(local: Settings) -> None:
    expected = {topic.name for topic in TOPICS} | set(dead_letter_topics())
    assert set(create_topics(local)) == expected
    assert create_topics(local) == []
    for name in expected:
        assert len(offsets(local, name)) == 12


def test_an_unknown_topic_says_what_to_do(local: Settings) -> None:
    publisher = KafkaPublisher(local, **{"topic.metadata.propagation.max.ms": 500})
    with pytest.raises(Unavailable, match="mesh topics create"):
        publisher.publish([Record("no-such-topic", b"k", b"v")])


def test_a_broker_that_is_away_is_unavailable_and_the_same_publisher_goes_on_when_it_returns(
    stack: NativeStack, local: Settings
) -> None:
    create_topics(local)
    topic = TOPICS[0].name
    publisher = KafkaPublisher(local)
    assert publisher.publish([Record(topic, b"k", b"before")]) == {}
    count = messages(local, topic)
    stack.kafka.kill()
    with pytest.raises(Unavailable):
        publisher.publish([Record(topic, b"k", b"during")])
    with pytest.raises(Unavailable):
        publisher.ping()
    stop = threading.Event()
    stop.set()
    with pytest.raises(Unavailable, match="stopped"):
        publisher.publish([Record(topic, b"k", b"during")], give_up=stop.is_set)
    stack.kafka.restart()
    assert publisher.publish([Record(topic, b"k", b"after")]) == {}
    publisher.close()
    assert messages(local, topic) > count
    assert Path(stack.kafka.log_path).exists()
