"""The publisher where no broker can be made to fail as wanted; the rest is in the integration tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from visionmesh import kafka
from visionmesh.errors import Unavailable
from visionmesh.kafka import KafkaPublisher, PartitionOffsets, Record
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


@pytest.mark.parametrize(
    ("low", "high", "committed", "lag"),
    [(0, 10, None, 10), (4, 10, None, 6), (4, 10, 2, 6), (0, 10, 7, 3), (0, 5, 9, 0)],
)
def test_lag(low: int, high: int, committed: int | None, lag: int) -> None:
    assert PartitionOffsets(0, low, high, committed).lag == lag
