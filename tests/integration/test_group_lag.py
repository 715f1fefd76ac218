"""How far groups are behind, as the broker of the stack tells it, and the gauges that are made of it."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from prometheus_client import REGISTRY

import waiting
from visionmesh import group_lag, kafka
from visionmesh.errors import Unavailable
from visionmesh.group_lag import GroupLag, GroupLags, LagExporter
from visionmesh.kafka import client_config
from visionmesh.settings import Settings
from visionmesh.stack import Stack

DEADLINE = 30.0
# A broker takes no message that is from the future.
NOW = time.time()

eventually = partial(waiting.eventually, seconds=DEADLINE)


@pytest.fixture
def settings(session_stack: Stack) -> Settings:
    endpoints = session_stack.endpoints
    return Settings(
        kafka_bootstrap=endpoints.kafka_bootstrap,
        kafka_group_protocol=endpoints.group_protocol,
        kafka_fetch_wait_max_ms=endpoints.kafka_fetch_wait_max_ms or 100,
    )


@pytest.fixture
def topic(settings: Settings) -> str:
    name = f"lag-{uuid.uuid4().hex[:8]}"
    admin = AdminClient(client_config(settings))
    # The cluster inside librdkafka makes topics when they are asked for; it has no administration.
    if settings.kafka_fetch_wait_max_ms == 10:
        admin.list_topics(name, timeout=DEADLINE)
    else:
        for future in admin.create_topics([NewTopic(name, 12, 1)]).values():
            future.result()
    return name


@pytest.fixture
def producer(settings: Settings) -> Iterator[Producer]:
    producer = Producer(client_config(settings))
    yield producer
    assert producer.flush(DEADLINE) == 0


def publish(producer: Producer, topic: str, partition: int, *ages: float) -> None:
    """A message for each age in seconds, oldest first."""
    errors: list[KafkaError | None] = []
    for age in ages:
        producer.produce(
            topic,
            b"{}",
            partition=partition,
            timestamp=int((NOW - age) * 1000),
            on_delivery=lambda error, _: errors.append(error),
        )
    assert producer.flush(DEADLINE) == 0
    assert errors == [None] * len(ages)


def commit(settings: Settings, group: str, *places: tuple[str, int, int]) -> None:
    """As a member would that is not there any more."""
    consumer = Consumer(
        client_config(settings) | {"group.id": group, "group.protocol": settings.kafka_group_protocol}
    )
    try:
        consumer.commit(offsets=[TopicPartition(*place) for place in places], asynchronous=False)
    finally:
        consumer.close()


def read(settings: Settings, *readers: tuple[str, str]) -> list[GroupLag]:
    lags = GroupLags(settings, readers, now=lambda: NOW)
    # A service looks again soon; here the one answer has to come, however busy the machine is.
    with pytest.MonkeyPatch.context() as patched, closing(lags):
        patched.setattr(group_lag, "_FETCH_SECONDS", DEADLINE)
        patched.setattr(group_lag, "_REQUEST_SECONDS", DEADLINE)
        patched.setattr(kafka, "_PASSING_SECONDS", DEADLINE)
        # Twice: what was fetched before is known, and nothing is left behind that would change the answer.
        first = lags.read()
        assert lags.read() == first
        return first


def test_a_group_without_a_member_is_behind_by_what_it_left(
    settings: Settings, topic: str, producer: Producer
) -> None:
    publish(producer, topic, 0, 500, 400, 300)
    publish(producer, topic, 1, 60, 50)
    commit(settings, "left", (topic, 0, 1), (topic, 1, 2), (topic, 2, 0))
    commit(settings, "further", (topic, 0, 2), (topic, 1, 1), (topic, 2, 0))
    never, left, further = read(settings, (topic, "never"), (topic, "left"), (topic, "further"))
    assert (never.messages, never.seconds) == (5, pytest.approx(500, abs=0.01))
    assert (left.messages, left.seconds) == (2, pytest.approx(400, abs=0.01))
    assert (further.messages, further.seconds) == (2, pytest.approx(300, abs=0.01))


def test_a_group_that_is_done_is_not_behind(settings: Settings, topic: str, producer: Producer) -> None:
    publish(producer, topic, 2, 100)
    commit(settings, "done", (topic, 2, 1))
    assert read(settings, (topic, "done")) == [GroupLag("done", topic, 0, 0.0)]


def test_a_topic_that_is_not_there_has_no_lag(settings: Settings, topic: str) -> None:
    assert read(settings, ("no-such-topic", "any"), (topic, "any")) == [GroupLag("any", topic, 0, 0.0)]


def test_an_age_that_the_broker_does_not_tell_in_time_is_not_0(
    settings: Settings, topic: str, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(producer, topic, 0, 500)
    monkeypatch.setattr(GroupLags, "_fetch", lambda *_: None)
    assert read(settings, (topic, "late")) == [GroupLag("late", topic, 1, None)]


def test_a_broker_that_is_away_is_told() -> None:
    lags = GroupLags(Settings(kafka_bootstrap="127.0.0.1:1"), [("t", "g")])
    with pytest.raises(Unavailable):
        lags.read()
    lags.close()


NOT_COORDINATOR_TWICE = """
import ctypes
from functools import partial
from confluent_kafka import KafkaError
from visionmesh import group_lag, kafka
from visionmesh.group_lag import GroupLags
from visionmesh.kafka import partition_offsets
from visionmesh.settings import Settings
from visionmesh.stack.mock_kafka import MockCluster

