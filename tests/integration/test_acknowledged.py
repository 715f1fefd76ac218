"""A record is acknowledged when a broker has it, also when it refused others of the same producer before."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

import pytest
from confluent_kafka import KafkaError

from visionmesh.kafka import KafkaPublisher, Record, partition_offsets
from visionmesh.settings import Settings
from visionmesh.stack.mock_kafka import BROKER_ID, MockCluster
from waiting import eventually

PRODUCE = 0
# Long enough for all requests to be on their way before the first is answered.
ANSWER_MS = 500

Refuse = Callable[[int], None]


@pytest.fixture
def cluster() -> MockCluster:
    cluster = MockCluster()
    cluster.create_topic("pictures", 1)
    return cluster


@pytest.fixture
def refuse(cluster: MockCluster) -> Refuse:
    """Makes the broker answer slowly, and refuse the next so many requests as one that leads no partition."""
    library, pointer = cluster._library, ctypes.c_void_p
    slow = library.rd_kafka_mock_broker_set_rtt
    slow.argtypes = [pointer, ctypes.c_int32, ctypes.c_int]
    fail = library.rd_kafka_mock_push_request_errors_array
    fail.argtypes = [pointer, ctypes.c_int16, ctypes.c_size_t, pointer]

    def refuse(count: int) -> None:
        slow(cluster._cluster, BROKER_ID, ANSWER_MS)
        errors = (ctypes.c_int * count)(*[KafkaError.NOT_LEADER_FOR_PARTITION] * count)
        fail(cluster._cluster, PRODUCE, count, errors)

    return refuse


def test_who_is_refused_first_is_not_acknowledged_by_those_that_follow(
    cluster: MockCluster, refuse: Refuse
) -> None:
    local = Settings(kafka_bootstrap=cluster.bootstrap)
    publisher = KafkaPublisher(local, **{"batch.num.messages": 1})
    publisher.ping()
    refuse(1)
    reports: dict[int, str | None] = {}
    for number in range(3):
        publisher.send(Record("pictures", b"k", b"%d" % number), partial(reports.__setitem__, number))

    def reported() -> bool:
        publisher.poll(0.05)
        return len(reports) == 3

    eventually(reported, "three reports", seconds=60)
    assert reports == {0: None, 1: None, 2: None}
    (place,) = partition_offsets(local, "pictures", "nobody")
    assert place.high == 3, "a record was acknowledged that the broker does not have"
