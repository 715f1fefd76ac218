"""The publisher where no broker can be made to fail as wanted; the rest is in the integration tests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from visionmesh import kafka
from visionmesh.errors import Unavailable
from visionmesh.kafka import KafkaPublisher, OnceInAWhile, PartitionOffsets, Record, committed
from visionmesh.settings import Settings


class FailingProducer:
    """The first one fails fatally at its second record; each delivers only what was given to itself."""

    made = 0

    def __init__(self, config: dict[str, Any]) -> None:
        FailingProducer.made += 1
        self._fails = FailingProducer.made == 1
        self._queue: list[Callable[[None, None], None]] = []

    def produce(self, *_: Any, on_delivery: Callable[[None, None], None], **__: Any) -> None:
        if self._fails and self._queue:
            raise KafkaException(KafkaError(KafkaError._FATAL))
        self._queue.append(on_delivery)

    def flush(self, timeout: float) -> int:
        for report in self._queue:
            report(None, None)
        self._queue.clear()
        return 0


def test_a_fatal_error_replaces_the_producer_and_asks_for_the_whole_batch_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FailingProducer, "made", 0)
    monkeypatch.setattr(kafka, "Producer", FailingProducer)
    publisher = KafkaPublisher(Settings())
    batch = [Record("topic", b"key", b"value")] * 3
    with pytest.raises(Unavailable, match="replaced"):
        publisher.publish(batch)
    assert publisher.publish(batch) == {}
    assert FailingProducer.made == 2


def test_a_missing_topic_is_told_at_once_and_as_what_will_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Producer:
        def __init__(self, config: dict[str, Any]) -> None: ...

        def produce(self, *_: Any, **__: Any) -> None:
            raise KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC))

    monkeypatch.setattr(kafka, "Producer", Producer)
    with pytest.raises(Unavailable, match="mesh topics create"):
        KafkaPublisher(Settings()).send(Record("topic", b"key", b"value"), print)


@pytest.mark.parametrize(
    ("low", "high", "committed", "lag"),
    [(0, 10, None, 10), (4, 10, None, 6), (4, 10, 2, 6), (0, 10, 7, 3), (0, 5, 9, 0)],
)
def test_lag(low: int, high: int, committed: int | None, lag: int) -> None:
    assert PartitionOffsets(0, low, high, committed).lag == lag


def test_a_partition_whose_commit_is_not_known_is_not_taken_for_one_that_never_was_committed() -> None:
    class Onlooker:
        def committed(self, partitions: list[TopicPartition], timeout: float) -> list[SimpleNamespace]:
            unstable = KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT)
            return [SimpleNamespace(offset=7, error=None), SimpleNamespace(offset=-1001, error=unstable)]

    with pytest.raises(KafkaException, match="UNSTABLE_OFFSET_COMMIT"):
        committed(cast(Consumer, Onlooker()), [], 1)


def test_the_librarys_line_about_a_broker_that_is_away_comes_once_a_minute() -> None:
    now = 0.0
    once = OnceInAWhile(lambda: now)

    def passes(line: str) -> bool:
        return once.filter(logging.makeLogRecord({"msg": "%s", "args": (line,)}))

    refused = "FAIL [rdkafka#producer-1] localhost:9092: Connection refused (after {}ms in state CONNECT)"
    assert passes(refused.format(0))
    assert passes("FAIL [rdkafka#producer-1] localhost:9092: Disconnected (after 59ms in state UP)")
    now = 59.9
    assert not passes(refused.format(1))
    now = 60.0
    assert [passes(refused.format(each)) for each in range(3)] == [True, False, False]
    assert sum(passes(f"line {number}") for number in range(5000)) == 5000


def test_clients_log_by_the_filtered_logger() -> None:
    logger = kafka.client_config(Settings())["logger"]
    assert any(isinstance(each, OnceInAWhile) for each in logger.filters)