# On a busy machine one answer may take longer than a service waits.
group_lag._REQUEST_SECONDS = kafka._PASSING_SECONDS = 30.0
cluster = MockCluster()
cluster.create_topic("t", 1)
answers = (ctypes.c_int * 2)(KafkaError.NOT_COORDINATOR, KafkaError.NOT_COORDINATOR)
offset_fetch = ctypes.c_int16(9)
refuse = partial(
    cluster._library.rd_kafka_mock_push_request_errors_array,
    ctypes.c_void_p(cluster._cluster), offset_fetch, ctypes.c_size_t(2), answers,
)
settings = Settings(kafka_bootstrap=cluster.bootstrap)
refuse()
lags = GroupLags(settings, [("t", "g")])
print(lags.read()[0].messages)
lags.close()
refuse()
print(partition_offsets(settings, "t", "g")[0].lag)
"""


def test_a_group_whose_coordinator_moves_is_asked_again() -> None:
    """In a process of its own, which librdkafka's admin client takes with it."""
    ended = subprocess.run(
        [sys.executable, "-c", NOT_COORDINATOR_TWICE], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (0, "0\n0\n"), ended.stderr


class ScriptedLags:
    """Answers with what it is told to."""

    def __init__(self) -> None:
        self.answer: list[GroupLag] | Exception = []
        self.looks = 0
        self.is_closed = False

    def read(self) -> list[GroupLag]:
        self.looks += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.is_closed = True


def gauges(group: str, topic: str) -> tuple[float | None, float | None]:
    """The lag in messages and in seconds, which are set and taken away one after the other."""
    names = ("mesh_group_lag_messages", "mesh_group_lag_seconds")
    messages, seconds = (REGISTRY.get_sample_value(name, {"group": group, "topic": topic}) for name in names)
    return messages, seconds


@pytest.mark.parametrize("failure", [Unavailable("kafka", "away"), RuntimeError("a bug")])
def test_old_values_are_not_shown_while_nobody_knows(failure: Exception) -> None:
    lags = ScriptedLags()
    lags.answer = [GroupLag("g", "t", 7, 42.0)]
    with LagExporter(lambda: lags, look_seconds=0.01):
        eventually(lambda: gauges("g", "t") == (7, 42.0), "a first look")
        lags.answer = failure
        eventually(lambda: gauges("g", "t") == (None, None), "no value")
        lags.answer = [GroupLag("g", "t", 0, 0.0)]
        eventually(lambda: gauges("g", "t") == (0, 0.0), "the next look")
    eventually(lambda: lags.is_closed, "an end")


def test_an_age_that_is_not_known_leaves_the_one_before() -> None:
    lags = ScriptedLags()
    lags.answer = [GroupLag("g", "late", 7, 300.0)]
    with LagExporter(lambda: lags, look_seconds=0.01):
        eventually(lambda: gauges("g", "late") == (7, 300.0), "a first look")
        lags.answer = [GroupLag("g", "late", 8, None)]
        eventually(lambda: gauges("g", "late")[0] == 8, "the next look")
        looks = lags.looks
        eventually(lambda: lags.looks > looks, "its end")
        assert gauges("g", "late") == (8, 300.0)


def test_a_topic_that_is_gone_is_shown_no_longer() -> None:
    lags = ScriptedLags()
    lags.answer = [GroupLag("g", "gone", 0, 0.0), GroupLag("g", "stays", 5, 1.0)]
    with LagExporter(lambda: lags, look_seconds=0.01):
        # The second is set after the first.
        eventually(lambda: gauges("g", "stays") == (5, 1.0), "a first look")
        assert gauges("g", "gone") == (0, 0.0)
        lags.answer = [GroupLag("g", "stays", 6, 2.0)]
        eventually(lambda: gauges("g", "stays") == (6, 2.0), "the next look")
        assert gauges("g", "gone") == (None, None)
